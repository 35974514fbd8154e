"""The `harmonize` command: one subcommand a source, and what fetches, checks, shows and publishes around them."""

from __future__ import annotations

from harmonize.system import end_where_it_cannot_run, loading

end_where_it_cannot_run()

# isort: split
with loading():
    import argparse
    import difflib
    import os
    import sys
    from collections.abc import Iterable, Sequence
    from io import TextIOWrapper
    from itertools import takewhile

    from harmonize import __version__, sources
    from harmonize.cli.command import FAILED, Command, add_debug
    from harmonize.cli.corpus import LOCATE, MERGE, PUBLISH, REPORT, VERIFY
    from harmonize.cli.fetch import FETCH
    from harmonize.cli.phantom import PHANTOM
    from harmonize.cli.source import command_of
    from harmonize.errors import EXIT_INTERRUPTED, UserError, WrongUse, broken, is_our_own
    from harmonize.files import cure
    from harmonize.parser import Parser, with_home
    from harmonize.terminal import hide_texts_of_errors, warn


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Without the program's name; None takes the process's own.

    Returns:
        Exit code: 0 done, 1 nothing usable or not finished, 2 wrong use, 75 asked to stop: the same command goes on.
    """
    given = with_home(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, TextIOWrapper):
        # A path may hold bytes that the terminal has no letters for.
        sys.stdout.reconfigure(errors="backslashreplace")
    hide_texts_of_errors()
    debug = "--debug" in given
    try:
        options = parse(given)
        if debug:
            os.environ["HARMONIZE_DEBUG"] = "1"
        return int(options.call(options))
    except UserError as error:
        if debug:
            raise
        warn(f"error: {error}")
        return error.exit_code
    except OSError as error:
        if debug:
            raise
        warn(f"error: {error.filename or 'input or output'}: {error.strerror or type(error).__name__}{cure(error)}")
        return FAILED
    except (ImportError, MemoryError) as error:
        if debug or is_our_own(error):
            raise
        warn(f"error: {broken(error)}")
        return FAILED
    except KeyboardInterrupt:
        warn("error: stopped; the same command goes on from here")
        return EXIT_INTERRUPTED


def commands() -> dict[str, Command]:
    """All commands by name, in the order of the help.

    Raises:
        WrongUse: A source of the user's own has the name of one.
    """
    of_sources = (command_of(name, entry) for name, entry in sources.SOURCES.items())
    found: dict[str, Command] = {}
    for each in (*of_sources, PHANTOM, MERGE, VERIFY, REPORT, LOCATE, FETCH, PUBLISH):
        if each.name in found:
            raise WrongUse(f"{sources.own.VARIABLE}: {each.name}.py: there is a command {each.name}; rename the file")
        found[each.name] = each
    return found


def parse(given: Sequence[str]) -> argparse.Namespace:
    """Read a command line; `call` of what it gives does the work.

    Raises:
        UserError: Wrong use (exit code 2).
    """
    sources.own.add(sources.SOURCES)
    parser = Parser(prog="harmonize", description=__doc__)
    parser.add_argument("--version", action="version", version=f"harmonize {__version__}")
    below = parser.add_subparsers(metavar="COMMAND", required=True)
    command = next((word for word in given if not word.startswith("-")), None)
    parsers = {name: _add(below, each, with_options=name == command) for name, each in commands().items()}
    if command is not None and command not in parsers:
        raise WrongUse(f"{command}: unknown command{_nearest(command, parsers)}")
    if command is not None:
        # Before argparse, which would rather say that a required option is missing than which one is misspelt.
        names = _known_options(parsers[command], given)
        if names:
            _check_options(given, names)
    options, unknown = parser.parse_known_args(given)
    if unknown:
        name = unknown[0].split("=")[0]
        own = _known_options(parsers[command], given) if command is not None else []
        kind = "option" if name.startswith("-") else "argument"
        raise WrongUse(f"{name}: unknown {kind}{_nearest(name, own)}")
    return options


def _add(below: argparse._SubParsersAction[Parser], command: Command, *, with_options: bool) -> Parser:
    """Add a command; its options need not be known to list it, and those of a download take time to load."""
    description = command.description or f"{command.text.capitalize()}."
    parser = below.add_parser(command.name, help=command.text, description=description)
    if with_options:
        command.add_options(parser)
        if command is not FETCH:
            # The commands below it have it.
            add_debug(parser)
    parser.set_defaults(call=command.call)
    return parser


def _known_options(parser: argparse.ArgumentParser, given: Iterable[str]) -> list[str]:
    """Its options, or those of the command below it that is given; none where that is not known."""
    below = next((action for action in parser._actions if isinstance(action, argparse._SubParsersAction)), None)
    if below is None:
        return list(parser._option_string_actions)
    chosen = next((word for word in given if word in below.choices), None)
    return [] if chosen is None else _known_options(below.choices[chosen], given)


def _check_options(given: Iterable[str], known: Iterable[str]) -> None:
    names = {*known, "--version"}
    for word in takewhile(lambda word: word != "--", given):
        name = word.split("=")[0]
        is_option = name.startswith("--") or (name.startswith("-") and name[1:2].isalpha())
        if is_option and name not in names:
            raise WrongUse(f"{name}: unknown option{_nearest(name, names)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name.lower().replace("_", "-"), names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; use one of {', '.join(names)}"
