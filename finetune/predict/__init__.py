"""From a folder of DICOM series to the probabilities of each, with what was decided about it on the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.inference import predict_region
from finetune.model_folder import load_model, read_bundle
from finetune.series import Region
from finetune.tasks import make_task
from finetune.views import make_view
from harmonize.decisions import unusual
from harmonize.errors import Reason, Rejection, UserError
from harmonize.pipeline import harmonize_scan
from harmonize.scan import HU, Scan
from harmonize.sources.dicom_series import find_series, load_series
from harmonize.voxels import brain
from headspark.channels import MRI_UNITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model says about a series.

    Attributes:
        series: A name for the series, unique in the folder that was asked about.
        probabilities: By label, in the task's order.
        decisions: What harmonize found and did, in order.
        warnings: Those of the decisions that are no matter of course: slices that are missing, pictures left out ...
    """

    series: str
    probabilities: dict[str, float]
    decisions: list[str]
    warnings: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnswer:
    """Why a series cannot be used.

    Attributes:
        series: As in `Answer`.
        reason: A code of docs/rejections.md.
        message: One line.
    """

    series: str
    reason: str
    message: str


class Predictor:
    """A fine-tuned model that is loaded once and asked many times.

    Args:
        folder: Of a finished `finetune.train` run.
        device: Where to compute; None takes a GPU if there is one.

    Raises:
        UserError: No finished run there.
    """

    def __init__(self, folder: Path, *, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.bundle = read_bundle(folder)
        if self.bundle.settings.brain_model is not None:
            brain.check_model(self.bundle.settings.brain_model)
        self.task = make_task(self.bundle.task)
        self.view = make_view(self.bundle.view, self.bundle.data, self.task)
        self.model = load_model(folder, self.bundle).to(memory_format=torch.channels_last_3d).to(self.device)

    def __call__(self, series: Path) -> dict[str, float]:
        """Probabilities by label, in the task's order.

        Args:
            series: Folder of one DICOM series.

        Raises:
            UserError: The folder holds several series, or the one cannot be used; says why.
        """
        found = find_series(series)
        if not found:
            raise UserError(f"{series}: holds no DICOM pictures; give the folder of a series")
        if len(found) > 1:
            raise UserError(f"{series}: holds {len(found)} series, which are no one answer; use `answers` for all")
        try:
            return self._answer(series.name, found[0].load).probabilities
        except Rejection as error:
            raise _unusable(series, error) from error

    def answer(self, series: Path) -> Answer:
        """The answer about a folder that is taken as one series, as in training: of several volumes the largest counts.

        Args:
            series: Folder of one DICOM series.

        Raises:
            UserError: The series cannot be used; says why.
        """
        try:
            return self._answer(series.name, lambda: load_series(series))
        except Rejection as error:
            raise _unusable(series, error) from error

    def answers(self, folder: Path) -> list[Answer | NoAnswer]:
        """The answer about each series in a folder and below, or why there is none, ordered by their names.

        Args:
            folder: Of one DICOM series or of many.

        Raises:
            UserError: There is no such folder.
        """
        found: list[Answer | NoAnswer] = []
        for series in find_series(folder):
            try:
                found.append(self._answer(series.name, series.load))
            except Rejection as error:
                found.append(NoAnswer(series=series.name, reason=error.reason.value, message=error.message))
        return found

    def network_region(self, scan: Scan) -> tuple[Region, tuple[str, ...]]:
        """What the network sees of a scan, by the pipeline that made the training corpus; and what was decided.

        Raises:
            Rejection: The scan cannot be used.
        """
        self.task.check_scan(scan)
        harmonized = harmonize_scan(scan, self.bundle.settings)
        if harmonized.unit not in (HU, *MRI_UNITS):
            raise Rejection(Reason.BAD_INTENSITY, f"the model knows no intensities in {harmonized.unit!r}")
        region = self.view.cut(harmonized.volume, unit=harmonized.unit, foreground_box=harmonized.foreground_box)
        return region, harmonized.decisions

    def _answer(self, name: str, load: Callable[[], Scan]) -> Answer:
        region, decisions = self.network_region(load())
        probabilities = predict_region(self.model, region, self.bundle.data, self.task, self.view, self.device)
        if not all(math.isfinite(value) for value in probabilities.values()):
            raise Rejection(Reason.BAD_INTENSITY, "the model's answer is no number: its weights or the values diverged")
        return Answer(series=name, probabilities=probabilities, decisions=list(decisions), warnings=unusual(decisions))


def _unusable(series: Path, error: Rejection) -> UserError:
    return UserError(f"{series}: {error.message} ({error.reason}); give another series")
