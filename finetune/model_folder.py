"""A fine-tuned model on disk: its weights, and everything that a raw series needs to become its input."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from finetune import tasks, views
from finetune.finder import beside
from finetune.models import condition, encoders, heads
from finetune.models.assemble import Network, upgraded_names
from finetune.models.condition import CONDITIONS, ConditionConfig
from finetune.models.encoders import ENCODERS, Shape, make_encoder
from finetune.models.heads import AUXILIARY, HEADS, HeadConfig, configs_of
from finetune.samples import DataConfig
from finetune.series import Case
from harmonize.bounded_files import fits
from harmonize.corpus import NYUL, Corpus
from harmonize.errors import UserError, WrongUse
from harmonize.files import atomic_path, sha256_of, write_json
from harmonize.pipeline import WINDOWED
from harmonize.scan import HU
from harmonize.settings import Settings
from harmonize.voxels import nyul
from headspark.channels import MRI_UNITS
from headspark.config import from_plain, one_of, part_from_plain, to_plain
from headspark.folder_kind import is_model_config, read_json, seen_at
from headspark.weights import build_with, read_weights

SCHEMA_VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
BRAIN = "synthstrip.pt"
APPLIED_BRAIN = "apply_brain"
"""In config.json: SHA-256 of the weights of SynthStrip that lie beside it; absent where the whole head is kept."""
CIRCLE = "circle_mm"
"""In config.json: edges of the box around the circle of Willis that the corpus stores; absent where it stores more."""

_SHAPE: dict[str, Any] = {
    "encoder": dict,
    "head": dict,
    "data": dict,
    "harmonize": {"spacing": [float], "mri_norm": str, "crop_foreground": bool, "bake_windows": bool, "n4": bool},
}

BY_CONTRAST = {"nyul", "whitestripe", "kde"}
"""Normalisers of MRI that do something else for another contrast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What is needed besides the weights.

    Attributes:
        encoder: Its shape.
        head: The head of the labels.
        data: How a patch is cut; windows as the encoder wants them.
        settings: How the corpus was harmonized.
        task: What is asked.
        view: What the network sees.
        auxiliary: The other heads.
        condition: What the network is told of the modality.
    """

    encoder: Shape
    head: HeadConfig
    data: DataConfig
    settings: Settings
    task: tasks.TaskConfig = one_of(tasks.task_configs(), tasks.DEFAULT)
    view: views.ViewConfig = one_of(views.view_configs(), views.DEFAULT)
    auxiliary: tuple[HeadConfig, ...] = ()
    condition: ConditionConfig = one_of(CONDITIONS, condition.DEFAULT)


def settings_of(corpus: Corpus, sources: Sequence[str], *, brain_model: Path | None = None) -> Settings:
    """The settings that decide the voxels of some sources of a corpus (its salt, which is secret, stays empty).

    Args:
        corpus: With its series.
        sources: The task's, of one normaliser.
        brain_model: SynthStrip's weights, where `irreproducible` asks for them.
    """
    shared, norm = corpus.info["settings"], next(iter(_norms_of(corpus, sources).values()))
    # A brain mask that was only stored beside the scan changes no voxel of it.
    applied = bool(shared.get("apply_brain")) and brain_model is not None
    return Settings(
        spacing=corpus.spacing,
        mri_norm=norm,
        nyul_folder=corpus.path / NYUL if norm == "nyul" else None,
        crop_foreground=shared["crop_foreground"],
        circle_mm=corpus.circle_mm,
        bake_windows=shared["bake_windows"],
        n4=shared["n4"],
        brain_model=brain_model if applied else None,
        apply_brain=applied,
    )


def _norms_of(corpus: Corpus, sources: Sequence[str]) -> dict[str, str]:
    """The normaliser of the sources that have MRI; of the first, where none has."""
    scans = corpus.scans[corpus.scans["source"].isin(sources)]
    with_mri = sorted(set(scans.loc[scans["unit"] != HU, "source"])) or sources[:1]
    return {source: corpus.mri_norms[source] for source in with_mri}


def irreproducible(
    corpus: Corpus, task: tasks.Task, cases: Sequence[Case], *, brain_model: Path | None = None
) -> str | None:
    """Why a series could not be harmonized for prediction as these were for training; None if it can.

    The contrast of an MRI is the point of some normalisers: train.csv tells it of the series to train on, and nobody
    tells it of the series to predict, whose header (in the competition: always) says ``MR`` and no more.

    Args:
        corpus: Where the series come from.
        task: Whose series.
        cases: The series.
        brain_model: SynthStrip's weights, if they are at hand.
    """
    shared, norms = corpus.info["settings"], _norms_of(corpus, task.sources)
    norm = next(iter(norms.values()))
    if len(set(norms.values())) > 1:
        said = ", ".join(f"{name} by {own}" for name, own in norms.items())
        return f"--mri-norm: MRI was normalised otherwise in each source ({said}); name those of one with task.sources"
    if any(case.unit == WINDOWED for case in cases):
        return (
            "--bake-windows: this corpus stores CT windows, and fine-tuning cuts its own out of Hounsfield units; "
            "harmonize without it"
        )
    if any(case.unit not in (HU, *MRI_UNITS) for case in cases):
        return f"--mri-norm {norm}: MRI as it is has no common scale; harmonize with --mri-norm zscore or fcm"
    if norm in BY_CONTRAST and not task.knows_contrasts and any(case.unit == norm for case in cases):
        return (
            f"--mri-norm {norm}: it needs the contrast of an MRI, which train.csv tells and the DICOM header of a "
            "series to predict does not; harmonize with --mri-norm zscore or fcm"
        )
    if not shared.get("apply_brain"):
        return None
    if brain_model is None:
        return (
            "--apply-brain: prediction must blank all but the brain too; give the same weights to finetune train as "
            "--brain-model FILE, they go into the model's folder"
        )
    if not brain_model.is_file() or sha256_of(brain_model) != shared["brain_model"]:
        return (
            f"--brain-model {brain_model}: not the weights that --apply-brain used, whose SHA-256 is "
            f"{shared['brain_model']}"
        )
    return None


def save_bundle(folder: Path, bundle: Bundle, weights: dict[str, torch.Tensor]) -> None:
    """Write ``config.json`` and ``model.safetensors``, and copy what else it needs: histograms, brain, a finder.

    Args:
        folder: Where to.
        bundle: The configuration.
        weights: State dict of `finetune.models.assemble.Network`.
    """
    settings = bundle.settings
    if settings.nyul_folder is not None and settings.nyul_folder != folder / NYUL:
        _copy_histograms(settings.nyul_folder, folder / NYUL)
    brain: dict[str, str] = {}
    if settings.apply_brain and settings.brain_model is not None:
        if settings.brain_model != folder / BRAIN:
            with atomic_path(folder / BRAIN) as temporary:
                shutil.copyfile(settings.brain_model, temporary)
        brain = {APPLIED_BRAIN: sha256_of(folder / BRAIN)}
    finder = beside.copy_finder(bundle.view, bundle.data.fold, folder)
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, temporary)
    write_json(
        folder / CONFIG,
        {
            "schema_version": SCHEMA_VERSION,
            "labels": list(tasks.make_task(bundle.task).labels),
            "task": to_plain(bundle.task),
            "view": beside.without_finder(to_plain(bundle.view)),
            **finder,
            "encoder": to_plain(bundle.encoder),
            "head": to_plain(bundle.head),
            "auxiliary": [to_plain(one) for one in bundle.auxiliary],
            "condition": to_plain(bundle.condition),
            "data": to_plain(bundle.data),
            "harmonize": {
                "spacing": list(settings.spacing),
                "mri_norm": settings.mri_norm,
                "crop_foreground": settings.crop_foreground,
                "bake_windows": settings.bake_windows,
                "n4": settings.n4,
                **({} if settings.circle_mm is None else {CIRCLE: list(settings.circle_mm)}),
                **brain,
            },
        },
    )


def _copy_histograms(corpus: Path, model: Path) -> None:
    """Copy the standard histograms of a corpus, and nothing that lies beside them or that they are links to."""
    for path in sorted(corpus.glob("*.npy")):
        if path.is_symlink():
            continue
        with suppress(UserError):  # a damaged one is named when a series wants it
            nyul.save(model / path.name, nyul.load(path))


def read_bundle(folder: Path) -> Bundle:
    """Read the configuration that `save_bundle` wrote.

    Raises:
        UserError: No finished fine-tuning run there, or a damaged one.
    """
    config = read_json(folder / CONFIG)
    if config is None and (folder / CONFIG).is_file():
        raise UserError(f"{folder / CONFIG}: damaged; train again")
    if not os.path.lexists(folder):
        raise WrongUse(f"{folder}: no such folder; give the --out of a finished `finetune train`")
    if not is_model_config(config):
        fault = "is missing" if config is None else "is another's"
        raise WrongUse(
            f"{folder}: no fine-tuned model there ({CONFIG} {fault}), but {seen_at(folder)}; let finetune train "
            "finish, or give its --out"
        )
    if config.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{folder / CONFIG}: written by another version of headspark; train again")
    optional = {APPLIED_BRAIN, CIRCLE}
    if not fits(config, _SHAPE) or config["harmonize"].keys() - _SHAPE["harmonize"].keys() - optional:
        raise UserError(f"{folder / CONFIG}: damaged, or not written by `finetune train`; train again")
    try:
        bundle = _bundle_of(folder, config)
        if config.get("labels") != list(tasks.make_task(bundle.task).labels):
            raise UserError("its labels are not those of its task")
        return bundle
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{folder / CONFIG}: {error}; copy the model's folder again, or train again") from error


def _bundle_of(folder: Path, config: dict[str, Any]) -> Bundle:
    settings = dict(config["harmonize"])
    x, y, z = settings.pop("spacing")
    histograms = folder / NYUL if settings["mri_norm"] == "nyul" else None
    brain, circle_mm = settings.pop(APPLIED_BRAIN, None), settings.pop(CIRCLE, None)
    if brain is not None:
        if not (folder / BRAIN).is_file() or sha256_of(folder / BRAIN) != brain:
            raise UserError(f"{BRAIN} beside it is missing or damaged")
        settings |= {"apply_brain": True, "brain_model": folder / BRAIN}
    auxiliary = config.get("auxiliary", [])
    view = part_from_plain(views.view_configs(), config.get("view", {}), default=views.DEFAULT, key="view")
    return Bundle(
        task=part_from_plain(tasks.task_configs(), config.get("task", {}), default=tasks.DEFAULT, key="task"),
        view=beside.with_finder(view, config.get(beside.SHA256), folder),
        encoder=part_from_plain(ENCODERS, config["encoder"], default=encoders.DEFAULT, key="encoder"),
        head=part_from_plain(configs_of(HEADS), config["head"], default=heads.DEFAULT, key="head"),
        auxiliary=tuple(part_from_plain(configs_of(AUXILIARY), one, default="", key="auxiliary") for one in auxiliary),
        condition=part_from_plain(CONDITIONS, config.get("condition", {}), default=condition.DEFAULT, key="condition"),
        data=from_plain(DataConfig, config["data"]),
        settings=Settings(
            spacing=(x, y, z),
            nyul_folder=histograms,
            circle_mm=None if circle_mm is None else tuple(circle_mm),
            **settings,
        ),
    )


def load_model(folder: Path, bundle: Bundle) -> Network:
    """The trained model, on the CPU and in eval mode.

    Args:
        folder: As for `read_bundle`.
        bundle: What that gave.

    Raises:
        UserError: The weights are absent or damaged.
    """
    try:
        weights = upgraded_names(read_weights(folder / WEIGHTS))
    except UserError as error:
        raise UserError(f"{error}; train again") from error
    return build_with(
        lambda: Network(
            make_encoder(bundle.encoder, weights=False),
            bundle.head,
            bundle.auxiliary,
            tasks.make_task(bundle.task),
            bundle.condition,
        ),
        weights,
        where=f"{folder / WEIGHTS}",
        wanted=CONFIG,
    ).eval()
