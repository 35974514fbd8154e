"""`finetune report`: draw a run's page again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harmonize.terminal import say


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of `finetune`."""
    parser = commands.add_parser("report", parents=[common], help="draw the run's report.html again")
    parser.add_argument("model", type=Path, metavar="FT", help="folder of a finished run")
    parser.add_argument("--corpus", type=Path, help="the corpus it was trained on, for pictures")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Draw the page, and say where it lies."""
    from finetune.report import write_report
    from harmonize.corpus import Corpus

    say(write_report(options.model, None if options.corpus is None else Corpus.open(options.corpus)))
    return 0
