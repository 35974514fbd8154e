"""The `harmonize` command: one subcommand a source, and what fetches, checks, shows and publishes around them."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from io import TextIOWrapper
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from harmonize import __version__
from harmonize.errors import UserError
from harmonize.fetch import arguments as fetch_arguments
from harmonize.files import NO_ROOM
from harmonize.parser import WRONG_USE, Parser
from harmonize.salt import FILE_OPTION, VARIABLE, given_salt
from harmonize.settings import DEFAULT_MRI_NORM, MRI_NORMS, Settings, parse_spacing
from harmonize.terminal import hide_texts_of_errors, say, warn

if TYPE_CHECKING:
    from harmonize.engine import Executor

SOURCES = {
    "openmind": "OpenMind: a tree of MRI NIfTI files with openneuro_metadata.csv",
    "tcia": "a folder of DICOM from The Cancer Imaging Archive, or any other",
    "deeplesion": "DeepLesion: Images_png/ and DL_info.csv",
    "rsna": "RSNA 2025 intracranial aneurysm detection: series/, train.csv and more",
}
EXECUTORS = ("local", "dask", "slurm")
FETCH = "fetch"
DONE, FAILED = 0, 1

DRAWN = 10_000
"""Pictures of a report: about 56 MB."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Without the program's name; None takes the process's own.

    Returns:
        Exit code: 0 done, 1 nothing usable or not finished, 2 wrong use.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, TextIOWrapper):
        # A path may hold bytes that the terminal has no letters for.
        sys.stdout.reconfigure(errors="backslashreplace")
    hide_texts_of_errors()
    debug = "--debug" in given
    try:
        options = _parse(given)
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
        more = "; make room and give the same command again" if error.errno in NO_ROOM else ""
        warn(f"error: {error.filename or 'input or output'}: {error.strerror or type(error).__name__}{more}")
        return FAILED
    except KeyboardInterrupt:
        warn("error: stopped; the same command goes on from here")
        return FAILED


class _Parser(Parser):
    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        close = difflib.get_close_matches(wrong[1].lower(), re.findall(r"\w+", wrong[2]), n=1) if wrong else []
        message += f"; did you mean {close[0]}?" if close else ""
        super().error(message)


def _parse(given: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="harmonize", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"harmonize {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    parsers = {name: _add_source(commands, name, text) for name, text in SOURCES.items()}
    parsers["phantom"] = _add_phantom(commands)
    parsers["merge"] = _add_merge(commands)
    parsers["verify"] = _add_verify(commands)
    parsers["report"] = _add_report(commands)
    parsers["locate"] = _add_locate(commands)
    parsers[FETCH] = fetch_arguments.add(commands)
    parsers["publish"] = _add_publish(commands)
    command = next((word for word in given if not word.startswith("-")), None)
    if command is not None and command not in parsers:
        raise UserError(f"{command}: unknown command{_nearest(command, parsers)}", exit_code=WRONG_USE)
    if command is not None:
        # Before argparse, which would rather say that a required option is missing than which one is misspelt.
        names = _known_options(parsers[command], given)
        if names:
            _check_options(given, names)
    options, unknown = parser.parse_known_args(given)
    if unknown:
        name = unknown[0].split("=")[0]
        own = parsers[command]._option_string_actions if command is not None else {}
        known = getattr(options, "known", own)
        kind = "option" if name.startswith("-") else "argument"
        raise UserError(f"{name}: unknown {kind}{_nearest(name, known)}", exit_code=WRONG_USE)
    return options


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
            raise UserError(f"{name}: unknown option{_nearest(name, names)}", exit_code=WRONG_USE)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name.lower().replace("_", "-"), names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; use one of {', '.join(names)}"


def _add_source(commands: argparse._SubParsersAction[_Parser], name: str, text: str) -> _Parser:
    parser = commands.add_parser(name, help=text, description=f"Harmonize {text}.", allow_abbrev=False)
    parser.add_argument("raw", type=Path, metavar="RAW", help="the raw folder")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="CORPUS", help="the corpus; several sources may share"
    )
    parser.add_argument(
        "--spacing", type=parse_spacing, default=(1.0, 1.0, 1.0), metavar="MM", help="1.0, or 0.5,0.5,1.0 for R,A,S"
    )
    parser.add_argument(
        "--mri-norm",
        choices=MRI_NORMS,
        default=DEFAULT_MRI_NORM.get(name, "zscore"),
        help="of MRI; default %(default)s",
    )
    parser.add_argument(
        "--nyul", type=Path, metavar="FOLDER", help="standard histograms to use instead of fitting them"
    )
    parser.add_argument("--nyul-sample", type=int, default=500, metavar="N", help="scans a modality to fit on")
    parser.add_argument("--n4", action="store_true", help="correct the bias field of MRI")
    parser.add_argument(
        "--brain-model", type=Path, metavar="FILE", help="SynthStrip's weights: store a brain mask of each scan"
    )
    parser.add_argument("--apply-brain", action="store_true", help="blank all but the brain")
    parser.add_argument("--crop-foreground", action="store_true", help="cut the air away, keeping a margin")
    parser.add_argument("--bake-windows", action="store_true", help="store three CT windows instead of HU")
    _add_salt(parser, "the secret that is mixed into the hashes of ids")
    parser.add_argument("--seed", type=int, default=0, help="of the sample that histograms are fitted on")
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N scans")
    parser.add_argument(
        "--shard", type=_shard, metavar="I/N", help="only part I of N, from 0; end with harmonize merge"
    )
    parser.add_argument("--retry", action="store_true", help="try again what was refused, after it was repaired")
    _add_workers(parser)
    _add_executor(parser)
    parser.add_argument("--strict", action="store_true", help="any rejected scan makes the exit code 1")
    _add_debug(parser)
    parser.set_defaults(call=_harmonize, source=name)
    return parser


