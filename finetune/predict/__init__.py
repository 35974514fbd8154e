"""From DICOM series and images to the probabilities of each, with what was decided about it on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from finetune.predict.answers import Answer, NoAnswer
from finetune.predict.ensemble import Ensemble, Precision, read_panel
from finetune.predict.inputs import decisions_of, regions_of
from finetune.raw.look import harmonize_for
from finetune.raw.trees import check_raw, is_scan_name, raw_folders, scans_in
from finetune.series import Region
from harmonize.decisions import unusual
from harmonize.dicom.estimate import Estimator, estimate_stack
from harmonize.errors import Rejection, UserError
from harmonize.raw_tree import RawTree
from harmonize.scan import Scan
from harmonize.sources.dicom_series import find_series, load_series
from harmonize.sources.nifti_image import image_of, load_image

__all__ = ["Answer", "NoAnswer", "Predictor"]


class Predictor:
    """Fine-tuned models that are loaded once and asked many times.

    Args:
        folder: Of a finished `finetune train` run, or of a cross-validation; several answer together, by the mean of
            their logits.
        device: Where to compute; None takes a GPU if there is one.
        weights: What the logits of each folder count; None: all models the same.
        precision: ``fp32`` or ``bf16``.
        estimate: Of the geometry that stripped series do not say, such as `finetune.geometry.read_geometry` gives;
            None: the head's outline alone.

    Raises:
        UserError: No finished run there.
    """

    def __init__(
        self,
        folder: Path | Sequence[Path],
        *,
        device: torch.device | None = None,
        weights: Sequence[float] | None = None,
        precision: Precision = "fp32",
        estimate: Estimator | None = None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.panel = read_panel([folder] if isinstance(folder, Path) else list(folder), weights)
        self.labels, self.estimate = self.panel.labels, estimate or estimate_stack
        self.ensemble = Ensemble(self.panel, self.device, precision)
        self.view = self.ensemble.views[0]

    def __call__(self, series: Path) -> dict[str, float]:
        """Probabilities by label, in the task's order; or numbers, where the task asks for these.

        Args:
            series: Folder of one DICOM series, or an image (NIfTI and what else nibabel reads).

        Raises:
            UserError: The folder holds several series, or the one cannot be used; says why.
        """
        found = self._found(series)
        if not found:
            raise UserError(f"{series}: holds no DICOM pictures and no image; give the folder of a series")
        if len(found) > 1:
            raise UserError(f"{series}: holds {len(found)} series, which are no one answer; use `answers` for all")
        try:
            return self._answer(series.name, found[0][1]).probabilities
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
            return self._answer(series.name, lambda: load_series(series, self.estimate))
        except Rejection as error:
            raise _unusable(series, error) from error

    def answers(self, folder: Path) -> list[Answer | NoAnswer]:
        """The answer about each series in a folder and below, or why there is none, ordered by their names.

        Args:
            folder: Of one DICOM series or image, or of many.

        Raises:
            UserError: There is no such folder, or it holds no raw data.
        """
        found: list[Answer | NoAnswer] = []
        for name, load in self._found(folder):
            try:
                found.append(self._answer(name, load))
            except Rejection as error:
                found.append(NoAnswer(series=name, reason=error.reason.value, message=error.message))
        return found

    def _found(self, path: Path) -> list[tuple[str, Callable[[], Scan]]]:
        """The series and the images of a folder, or the image that a path names: what each is called and read by."""
        check_raw(path)
        if path.is_file() and is_scan_name(path.name):
            return [(path.name, partial(load_image, image_of(path)))]
        series = [(one.name, partial(one.load, self.estimate)) for one in find_series(path)]
        images = [
            (folder.key(files[0].name), partial(load_image, files, folder.relative.split("/")))
            for folder, _ in raw_folders(RawTree(path))
            for files in scans_in(folder)
        ]
        return [*series, *images]

    def network_region(self, scan: Scan) -> tuple[Region, tuple[str, ...]]:
        """What the first model that takes a scan sees of it; and what was decided.

        Raises:
            Rejection: The scan cannot be used.
        """
        self._check(scan)
        series = harmonize_for(scan, self.panel.wishes)
        regions = regions_of(series, self.panel.inputs)
        return next(region for region in regions if region is not None), decisions_of(series, regions)

    def _answer(self, name: str, load: Callable[[], Scan]) -> Answer:
        scan = load()
        self._check(scan)
        series = harmonize_for(scan, self.panel.wishes)
        found = self.ensemble.answer([series])[0]
        if isinstance(found, Rejection):
            raise found
        decisions = list(found.decisions)
        return Answer(series=name, probabilities=found.probabilities, decisions=decisions, warnings=unusual(decisions))

    def _check(self, scan: Scan) -> None:
        """Before it is harmonized for nothing."""
        for task in self.ensemble.tasks:
            task.check_scan(scan)


def _unusable(series: Path, error: Rejection) -> UserError:
    return UserError(f"{series}: {error.message} ({error.reason}); give another series")
