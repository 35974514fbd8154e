"""`finetune report`: draw a run's page again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harmonize.errors import WrongUse
from harmonize.terminal import say


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of `finetune`."""
    parser = commands.add_parser("report", parents=[common], help="draw report.html, or draw it again")
    parser.add_argument("model", type=Path, metavar="FT", help="folder of a finished run or of a cross-validation")
    parser.add_argument("--corpus", type=Path, help="the corpus it was trained on, for pictures and baselines")
    parser.add_argument("--sizes", type=Path, metavar="TABLE.csv", help="diameter_mm of each finding, for sizes")
    parser.add_argument(
        "--evidence", action="store_true", help="write evidence/ too: a page a held-out series, and their index"
    )
    parser.add_argument("--series", nargs="+", metavar="SCAN_ID", help="with --evidence, these alone")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Draw the page, and say where it lies."""
    from finetune.evaluation.detection import read_finding_sizes, read_sizes
    from finetune.predict.folds import warn_of_unfinished
    from finetune.report import write_report
    from finetune.report.evidence import write_evidence
    from harmonize.corpus import Corpus

    if options.evidence and options.corpus is None:
        raise WrongUse("--evidence: shows pictures of series; give --corpus CORPUS")
    if options.series and not options.evidence:
        raise WrongUse("--series: names those of --evidence; give that too")
    corpus = None if options.corpus is None else Corpus.open(options.corpus)
    warn_of_unfinished(options.model)
    sizes = None if options.sizes is None else read_sizes(options.sizes)
    of_findings = None if options.sizes is None else read_finding_sizes(options.sizes)
    say(write_report(options.model, corpus, diameters_mm=sizes, of_findings_mm=of_findings))
    if options.evidence and corpus is not None:
        say(write_evidence(options.model, corpus, options.series or ()))
    return 0
