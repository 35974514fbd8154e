"""The commands that harmonize the scans of a source: one a source, all with the same options."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harmonize import sources
from harmonize.cli.command import DONE, Command, add_raw, add_salt, add_workers
from harmonize.cli.corpus import draw_brains
from harmonize.errors import EXIT_INTERRUPTED, UserError, WrongUse
from harmonize.parser import not_negative, positive
from harmonize.salt import FILE_OPTION, given_salt
from harmonize.settings import CIRCLE_MM, MRI_NORMS, Settings, StoredRegion, parse_spacing
from harmonize.terminal import say, warn

if TYPE_CHECKING:
    from harmonize.engine import Executor
    from harmonize.sources import Source

EXECUTORS = ("local", "dask", "slurm")


def command_of(name: str, entry: Source) -> Command:
    """The command that harmonizes the scans of a source."""
    return Command(
        name=name,
        text=entry.title,
        description=f"Harmonize {entry.title}.",
        add_options=partial(_add_options, name=name, entry=entry),
        call=partial(_harmonize, source=name),
    )


def _add_options(parser: argparse.ArgumentParser, *, name: str, entry: Source) -> None:
    add_raw(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="CORPUS", help="the corpus; several sources may share"
    )
    parser.add_argument(
        "--spacing", type=parse_spacing, default=(1.0, 1.0, 1.0), metavar="MM", help="1.0, or 0.5,0.5,1.0 for R,A,S"
    )
    parser.add_argument(
        "--mri-norm",
        choices=MRI_NORMS,
        default=entry.mri_norm,
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
    parser.add_argument(
        "--region",
        choices=[str(region) for region in StoredRegion],
        help="what is stored: all (default), head (the air is cut away, keeping a margin), or a box around the circle "
        "of Willis",
    )
    parser.add_argument(
        "--region-mm",
        type=partial(parse_spacing, option="--region-mm"),
        metavar="MM",
        help=f"edge of the box of --region circle; default {CIRCLE_MM:g}, or three numbers for R,A,S",
    )
    parser.add_argument("--crop-foreground", action="store_true", help="the same as --region head")
    parser.add_argument("--bake-windows", action="store_true", help="store three CT windows instead of HU")
    add_salt(parser, "the secret that is mixed into the hashes of ids")
    parser.add_argument("--seed", type=int, default=0, help="of the sample that histograms are fitted on")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N scans")
    parser.add_argument(
        "--shard", type=_shard, metavar="I/N", help="only part I of N, from 0; end with harmonize merge"
    )
    parser.add_argument("--retry", action="store_true", help="try again what was rejected, after it was repaired")
    add_workers(parser)
    _add_executor(parser)
    if entry.takes_options:
        _module(name).add_options(parser)
    parser.add_argument("--strict", action="store_true", help="any rejected scan makes the exit code 1")


def _module(name: str) -> Any:
    """The module of a source that takes options."""
    return sources.get(name)


def _add_executor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--executor",
        choices=EXECUTORS,
        default=EXECUTORS[0],
        help="what --workers counts: local processes, dask workers, or SLURM jobs of one core; default %(default)s",
    )
    parser.add_argument(
        "--time-limit", type=not_negative, default=60, metavar="MINUTES", help="of one scan, 0 for none; default 60"
    )
    parser.add_argument("--dask-address", metavar="TCP", help="of a running scheduler, e.g. tls://10.0.0.1:8786")
    parser.add_argument("--slurm-partition", metavar="NAME")
    parser.add_argument("--slurm-account", metavar="NAME")
    parser.add_argument("--slurm-memory", metavar="SIZE", help="of a job; default 4GB")
    parser.add_argument("--slurm-minutes", type=positive, metavar="N", help="time limit of a job; default 240")


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text} is not I/N with I from 0 to N - 1, such as 0/4")
    return int(index), int(count)


def _harmonize(options: argparse.Namespace, *, source: str) -> int:
    from harmonize import engine
    from harmonize.sources.first_look import check_root

    check_root(source, options.raw)
    given = _module(source).given(options) if sources.entry(source).takes_options else {}
    settings = Settings(
        spacing=options.spacing,
        mri_norm=options.mri_norm,
        nyul_sample=options.nyul_sample,
        seed=options.seed,
        **_region(options),
        bake_windows=options.bake_windows,
        n4=options.n4,
        brain_model=None if options.brain_model is None else options.brain_model.absolute(),
        apply_brain=options.apply_brain,
        salt=given_salt(options.salt, options.salt_file),
    )
    if options.nyul is not None and options.mri_norm != "nyul":
        raise WrongUse(f"--nyul {options.nyul}: does nothing with --mri-norm {options.mri_norm}")
    if settings.brain_model is not None:
        from harmonize.voxels.brain import check_model

        check_model(settings.brain_model)
    starting = _executor(options)
    # Before workers are started, which may take minutes and leave logs beside the corpus.
    engine.check(source, options.raw, options.out, settings, shard=options.shard, nyul_folder=options.nyul)
    with starting as executor:
        summary = engine.run(
            source,
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
            given=given,
        )
    say(*summary.lines())
    if summary.rejected and options.shard is None:
        salt = f" {FILE_OPTION} {options.salt_file}" if options.salt_file else " --salt ..." if options.salt else ""
        say(f"which ones: harmonize locate {source} RAW {options.out}{salt}")
    if summary.interrupted:
        raise UserError(
            f"{options.out}: stopped before the end; the same command goes on from here", exit_code=EXIT_INTERRUPTED
        )
    if options.shard is not None:
        say(f"when all {options.shard[1]} shards are done: harmonize merge {options.out}")
    elif summary.accepted == 0:
        raise UserError(f"{options.raw}: no usable scan; the reasons are in {options.out / 'rejected.parquet'}")
    elif options.brain_model is not None:
        draw_brains(options.out, options.workers)
    rejected = summary.rejected.total()
    if rejected and options.strict:
        raise UserError(f"{options.raw}: {rejected} scans rejected, and --strict allows none")
    return DONE


def _region(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that say what of a scan is stored."""
    region, edges_mm = options.region, options.region_mm
    if edges_mm is not None and region != StoredRegion.CIRCLE:
        raise WrongUse(f"--region-mm {edges_mm[0]:g}: does nothing without --region circle")
    if options.crop_foreground and region not in (None, StoredRegion.HEAD):
        raise WrongUse(f"--crop-foreground: the same as --region head, and --region {region} was given too")
    if region == StoredRegion.CIRCLE:
        edges_mm = edges_mm or (CIRCLE_MM,) * 3
        if min(edges_mm) < CIRCLE_MM:
            warn(
                f"--region-mm {min(edges_mm):g}: aneurysms lie outside of a box below {CIRCLE_MM:g} mm; "
                "those of each scan are counted in its decisions"
            )
    return {"crop_foreground": options.crop_foreground or region == StoredRegion.HEAD, "circle_mm": edges_mm}


def _executor(options: argparse.Namespace) -> AbstractContextManager[Executor | None]:
    """The executor that was asked for; None is the engine's own."""
    chosen = {
        name.removeprefix("slurm_"): value
        for name, value in vars(options).items()
        if name.startswith("slurm_") and value is not None
    }
    if chosen and options.executor != "slurm":
        raise WrongUse(f"--slurm-{next(iter(chosen))}: does nothing without --executor slurm")
    if options.dask_address is not None and options.executor != "dask":
        raise WrongUse("--dask-address: does nothing without --executor dask")
    if options.executor == "local":
        return nullcontext(None)
    if options.workers == 0:
        raise WrongUse(f"--workers 0: --executor {options.executor} needs at least one")
    from harmonize.engine import dask_workers

    # Workers have a working directory of their own.
    options.raw, options.out = options.raw.absolute(), options.out.absolute()
    if options.executor == "slurm":
        logs = options.out.with_name(f"{options.out.name}-slurm-logs")
        return dask_workers.slurm_jobs(dask_workers.SlurmJobs(count=options.workers, logs=logs, **chosen))
    if options.dask_address is not None:
        return dask_workers.scheduler_at(options.dask_address)
    return dask_workers.local_workers(options.workers)
