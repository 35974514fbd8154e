"""`finetune baselines`: several recipes on the same folds, side by side on one page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from finetune.cli.evaluate import positive
from harmonize.terminal import say


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of `finetune`."""
    parser = commands.add_parser(
        "baselines", parents=[common], help="cross-validate several recipes on the same folds, and show them together"
    )
    parser.add_argument(
        "recipes", type=Path, nargs="+", metavar="RECIPE", help="files; differences are from the first, and in pairs"
    )
    parser.add_argument("--corpus", type=Path, required=True, help="corpus that harmonize wrote, with labels")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the runs and the page; the same command goes on"
    )
    parser.add_argument("--encoder", help="pretrained encoder, for the recipes that see volumes")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), help="of all runs, instead of each recipe's train.precision"
    )
    parser.add_argument("--folds", metavar="N,N", help="such as 0,2; default: all")
    parser.add_argument("--draws", type=positive, default=1000, help="of the bootstrap over patients")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train what is left, compare, and write the page.

    Raises:
        UserError: A recipe, the corpus or a run does not fit the others.
    """
    from finetune.baselines import PAGE, read_recipes, run_all, side_by_side
    from finetune.cross_validation import numbers_of
    from finetune.evaluation.text import comparison_lines
    from finetune.sources import Sources
    from harmonize.corpus import Corpus
    from harmonize.errors import EXIT_INTERRUPTED

    folds = numbers_of(options.folds)
    recipes = read_recipes(options.recipes, precision=options.precision)
    sources = Sources(corpus=Corpus.open(options.corpus), encoder=options.encoder)
    if not run_all(recipes, sources, options.out, folds):
        return EXIT_INTERRUPTED
    found = side_by_side(recipes, sources, options.out, folds, draws=options.draws)
    say(*comparison_lines(found), f"{options.out / PAGE}: the page")
    return 0