def _add_phantom(commands: argparse._SubParsersAction[_Parser]) -> _Parser:
    text = "write made-up raw data in the sources' own formats"
    parser = commands.add_parser("phantom", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    parser.add_argument("--source", choices=("all", *SOURCES), default="all", help="default all")
    parser.add_argument("--out", type=Path, required=True, metavar="RAW", help="gets a folder a source")
    parser.add_argument("--scans", type=_positive, default=8, metavar="N", help="a source; default 8")
    parser.add_argument(
        "--size", type=_positive, default=96, metavar="VOXELS", help="of a scan's longest side; default 96"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes")
    _add_workers(parser)
    _add_debug(parser)
    parser.set_defaults(call=_phantom)
    return parser


def _add_merge(commands: argparse._SubParsersAction[_Parser]) -> _Parser:
    text = "put the shards of a corpus together and write its manifest anew"
    parser = commands.add_parser("merge", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    parser.add_argument("corpus", type=Path, metavar="CORPUS")
    _add_debug(parser)
    parser.set_defaults(call=_merge)
    return parser


def _add_verify(commands: argparse._SubParsersAction[_Parser]) -> _Parser:
    text = "check every row, file, hash and geometry of a corpus"
    parser = commands.add_parser("verify", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    parser.add_argument("corpus", type=Path, metavar="CORPUS")
    _add_workers(parser)
    _add_debug(parser)
    parser.set_defaults(call=_verify)
    return parser


def _add_report(commands: argparse._SubParsersAction[_Parser]) -> _Parser:
    text = "write a corpus's report/index.html: pictures, outliers first, statistics, what was refused"
    parser = commands.add_parser("report", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    parser.add_argument("corpus", type=Path, metavar="CORPUS")
    parser.add_argument(
        "--thumbnails", type=_not_negative, default=DRAWN, metavar="N", help="at most so many; default %(default)s"
    )
    _add_workers(parser)
    _add_debug(parser)
    parser.set_defaults(call=_report)
    return parser


def _add_locate(commands: argparse._SubParsersAction[_Parser]) -> _Parser:
    text = "name the raw files behind a corpus's hashes: all that were refused, or the ones you name"
    parser = commands.add_parser("locate", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    parser.add_argument("source", choices=tuple(SOURCES), metavar="SOURCE", help=", ".join(SOURCES))
    parser.add_argument("raw", type=Path, metavar="RAW", help="the raw folder")
    parser.add_argument("corpus", type=Path, metavar="CORPUS")
    parser.add_argument("names", nargs="*", metavar="NAME", help="scan ids or hashes; none: all that were refused")
    _add_salt(parser, "the secret that the corpus was made with")
    _add_debug(parser)
    parser.set_defaults(call=_locate)
    return parser


def _add_publish(commands: argparse._SubParsersAction[_Parser]) -> _Parser:
    text = "push a corpus to the Hugging Face Hub as a dataset"
    parser = commands.add_parser("publish", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    parser.add_argument("corpus", type=Path, metavar="CORPUS")
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="the dataset; made if need be")
    parser.add_argument("--public", action="store_true", help="make a new dataset public instead of private")
    parser.add_argument(
        "--i-may-share",
        action="append",
        default=[],
        choices=tuple(SOURCES),
        metavar="SOURCE",
        help="you have the right to pass on this source's scans, though its terms do not allow it to everybody",
    )
    _add_debug(parser)
    parser.set_defaults(call=_publish)
    return parser


def _add_salt(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(FILE_OPTION, type=Path, metavar="FILE", help=f"{what}; default: in {VARIABLE}")
    parser.add_argument("--salt", help="the same, for all users of this machine to see")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=_not_negative, default=_cores(), metavar="N", help="processes; default %(default)s"
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _add_executor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--executor",
        choices=EXECUTORS,
        default=EXECUTORS[0],
        help="what --workers counts: local processes, dask workers, or SLURM jobs of one core; default %(default)s",
    )
    parser.add_argument(
        "--time-limit", type=_not_negative, default=60, metavar="MINUTES", help="of one scan, 0 for none; default 60"
    )
    parser.add_argument("--dask-address", metavar="TCP", help="of a running scheduler, e.g. tls://10.0.0.1:8786")
    parser.add_argument("--slurm-partition", metavar="NAME")
    parser.add_argument("--slurm-account", metavar="NAME")
    parser.add_argument("--slurm-memory", metavar="SIZE", help="of a job; default 4GB")
    parser.add_argument("--slurm-minutes", type=_positive, metavar="N", help="time limit of a job; default 240")


def _add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _positive(text: str) -> int:
    return _whole(text, at_least=1)


def _not_negative(text: str) -> int:
    return _whole(text, at_least=0)


def _whole(text: str, *, at_least: int) -> int:
    if not text.isdecimal() or int(text) < at_least:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from {at_least} up")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text} is not I/N with I from 0 to N - 1, such as 0/4")
    return int(index), int(count)


def _harmonize(options: argparse.Namespace) -> int:
    from harmonize import engine
    from harmonize.sources.first_look import check_root

    check_root(options.source, options.raw)
    settings = Settings(
        spacing=options.spacing,
        mri_norm=options.mri_norm,
        nyul_sample=options.nyul_sample,
        seed=options.seed,
        crop_foreground=options.crop_foreground,
        bake_windows=options.bake_windows,
        n4=options.n4,
        brain_model=None if options.brain_model is None else options.brain_model.absolute(),
        apply_brain=options.apply_brain,
        salt=given_salt(options.salt, options.salt_file),
    )
    if options.nyul is not None and options.mri_norm != "nyul":
        raise UserError(f"--nyul {options.nyul}: does nothing with --mri-norm {options.mri_norm}", exit_code=WRONG_USE)
    if settings.brain_model is not None:
        from harmonize.voxels.brain import check_model

        check_model(settings.brain_model)
    starting = _executor(options)
    # Before workers are started, which may take minutes and leave logs beside the corpus.
    engine.check(options.source, options.raw, options.out, settings, shard=options.shard, nyul_folder=options.nyul)
    with starting as executor:
        summary = engine.run(
            options.source,
            options.raw,
            options.out,
            settings,
            workers=options.workers,
            limit=options.limit,
            shard=options.shard,
            nyul_folder=options.nyul,
            executor=executor,
            time_limit_s=options.time_limit * 60 or None,
            retry=options.retry,
        )
    say(*summary.lines())
    if summary.rejected and options.shard is None:
        salt = f" {FILE_OPTION} {options.salt_file}" if options.salt_file else " --salt ..." if options.salt else ""
        say(f"which ones: harmonize locate {options.source} RAW {options.out}{salt}")
    if summary.interrupted:
        raise UserError(f"{options.out}: stopped before the end; the same command goes on from here")
    if options.shard is not None:
        say(f"when all {options.shard[1]} shards are done: harmonize merge {options.out}")
    elif summary.accepted == 0:
        raise UserError(f"{options.raw}: no usable scan; the reasons are in {options.out / 'rejected.parquet'}")
    elif options.brain_model is not None:
        _draw_brains(options.out, options.workers)
    rejected = summary.rejected.total()
    if rejected and options.strict:
        raise UserError(f"{options.raw}: {rejected} scans rejected, and --strict allows none")
    return DONE


def _draw_brains(corpus: Path, workers: int) -> None:
    """Brain masks never come without pictures to judge them by."""
    from harmonize.report import write_report

    say(f"brain masks to look at: {write_report(corpus, thumbnails=DRAWN, workers=max(1, workers))}")


def _executor(options: argparse.Namespace) -> AbstractContextManager[Executor | None]:
    """The executor that was asked for; None is the engine's own."""
    chosen = {
        name.removeprefix("slurm_"): value
        for name, value in vars(options).items()
        if name.startswith("slurm_") and value is not None
    }
    if chosen and options.executor != "slurm":
        raise UserError(f"--slurm-{next(iter(chosen))}: does nothing without --executor slurm", exit_code=WRONG_USE)
    if options.dask_address is not None and options.executor != "dask":
        raise UserError("--dask-address: does nothing without --executor dask", exit_code=WRONG_USE)
    if options.executor == "local":
        return nullcontext(None)
    if options.workers == 0:
        raise UserError(f"--workers 0: --executor {options.executor} needs at least one", exit_code=WRONG_USE)
    from harmonize.engine import dask_workers

    # Workers have a working directory of their own.
    options.raw, options.out = options.raw.absolute(), options.out.absolute()
    if options.executor == "slurm":
        logs = options.out.with_name(f"{options.out.name}-slurm-logs")
        return dask_workers.slurm_jobs(dask_workers.SlurmJobs(count=options.workers, logs=logs, **chosen))
    if options.dask_address is not None:
        return dask_workers.scheduler_at(options.dask_address)
    return dask_workers.local_workers(options.workers)


def _phantom(options: argparse.Namespace) -> int:
    from harmonize import phantom

    roots = phantom.write(
        options.source, options.out, scans=options.scans, size=options.size, seed=options.seed, workers=options.workers
    )
    for root in roots:
        say(root)
    return DONE


def _merge(options: argparse.Namespace) -> int:
    from harmonize import engine
    from harmonize.corpus import RECORDS, Corpus, journal

    absent = journal.absent_shards(options.corpus / RECORDS)
    accepted, rejected = engine.merge(options.corpus)
    say(f"{options.corpus}: {accepted} scans, {rejected} rejected")
    if "brain_model" in Corpus.open(options.corpus).info["settings"]:
        _draw_brains(options.corpus, _cores())
    if absent:
        which = f"shards {', '.join(absent)}" if len(absent) > 1 else f"shard {absent[0]}"
        say(f"{options.corpus}: {which} never ran; run the same command without --shard to do what is missing")
        return FAILED
    return DONE


def _verify(options: argparse.Namespace) -> int:
    from harmonize.corpus.verify import verify

    faults = verify(options.corpus, workers=max(1, options.workers))
    for fault in faults:
        say(fault)
    if not faults:
        say(f"{options.corpus}: whole")
        return DONE
    say(f"{options.corpus}: {len(faults)} faults; delete the files named, then give the harmonize commands again:")
    say("they make what is missing, and only that")
    return FAILED


def _report(options: argparse.Namespace) -> int:
    from harmonize.report import write_report

    say(write_report(options.corpus, thumbnails=options.thumbnails, workers=max(1, options.workers)))
    return DONE


def _locate(options: argparse.Namespace) -> int:
    from harmonize.corpus.locate import describe, locate
    from harmonize.sources.first_look import check_root

    check_root(options.source, options.raw)
    count = 0
    salt = given_salt(options.salt, options.salt_file)
    for located in locate(options.source, options.raw, options.corpus, salt=salt, names=options.names):
        say(describe(located))
        count += 1
    if count < len(options.names):
        raise UserError(f"only {count} of {len(options.names)} names stand in {options.corpus} and in {options.raw}")
    return DONE


def _publish(options: argparse.Namespace) -> int:
    from harmonize.corpus.publish import publish

    say(publish(options.corpus, options.repo, may_share=options.i_may_share, private=not options.public))
    return DONE
