"""Pretrain an encoder: ``headspark pretrain --config RECIPE --corpus CORPUS --out RUN``.

On several devices: ``accelerate launch ssl/pretrain.py``, or ``accelerate launch -m headspark.pretrain``, with the same
options. The same command again resumes the run from its last good checkpoint. Exit codes: 0 finished, 1 the run could
not go on, 2 wrong use, 75 stopped by a signal after writing a checkpoint: give the command again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from harmonize.launcher import end_with_launcher

if __name__ == "__main__":
    end_with_launcher()

# isort: split
from harmonize.errors import EXIT_INTERRUPTED
from headspark.config import parse_recipe, recipe_parser, run_command
from headspark.recipe import Recipe
from headspark.train import train


def main(argv: Sequence[str]) -> int:
    """Run the command line; gives the exit code."""
    parser = recipe_parser(Recipe, prog="headspark pretrain", description="Pretrain an encoder by masked modelling.")
    parser.add_argument("--corpus", type=Path, required=True, help="folder that `harmonize` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an unfinished one is resumed")
    recipe, rest = parse_recipe(parser, Recipe, argv)
    return 0 if train(recipe, corpus=rest.corpus, out=rest.out) else EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
