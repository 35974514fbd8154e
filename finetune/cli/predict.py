"""`finetune predict`: the probabilities of each series in folders, trees and lists, as JSON or as a file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harmonize.errors import UserError, WrongUse
from harmonize.parser import not_negative, positive
from harmonize.terminal import emit, warn

if TYPE_CHECKING:
    from finetune.predict.share import Share


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of `finetune`."""
    parser = commands.add_parser(
        "predict",
        parents=[common],
        help="the probabilities of each series in folders, trees and lists, as JSON or as a table",
        description="The probabilities of each series. Several models, or the folds of a cross-validation, answer "
        "together, by the mean of their logits.",
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="FT",
        help="folder of a finished run or of a cross-validation; or one on the Hub, as USER/NAME or USER/NAME@REVISION",
    )
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="SERIES_FOLDER",
        help="a folder of one DICOM series or of thousands, a NIfTI image or a folder of them, or a text file with one "
        "of these a line; further models too",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="a .csv, .json or .parquet file; the same command goes on where it was"
    )
    parser.add_argument(
        "--masks",
        type=Path,
        metavar="FOLDER",
        help="of a model that segments: a NIfTI file a scan, on the grid that it was acquired on",
    )
    parser.add_argument("--weights", type=weights, metavar="W,W", help="what each model's logits count")
    parser.add_argument("--device", help="such as cpu or cuda:0,cuda:1; default: all GPUs, or the CPU")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default %(default)s")
    parser.add_argument("--batch", type=positive, metavar="N", help="series at once; default 4 on a GPU, else 1")
    parser.add_argument(
        "--workers", type=not_negative, metavar="N", help="processes that read ahead; default: the cores, 0 for a few"
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="answer only part I of N, from 0, such as in a task of an array; who ends last writes the file",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Answer each series, and print the answers or write them.

    Raises:
        UserError: None could be answered.
    """
    from finetune.hub import fetched
    from finetune.predict.folds import is_model

    names = [options.model, *(path for path in options.paths if is_model(path) or _is_elsewhere(path))]
    paths = [path for path in options.paths if path not in names[1:]]
    if not paths:
        raise WrongUse("the following arguments are required: SERIES_FOLDER; see `finetune predict --help`")
    models, places = _fetched(names)
    options.model = models[0]
    with fetched(places):
        return _predict(options, models, paths)


def _is_elsewhere(path: Path) -> bool:
    """Whether a path may be a model on the Hub: a mistyped series of a folder that is here is never asked for there."""
    from finetune.hub.fetch import repo_of

    return repo_of(str(path)) is not None and not path.parent.exists()


def _fetched(names: Sequence[Path]) -> tuple[list[Path], dict[Path, str]]:
    """The folders of models, of which those on the Hub are fetched; and what these are called there."""
    from finetune.hub import fetch_model
    from finetune.hub.fetch import repo_of

    models, places = [], {}
    for name in names:
        repo = repo_of(str(name))
        models.append(name if repo is None else fetch_model(repo[0], revision=repo[1]))
        if repo is not None:
            places[models[-1]] = str(name)
    return models, places


def _predict(options: argparse.Namespace, models: Sequence[Path], paths: Sequence[Path]) -> int:
    from finetune.predict.share import ALL, parse_shard, share_of_rank

    if options.masks is not None or _draws_masks(options.model):
        return _draw_masks(options, models, paths)
    share = share_of_rank(ALL if options.shard is None else parse_shard(options.shard))
    if options.out is None and share != ALL:
        raise WrongUse(f"part {share} of the answers: several processes write to one file; give --out FILE")
    if options.out is None and len(paths) == 1 and not _is_list(paths[0]):
        return _print_one(options, models, paths[0])
    return _answer_all(options, models, paths, share)


def _draws_masks(model: Path) -> bool:
    from finetune.report.series import task_of
    from finetune.tasks import MASKS

    task = task_of(model)
    return task is not None and task.answers == MASKS


def _draw_masks(options: argparse.Namespace, models: Sequence[Path], paths: Sequence[Path]) -> int:
    """Draw the mask of each scan that paths hold into a folder."""
    from finetune.predict.ensemble import read_panel
    from finetune.predict.masks import draw_masks
    from finetune.predict.run import devices_of
    from harmonize.errors import EXIT_INTERRUPTED

    if options.masks is None:
        raise WrongUse(f"{options.model}: segments; give --masks FOLDER for what it draws")
    if options.out is not None or options.shard is not None:
        raise WrongUse("--masks: a model that segments writes masks alone, in one process; leave out --out and --shard")
    panel = read_panel(models, options.weights)
    done = draw_masks(panel, paths, options.masks, device=devices_of(options.device)[0])
    for name, why in done.refused:
        warn(f"not used: {name}: {why}")
    for path, mask in done.stale:
        warn(f"note: {path}: {mask.name} is of what was there before")
    for path, mask in done.numbered:
        warn(f"note: {path}: its mask is {mask.name}, for that of another scan has its name")
    if done.interrupted is not None:
        warn(f"stopped by {done.interrupted}: what was drawn is kept; the same command goes on")
        return EXIT_INTERRUPTED
    anew = f", {done.anew} of them anew, for their scans have changed" if done.anew else ""
    before = f"; {done.known} were there before" if done.known else ""
    warn(f"{options.masks}: {len(done.drawn)} masks{anew}{before}")
    if not done.drawn and not done.known:
        raise UserError(f"{paths[0]}: none of the {len(done.refused)} scans can be used; give others")
    return 0


def _print_one(options: argparse.Namespace, models: Sequence[Path], folder: Path) -> int:
    """Print what a folder holds: an object for one series, else a list of them."""
    from finetune.predict import Answer, NoAnswer, Predictor
    from finetune.predict.run import devices_of

    device = devices_of(options.device)[0]
    predictor = Predictor(models, device=device, weights=options.weights, precision=options.precision)
    found = predictor.answers(folder)
    if not found:
        raise UserError(f"{folder}: holds no DICOM pictures and no image; give the folder of a series")
    answers = [one for one in found if isinstance(one, Answer)]
    unusable = [one for one in found if isinstance(one, NoAnswer)]
    if len(found) == 1 and unusable:
        raise UserError(f"{folder}: {unusable[0].message} ({unusable[0].reason}); give another series")
    if len(found) > 1:
        warn(f"{folder}: {len(found)} series, {len(answers)} of them answered")
    for answer in answers:
        _warn_of(f"series {answer.series}" if len(found) > 1 else f"{folder}", answer.warnings)
    for refusal in unusable:
        warn(f"not used: series {refusal.series}: {refusal.message} ({refusal.reason})")
    if not answers:
        raise UserError(f"{folder}: none of its {len(found)} series can be used; give others")
    objects = [
        {**answer.probabilities, "decisions": answer.decisions, "warnings": answer.warnings} for answer in answers
    ]
    if len(found) > 1:
        objects = [{"series": answer.series, **one} for answer, one in zip(answers, objects, strict=True)]
    emit(objects[0] if len(found) == 1 else objects)
    return 0


def _answer_all(options: argparse.Namespace, models: Sequence[Path], paths: Sequence[Path], share: Share) -> int:
    """Answer all that paths hold, or this process's share: printed as a list, or written to a file."""
    from finetune.predict.ensemble import read_panel
    from finetune.predict.run import devices_of, predict_paths
    from finetune.predict.share import ALL, devices_of_rank
    from finetune.predict.table import FAILED, JOURNAL, companion, object_of, write_tables
    from harmonize.decisions import unusual
    from harmonize.errors import EXIT_INTERRUPTED

    out: Path | None = options.out
    panel = read_panel(models, options.weights)
    done = predict_paths(
        panel,
        paths,
        out=out,
        devices=devices_of_rank(devices_of(options.device)),
        precision=options.precision,
        workers=options.workers,
        batch=options.batch,
        share=share,
    )
    if done.interrupted is not None:
        kept = "nothing was kept" if out is None else "what was answered is kept; the same command goes on"
        warn(f"stopped by {done.interrupted}: {kept}")
        return EXIT_INTERRUPTED
    if done.left:
        warn(f"{out}: part {share} is done; {done.left} folders are left to others, and who ends last writes the file")
        return 0
    answered = [row for row in done.rows if row.reason is None]
    if out is None:
        for row in answered:
            _warn_of(f"series {row.series}", unusual(row.decisions))
        for row in done.rows:
            if row.reason is not None:
                warn(f"not used: series {row.series}: {row.message} ({row.reason})")
        if answered:
            emit([object_of(row, panel.labels) for row in answered])
    else:
        failed = write_tables(out, done.rows, panel.labels)
        before = f"; {done.known} of all were known before" if done.known and share == ALL else ""
        refused = f"; {failed} not used: {companion(out, FAILED).name} says why" if failed else ""
        warn(f"{out}: {len(answered)} series{refused}{before}")
        if done.elsewhere:
            warn(
                f"note: {companion(out, JOURNAL).name} knows {done.elsewhere} more series, of folders that were not "
                f"asked about; {out.name} leaves them out"
            )
    if not answered:
        raise UserError(f"{paths[0]}: none of the {len(done.rows)} series can be used; give others")
    return 0


def _is_list(path: Path) -> bool:
    from harmonize.sources.nifti_image import is_image_name

    return path.is_file() and not is_image_name(path.name)


def _warn_of(where: str, warnings: Sequence[str]) -> None:
    for line in warnings:
        warn(f"warning: {where}: {line}")


def weights(text: str) -> list[float]:
    """Read an option's value that is a number a model.

    Raises:
        argparse.ArgumentTypeError: It is no list of numbers.
    """
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give numbers with commas between") from None
