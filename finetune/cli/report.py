"""`finetune report`: draw a run's page again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harmonize.terminal import say


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of `finetune`."""
    parser = commands.add_parser("report", parents=[common], help="draw report.html, or draw it again")
    parser.add_argument("model", type=Path, metavar="FT", help="folder of a finished run or of a cross-validation")
    parser.add_argument("--corpus", type=Path, help="the corpus it was trained on, for pictures and baselines")
    parser.add_argument("--sizes", type=Path, metavar="TABLE.csv", help="diameter_mm of each finding, for sizes")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Draw the page, and say where it lies."""
    from finetune.evaluation.detection import read_finding_sizes, read_sizes
    from finetune.report import write_report
    from harmonize.corpus import Corpus

    corpus = None if options.corpus is None else Corpus.open(options.corpus)
    sizes = None if options.sizes is None else read_sizes(options.sizes)
    of_findings = None if options.sizes is None else read_finding_sizes(options.sizes)
    say(write_report(options.model, corpus, diameters_mm=sizes, of_findings_mm=of_findings))
    return 0
