"""The console script ``finetune``: train a model, predict series, say what the predictions are worth."""

from __future__ import annotations

from harmonize.system import end_where_it_cannot_run, loading

end_where_it_cannot_run()

# isort: split
with loading():
    import argparse
    import sys
    from collections.abc import Sequence
    from importlib import import_module

    from finetune.cli import baselines, compare, evaluate, export, geometry, kaggle, predict, probe, push, report
    from harmonize import __version__
    from harmonize.parser import Parser
    from harmonize.terminal import hide_texts_of_errors
    from headspark.config import run_command

TRAIN, CROSS_VALIDATE, ROI, STUDY = "train", "cv", "roi", "study"
WITH_RECIPES = {
    TRAIN: "finetune.train",
    CROSS_VALIDATE: "finetune.cross_validation",
    ROI: "finetune.cli.roi",
    STUDY: "finetune.cli.study",
}
"""Modules with a ``main`` of their own, loaded when they are asked for, because torch takes seconds."""

COMMANDS = (predict, evaluate, compare, baselines, report, export, probe, push, geometry, kaggle)
"""Each a file with ``add(commands, common)``, which adds its parser and says what runs it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; an error is one line on standard error.

    Args:
        argv: Without the program's name; None takes the process's own.

    Returns:
        Exit code: 0 done, 1 not finished, 2 wrong use, 75 asked to stop: the same command goes on.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in WITH_RECIPES:
        return run_command(lambda rest: import_module(WITH_RECIPES[words[0]]).main(rest), words[1:])
    hide_texts_of_errors()  # those of a raw series may quote its header
    return run_command(_command, words)


def _command(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    common = Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = Parser(prog="finetune", description="Fine-tune a pretrained encoder, and use what came of it.")
    parser.add_argument("--version", action="version", version=f"finetune {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser(TRAIN, help="fine-tune on one device; `accelerate launch -m finetune.train` on several")
    commands.add_parser(CROSS_VALIDATE, help="train on all folds but one, in turn, and gather what they say")
    commands.add_parser(ROI, help="teach a finder of the arteries' box, for view.kind roi and resized")
    commands.add_parser(STUDY, help="pretrain on phantoms, fine-tune with and without that, and say what it changed")
    for command in COMMANDS:
        command.add(commands, common)
    return parser
