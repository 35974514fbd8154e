"""`finetune study`: does pretraining help, by how much, and how sure is that."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from harmonize.errors import WrongUse
from harmonize.terminal import say, warn

SMALL, FULL = "transfer_study", "transfer_study_full"
"""Recipes that are taken where no ``--config`` is given."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; an error is one line on standard error."""
    from headspark.config import run_command

    return run_command(_command, sys.argv[1:] if argv is None else list(argv))


def _command(argv: Sequence[str]) -> int:
    from finetune.study import StudyConfig, plan_lines, read_page, run_study, write_results
    from harmonize.errors import EXIT_INTERRUPTED
    from headspark.config import parse_recipe, recipe_parser
    from headspark.embed import device_of

    parser = recipe_parser(
        StudyConfig,
        prog="finetune study",
        description="Pretrain on phantoms, fine-tune with and without that, and say what it changed.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("study"), help="folder of the study, default study; the same command goes on"
    )
    parser.add_argument("--full", action="store_true", help=f"the recipe {FULL} where there is no --config")
    parser.add_argument("--plan", action="store_true", help="say what would be run and seen, and run nothing")
    parser.add_argument(
        "--report", action="store_true", help="write the page again from the predictions in --out, and run nothing"
    )
    parser.add_argument("--cells", default=None, help="names of cells with commas between; default: all")
    parser.add_argument("--docs", type=Path, default=None, help="a page whose section of results is written too")
    parser.add_argument(
        "--device",
        default=None,
        help="where probes and predictions are computed, such as cpu or cuda:1; default: the GPU, or the CPU. "
        "Trainings run where accelerate has them",
    )
    config, options = parse_recipe(parser, StudyConfig, with_recipe(argv))
    if options.plan:
        say(*plan_lines(config))
        return 0
    if options.docs is not None:
        read_page(options.docs)  # before hours are spent
    if not options.report:
        only = [] if options.cells is None else [name.strip() for name in options.cells.split(",")]
        if not run_study(config, options.out, only=only, device=device_of(options.device)):
            warn(f"{options.out}: stopped; the same command goes on")
            return EXIT_INTERRUPTED
    say(*write_results(options.out, docs=options.docs))
    return 0


def with_recipe(argv: Sequence[str]) -> list[str]:
    """The arguments with the recipe that comes along, where they name none.

    Raises:
        WrongUse: They name one, and ask for another.
    """
    named = any(word.split("=")[0] == "--config" for word in argv)
    if named and "--full" in argv:
        raise WrongUse(f"--full: is the recipe {FULL}; leave it out, or --config")
    return list(argv) if named else ["--config", FULL if "--full" in argv else SMALL, *argv]
