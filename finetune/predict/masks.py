"""Draw the structures of scans as masks: NIfTI files on the grid that each scan was acquired on."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.model_folder import load_model
from finetune.models.assemble import Network
from finetune.predict.drawn import ENDING, DrawnMasks, name_of
from finetune.predict.ensemble import Panel
from finetune.predict.inputs import regions_of
from finetune.raw.look import Harmonized, look
from finetune.raw.places import Place, find_places
from finetune.segmentation import on_raw_grid, segment
from finetune.tasks import MASKS, make_task
from finetune.views import make_view
from finetune.views.patches import PatchesView
from harmonize.bounded_files import read_small_json
from harmonize.corpus import write_volume
from harmonize.errors import Rejection, UserError, WrongUse
from harmonize.files import write_json
from harmonize.progress import Progress
from harmonize.terminal import printable
from harmonize.voxels.stored import StoredVolume
from headspark.run.interrupt import Interrupted, interrupts

ABOUT = "masks.json"
"""Beside the masks: the value of each structure, and which models drew them."""


@dataclass(slots=True, kw_only=True)
class Masks:
    """What became of some scans.

    Attributes:
        drawn: Files that were written now.
        anew: How many of them were there before, of files that have changed since.
        numbered: Path of each scan whose mask got a number, for another scan's mask has its name; and the mask.
        stale: Path of each place whose files are not used, or are several series now; and its mask of former files.
        known: How many were there before.
        refused: Name and reason of each scan that cannot be used.
        interrupted: What asked to stop before all were drawn; None: nothing did.
    """

    drawn: list[Path] = field(default_factory=list)
    anew: int = 0
    numbered: list[tuple[str, Path]] = field(default_factory=list)
    stale: list[tuple[str, Path]] = field(default_factory=list)
    known: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    interrupted: str | None = None


class Draughtsman:
    """Models that draw masks together, by the mean of their probabilities.

    Args:
        panel: The models.
        device: Where they compute.

    Raises:
        WrongUse: They answer labels, or want inputs that differ.
    """

    def __init__(self, panel: Panel, device: torch.device) -> None:
        first = panel.members[0]
        if make_task(first.bundle.task).answers != MASKS:
            raise WrongUse(f"{first.folder}: answers labels and draws no masks; leave out --masks")
        if len(panel.inputs) > 1:
            raise WrongUse("--masks: the models want other patches, spacings or windows than each other; give one")
        self.panel, self.device = panel, device
        self.models: list[Network] = [
            load_model(member.folder, member.bundle).to(memory_format=torch.channels_last_3d).to(device)
            for member in panel.members
        ]
        (self.input,) = panel.inputs
        self.task = make_task(self.input.task)

    def about(self) -> dict[str, Any]:
        """What a reader of the masks must know, for `ABOUT`."""
        values = dict(zip(self.task.labels, self.task.mask_values, strict=True))
        return {"labels": {"background": 0, **values}, "models": [member.facts() for member in self.panel.members]}

    def draw(self, series: Harmonized) -> StoredVolume:
        """The mask of a scan on its own grid, with the values of the masks that were learned from.

        Raises:
            Rejection: The task is not about such a scan, or the network's answer is no number.
        """
        (region,) = regions_of(series, self.panel.inputs)
        harmonized = series.volumes[self.input.wish]
        view = make_view(self.input.view, self.input.data, self.task)
        if region is None or harmonized is None or not isinstance(view, PatchesView):
            raise ValueError("a scan that no model is for was harmonized all the same")
        weights = [member.weight for member in self.panel.members]
        said = [
            segment(model, region, self.input.data, self.task, view, self.device) * (weight / sum(weights))
            for model, weight in zip(self.models, weights, strict=True)
        ]
        classes_XYZ = on_raw_grid(
            torch.stack(said).sum(0) if len(said) > 1 else said[0],
            view.affine(harmonized.volume),
            series.scan.affine,
            harmonized.raw_shape,
            slice_offsets=series.scan.slice_offsets,
        )
        values = np.array([0, *self.task.mask_values], dtype=np.uint16)
        mask_XYZ: NDArray[np.integer[Any]] = values[classes_XYZ]
        if values.max() <= np.iinfo(np.uint8).max:
            mask_XYZ = mask_XYZ.astype(np.uint8)
        return StoredVolume(stored_XYZ=mask_XYZ, affine=np.asarray(series.scan.affine))


def draw_masks(panel: Panel, paths: Sequence[Path], out: Path, *, device: torch.device) -> Masks:
    """Draw the mask of every scan that paths hold; one that is there already, of the same files, is passed over.

    Args:
        panel: The models.
        paths: Folders, images, and lists of these.
        out: The folder of the masks.
        device: Where to compute.

    Raises:
        UserError: Nothing is there, or `out` holds something else.
    """
    draughtsman, found = Draughtsman(panel, device), Masks()
    places = deque(find_places(paths))
    if not places:
        raise UserError(f"{paths[0]}: holds no DICOM pictures and no image; give the folder of a series, or an image")
    _claim(out, draughtsman.about())
    drawn = DrawnMasks(out)
    try:
        with interrupts() as interrupt, Progress("masks", total=len(places), unit="scans") as progress:
            interrupt.begin()
            while places and not interrupt:
                place = places.popleft()
                scan = drawn.of(place)
                if drawn.is_drawn(scan, place.state()):
                    found.known += 1
                    progress.advance(1)
                    continue
                looked = look(place, wishes=panel.wishes)
                former = drawn.mask_of(scan)
                if former is not None and not isinstance(looked.series, Harmonized):
                    found.stale.append((_path_of(place), former))
                if looked.parts:
                    places.extendleft(reversed(looked.parts))
                    continue
                try:
                    if isinstance(looked.series, Rejection):
                        raise looked.series
                    if looked.series is not None:
                        mask = draughtsman.draw(looked.series)
                        target = drawn.claim(scan, looked.state, name_of(place))
                        write_volume(target, mask)
                        found.drawn.append(target)
                        found.anew += former is not None
                        if target.name != f"{name_of(place)}{ENDING}":
                            found.numbered.append((_path_of(place), target))
                except Rejection as error:
                    found.refused.append((place.name, f"{error.message} ({error.reason})"))
                progress.advance(1)
            found.interrupted = interrupt.name if places else None
    except Interrupted:
        found.interrupted = "a signal"
    return found


def _claim(out: Path, about: dict[str, Any]) -> None:
    """Make the folder ours.

    Raises:
        WrongUse: It holds something else, or masks of other models.
    """
    if (out / ABOUT).is_file():
        try:
            known = read_small_json(out / ABOUT)
        except ValueError:
            known = None
        if known != about:
            raise WrongUse(f"--masks {out}: holds masks of other models; give another folder")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WrongUse(f"--masks {out}: is there, and not empty; give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / ABOUT, about)


def _path_of(place: Place) -> str:
    """Where a scan lies: the image, or the folder of the series."""
    return printable(str(place.files[0] if place.folders is not None else place.files[0].parent))
