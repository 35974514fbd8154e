"""Labels, points and masks that do not agree are counted, each by its kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.disagreements import NEGATIVE_POINT, NO_POINT, OTHER_MASK, SHARED_CELL, in_masks, in_tables, lines
from finetune.series import Case, Findings, Region, Sample, Spot
from finetune.targets import points_and_mask_targets

AGREES = Case(
    scan_id="1", subject="1", modality="CTA", unit="HU", image=Path("none"), mask=None, foreground_box=(0, 1) * 3,
    labels=(1, 0, 0, 1), spots=(Spot(label=0, xyz_mm=(0.0, 0.0, 0.0)),),
)  # fmt: skip


@pytest.mark.parametrize(
    ("case", "faults"),
    [
        (AGREES, []),
        (replace(AGREES, labels=(0, 0, 0, 0), spots=()), []),
        (replace(AGREES, labels=(1, 1, 0, 1)), [NO_POINT]),
        (replace(AGREES, spots=()), [NO_POINT]),
        (replace(AGREES, labels=(0, 0, 0, 0)), [NEGATIVE_POINT]),
        (replace(AGREES, labels=(0, 1, 0, 1)), [NO_POINT, NEGATIVE_POINT]),
        (replace(AGREES, spots=(*AGREES.spots, Spot(label=0, xyz_mm=(1.9, -1.9, 0.0)))), [SHARED_CELL]),
        (replace(AGREES, spots=(*AGREES.spots, Spot(label=0, xyz_mm=(2.1, 0.0, 0.0)))), []),
    ],
)
def test_a_series_whose_labels_and_points_differ_is_counted(case: Case, faults: list[str]) -> None:
    found = in_tables([case, AGREES], places=3, cell_mm=2.0)
    assert found == dict.fromkeys(faults, 1)
    assert len(list(lines(found))) == len(faults)


@pytest.mark.parametrize(
    ("voxel", "value", "differs"),
    [((12, 10, 10), 2, True), ((12, 10, 10), 1, False), ((14, 10, 10), 2, False), (None, 0, False)],
)
def test_a_mask_that_names_another_place_at_a_point_is_counted(
    voxel: tuple[int, int, int] | None, value: int, differs: bool
) -> None:
    mask = np.zeros((20, 20, 20), np.uint8)
    if voxel is not None:
        mask[voxel] = value
    region = Region(
        stored_XYZ=torch.zeros(mask.shape, dtype=torch.int16), mask_XYZ=torch.from_numpy(mask), slope=1.0, inter=0.0,
        spacing=(2.0, 2.0, 2.0),
        fill=0.0, unit="HU", start=(0, 0, 0),
        findings=Findings(
            points_K3=np.array([[10.0, 10.0, 10.0]]), places_K=np.array([0]), mask_XYZ=None, labels_L=np.array([1, 0]),
        ),
    )  # fmt: skip
    assert in_masks([region]) == ({OTHER_MASK: 1} if differs else {})
    at_the_edge = replace(region.findings, points_K3=np.array([[-3.0, 25.0, 0.0]]))
    assert in_masks([replace(region, findings=at_the_edge)]) == {}, "a point outside of the volume"


@pytest.mark.parametrize(
    ("labels", "places", "known"),
    [
        ((1, 1, 0, 1), (0, 1), True),
        ((1, 1, 0, 1), (0,), False),  # a positive place without a point
        ((0, 0, 0, 0), (0,), False),  # a point in a negative series
        ((0, 1, 0, 1), (0, 1), False),  # a point at a negative place
    ],
)
def test_nothing_is_learned_from_empty_cells_where_labels_and_points_differ(
    labels: tuple[int, ...], places: tuple[int, ...], known: bool
) -> None:
    found = targets_of(labels, places)
    assert found["labels"].tolist() == list(labels), "the labels count"
    assert bool(found["presence_known"]) == known


def test_a_cell_with_two_points_belongs_to_the_first() -> None:
    for places in ((0, 1), (1, 0)):
        found = targets_of((1, 1, 0, 1), places)
        assert found["territory"][2, 2, 2] == places[0]
        assert found["presence"][2, 2, 2] == 1


def targets_of(labels: tuple[int, ...], places: tuple[int, ...]) -> dict[str, Tensor]:
    """Targets of a series that has a point at each of the places, a voxel apart, all in one cell."""
    points = np.array([[8.0 + number, 8.0, 8.0] for number in range(len(places))])
    findings = Findings(
        points_K3=points, places_K=np.array(places), mask_XYZ=None, labels_L=np.array(labels, dtype=np.float64)
    )
    cells = {"presence": 4, "territory": 4}
    sample = Sample(findings=findings, shape=(16, 16, 16), spacing=(1.0, 1.0, 1.0), cells=cells)
    return points_and_mask_targets(sample, places=3, any_label=3)
