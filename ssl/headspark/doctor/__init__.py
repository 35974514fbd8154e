"""What a machine offers a run, and what is amiss there: ``headspark doctor``, for reports of faults.

Nothing of it names a person: the home folder is written ``~``, and no token, no name of a user or a host is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from harmonize.errors import WrongUse
from harmonize.parser import Parser
from harmonize.terminal import emit, say
from headspark.doctor.disk import examine_folder, examine_shared_memory
from headspark.doctor.hub import examine_hub
from headspark.doctor.machine import examine_cores, examine_gpu, examine_memory
from headspark.doctor.section import Section, nameless
from headspark.doctor.software import examine_imports, examine_software, examine_ssl


def main(argv: Sequence[str]) -> int:
    """Run the command line; gives the exit code: 1 only where headspark itself cannot run."""
    options = _parser().parse_args(argv)
    for path, name in ((options.folder, "--folder"), (options.corpus, "--corpus")):
        if path is not None and not path.is_dir():
            raise WrongUse(f"{name} {path}: no such folder")
    sections = examine(options.folder, config=options.config, corpus=options.corpus)
    findings = [nameless(finding) for section in sections for finding in section.findings]
    can_run = not any(section.fatal for section in sections)
    if options.json:
        emit({"can_run": can_run, **{section.name: section.plain() for section in sections}, "findings": findings})
    else:
        width = max(len(section.name) for section in sections)
        for section in sections:
            say(*(f"{name:<{width}}  {line}" for name, line in section.lines()))
        say("", *(f"note: {finding}" for finding in findings))
        say("headspark can run here" if can_run else "headspark cannot run here: see the notes")
    return 0 if can_run else 1


def examine(folder: Path, *, config: Path | None, corpus: Path | None) -> list[Section]:
    """All that there is to know; what needs a library that is broken is left out.

    Args:
        folder: Whose disk is measured.
        config: A recipe of pretraining; None: one of only defaults.
        corpus: To train on; None: what would fit is said in general.
    """
    found = [examine_software()]
    imports = examine_imports()
    found.append(imports)
    more: list[Callable[[], Section]] = [
        examine_ssl,
        examine_cores,
        examine_memory,
        examine_shared_memory,
        lambda: examine_folder(folder),
    ]
    if not imports.fatal:
        from headspark.doctor.plan import examine_plan  # needs all that may be broken

        more += [examine_gpu, examine_hub, lambda: examine_plan(config, corpus)]
    return found + [each() for each in more]


def _parser() -> Parser:
    parser = Parser(prog="headspark doctor", description="Say what this machine offers, and what is amiss.")
    parser.add_argument(
        "--folder", type=Path, default=Path(), metavar="DIR", help="whose disk is measured; default: where you are"
    )
    parser.add_argument("--config", type=Path, metavar="RECIPE", help="what this machine would take for this recipe")
    parser.add_argument("--corpus", type=Path, metavar="CORPUS", help="and for this corpus")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
