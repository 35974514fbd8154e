"""Where the box of the arteries lies in a scan, by a trained network; or by the head's outline where that is unsure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.finder.network import FinderNetwork, places_mm
from finetune.finder.survey import Survey, look, survey_of
from harmonize.voxels.stored import StoredVolume

SOFT_MM = 10.0
"""A heat map that spreads by so much more than another counts half as much."""
SCALES = (0.8, 1.2)
"""Heads are no smaller and no larger than this, against the mean of those that were learned from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A box in a scan.

    Attributes:
        centre_mm: Its middle, in mm from the middle of the scan's first voxel along R, A and S.
        scale: How large the arteries lie, against the mean of those that were learned from.
        doubt_mm: How far apart what the network says of the places lies.
        laid: ``found``; or why it was laid by the head's outline instead, as in `finetune.series.LAID`.
    """

    centre_mm: tuple[float, float, float]
    scale: float
    doubt_mm: float
    laid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finder:
    """A trained network, and what was measured on the series that it learned from.

    Attributes:
        network: In eval mode.
        template_P3: Where each place lies on average, in mm from the middle of the box.
        most_doubt_mm: More than this is unsure.
        facts: What a person may want to know: `fold`, `folds`, `fold_seed`, `series`, what was measured.
    """

    network: FinderNetwork
    template_P3: NDArray[np.float64]
    most_doubt_mm: float
    facts: dict[str, object]

    def find(self, volume: StoredVolume, *, unit: str, foreground_box: Sequence[int]) -> Found:
        """Find the box in a harmonized scan.

        Args:
            volume: RAS, axis-aligned, int16.
            unit: Of its real values.
            foreground_box: Half-open voxel bounds of the head, whose outline says where the network looks.
        """
        return self.find_in(survey_of(volume, unit=unit, foreground_box=foreground_box))

    @torch.inference_mode()
    def find_in(self, survey: Survey) -> Found:
        """Find it in a coarse look."""
        means_BP3, spreads_BP = places_mm(self.network(look(survey)[None]))
        centre_3, scale, doubt_mm = fit(means_BP3[0].double().numpy(), spreads_BP[0].double().numpy(), self.template_P3)
        centre_3 = centre_3 + survey.anchor_mm
        x, y, z = (float(mm) for mm in centre_3)
        laid = "found"
        if not doubt_mm <= self.most_doubt_mm:  # what is no number is unsure too
            laid = "unsure"
        elif (centre_3 < 0).any() or (centre_3 > np.asarray(survey.extent_mm)).any():
            laid = "outside"
        if laid != "found":
            return Found(centre_mm=survey.anchor_mm, scale=1.0, doubt_mm=doubt_mm, laid=laid)
        return Found(centre_mm=(x, y, z), scale=scale, doubt_mm=doubt_mm, laid=laid)


def fit(
    means_P3: NDArray[np.float64], spreads_P: NDArray[np.float64], template_P3: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float, float]:
    """Lay a template of places over those that were found, the surer ones counting more.

    Args:
        means_P3: Where each was found, in mm.
        spreads_P: How far its heat map spreads, in mm.
        template_P3: Where each lies from the middle of the box.

    Returns:
        The middle of the box (3,) in mm; its scale within `SCALES`; and a doubt in mm, the larger of how far the places
        lie from the template's, and of how far the surer half of the heat maps spread at most.

    Example:
        >>> template = np.array([[-20.0, 0.0, 0.0], [20.0, 0.0, 0.0], [0.0, 30.0, 10.0]])
        >>> centre, scale, doubt = fit(1.1 * template + 5.0, np.full(3, 4.0), template)
        >>> centre.round(3).tolist(), round(scale, 3), round(doubt, 3)
        ([5.0, 5.0, 5.0], 1.1, 4.0)
    """
    weights_P = 1 / (spreads_P**2 + SOFT_MM**2)
    weights_P = weights_P / weights_P.sum()
    middle_3, own_3 = weights_P @ means_P3, weights_P @ template_P3
    arms_P3, turned_P3 = means_P3 - middle_3, template_P3 - own_3
    size = float(weights_P @ (turned_P3**2).sum(1))
    likeness = float(weights_P @ (arms_P3 * turned_P3).sum(1))
    scale = float(np.clip(likeness / size, *SCALES)) if size > 0 else 1.0  # one place alone has no size
    rest_mm = float(np.sqrt(weights_P @ ((arms_P3 - scale * turned_P3) ** 2).sum(1)))
    return middle_3 - scale * own_3, scale, max(rest_mm, float(np.median(spreads_P)))
