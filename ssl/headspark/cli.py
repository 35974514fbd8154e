"""The console script ``headspark``: recipes; pretrain an encoder, export it, embed scans; and look at the machine."""

from __future__ import annotations

from harmonize.system import end_where_it_cannot_run, loading

end_where_it_cannot_run()

# isort: split
with loading():
    import sys
    from collections.abc import Callable, Sequence
    from importlib import import_module

    from harmonize import __version__
    from harmonize.parser import Parser
    from headspark.config import run_command

COMMANDS = {
    "pretrain": "pretrain an encoder, on one device; `accelerate launch ssl/pretrain.py` on several",
    "push": "export the encoder of a run to a folder, to nnU-Net, or to the Hub",
    "recipes": "list the recipes that come with headspark, or print one to copy and edit",
    "embed": "a vector for each scan of a corpus, by a frozen encoder, as a table",
    "doctor": "say what this machine offers and what is amiss, for reports of faults",
}
"""Each is a module of the same name with ``main``; it is loaded when it is asked for, because torch takes seconds, and
because `doctor` must run where torch is broken."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; an error is one line on standard error.

    Args:
        argv: Without the program's name; None takes the process's own.

    Returns:
        Exit code: 0 done, 1 not finished, 2 wrong use, 75 asked to stop: the same command goes on.
    """
    return run_command(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        _parser().parse_args(argv[:1])  # shows its help, or refuses
    name, *rest = argv
    run: Callable[[Sequence[str]], int] = import_module(f"headspark.{name}").main
    return run(rest)


def _parser() -> Parser:
    parser = Parser(prog="headspark", description="Pretrain 3D head encoders by masked modelling.")
    parser.add_argument("--version", action="version", version=f"headspark {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
