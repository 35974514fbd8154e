"""Dense targets in millimetres: spheres, blobs and vessels on any grid, and what a patch must not teach."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.series import Findings, Sample
from finetune.targets import IGNORE, points_and_mask_targets
from finetune.tasks import make_task, task_configs
from finetune.tasks.aneurysm import AneurysmConfig
from harmonize.errors import WrongUse

PLACES, ANY = 2, 2
SHAPE = (16, 20, 24)


def sample(
    points: Any = ((8.0, 9.0, 10.0),),
    places: Any = (0,),
    labels: Any = (1, 0, 1),
    mask: np.ndarray | None = None,
    spacing: float = 1.0,
    stride: int = 1,
) -> Sample:
    findings = Findings(
        points_K3=np.array(points, dtype=np.float64).reshape(-1, 3),
        places_K=np.array(places, dtype=np.int64),
        mask_XYZ=None if mask is None else torch.from_numpy(mask),
        labels_L=np.array(labels),
    )
    cells = {"spheres": stride, "blobs": stride, "vessels": stride}
    return Sample(findings=findings, shape=SHAPE, spacing=(spacing,) * 3, cells=cells)


def targets(one: Sample, radius_mm: float = 5.0) -> dict[str, Tensor]:
    return points_and_mask_targets(one, places=PLACES, any_label=ANY, radius_mm=radius_mm)


@pytest.mark.parametrize("radius_mm", [3.0, 5.0])
@pytest.mark.parametrize("spacing", [0.5, 1.0])
def test_a_sphere_is_a_ball_of_millimetres_at_any_spacing(spacing: float, radius_mm: float) -> None:
    spheres = targets(sample(spacing=spacing), radius_mm)["spheres"]
    offsets = np.indices(SHAPE).transpose(1, 2, 3, 0) - np.array([8, 9, 10])
    expected = np.linalg.norm(offsets * spacing, axis=-1) <= radius_mm
    assert torch.equal(spheres, torch.from_numpy(expected).float())


def test_on_coarse_cells_a_sphere_has_its_volume_and_holds_the_cell_of_its_point() -> None:
    spheres = targets(sample(points=((7.5, 9.5, 11.5),), stride=2), 5.0)["spheres"]
    assert spheres.shape == (8, 10, 12)
    assert spheres.sum().item() * 8 == pytest.approx(4 / 3 * np.pi * 5**3, rel=0.15)
    tiny = targets(sample(points=((7.2, 9.9, 10.0),), stride=4), 0.1)["spheres"]
    assert tiny.nonzero().tolist() == [[1, 2, 2]]


def test_a_blob_is_1_at_its_point_and_falls_evenly_to_0_at_the_radius() -> None:
    blobs = targets(sample(), 5.0)["blobs"]
    assert blobs[8, 9, 10:16].tolist() == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])
    assert blobs[8, 9, 4].item() == 0
    two = targets(sample(points=((8, 9, 10), (8, 9, 14)), places=(0, 1), labels=(1, 1, 1)), 5.0)["blobs"]
    assert two[8, 9, 10:15].tolist() == pytest.approx([1, 0.8, 0.6, 0.8, 1])


def test_a_point_beside_the_patch_reaches_into_it_and_teaches_no_wrong_negatives() -> None:
    found = targets(sample(points=((-3.0, 9.0, 10.0),)))
    assert found["spheres"][:3, 9, 10].tolist() == [1, 1, 1]
    assert found["spheres"][3, 9, 10] == 0
    assert found["blobs"][0, 9, 10].item() == pytest.approx(0.4)
    assert found["spheres_known"]
    far = targets(sample(points=((-30.0, 9.0, 10.0),)))
    assert far["spheres"].max() == 0
    assert far["spheres_known"]  # there is nothing of it in the patch


@pytest.mark.parametrize(
    "one",
    [
        sample(points=(), places=()),  # positive, and nobody said where
        sample(labels=(1, 1, 1)),  # one of two places has no point
        sample(labels=(0, 0, 0)),  # a point in a negative
        sample(labels=(0, 1, 1)),  # at another place than the label says
        replace(sample(), findings=replace(sample().findings, points_complete=False)),
    ],
)
def test_points_that_do_not_say_all_there_is_leave_the_series_out(one: Sample) -> None:
    found = targets(one)
    assert not found["spheres_known"]
    assert not found["blobs_known"]


def test_a_negative_series_is_empty_and_known() -> None:
    found = targets(sample(points=(), places=(), labels=(0, 0, 0)))
    assert found["spheres"].max() == found["blobs"].max() == 0
    assert found["spheres_known"]


def test_vessels_are_one_more_than_the_place_in_each_cell_with_a_masked_voxel() -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[0:2, 0, 0], mask[0, 1, 0], mask[15, 19, 23] = 2, 1, 1
    fine = targets(sample(mask=mask))["vessels"]
    assert torch.equal(fine, torch.from_numpy(mask.astype(np.int64)))
    found = targets(sample(mask=mask, stride=2))
    assert found["vessels"].nonzero().tolist() == [[0, 0, 0], [7, 9, 11]]
    assert found["vessels"][0, 0, 0] == 2  # of three voxels, two
    assert found["vessels"][7, 9, 11] == 1
    assert found["vessels_known"]


def test_without_a_mask_nothing_is_known_of_vessels() -> None:
    found = targets(sample())
    assert (found["vessels"] == IGNORE).all()
    assert not found["vessels_known"]


def test_a_mirrored_input_has_mirrored_targets_with_the_sides_swapped() -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2, 3, 4] = 1
    one = sample(mask=mask)
    flipped = one.findings.mirrored([1, 0, 2])
    points = flipped.points_K3 * [-1, 1, 1] + [SHAPE[0] - 1, 0, 0]
    assert flipped.mask_XYZ is not None
    other = replace(one, findings=replace(flipped, points_K3=points, mask_XYZ=flipped.mask_XYZ.flip(0)))
    before, after = targets(one), targets(other)
    assert torch.equal(after["spheres"], before["spheres"].flip(0))
    assert torch.equal(after["blobs"], before["blobs"].flip(0))
    assert torch.equal(after["vessels"], torch.tensor([0, 2, 1])[before["vessels"]].flip(0))
    assert after["labels"].tolist() == [0, 1, 1]


def test_the_radius_is_the_tasks_and_reaches_all_that_is_made_of_points() -> None:
    task = make_task(AneurysmConfig(radius=8.0))
    labels = [0] * len(task.labels)
    labels[4] = labels[-1] = 1
    one = replace(sample(places=(4,), labels=labels), cells={"spheres": 1, "blobs": 1, "presence": 1, "territory": 1})
    found = task.targets(one)
    assert found["spheres"][8, 9, 10:].tolist() == [1] * 9 + [0] * 5
    assert found["blobs"][8, 9, 14].item() == pytest.approx(0.5)
    assert found["presence"][8, 9, 14].item() == pytest.approx(np.exp(-0.5))
    assert (found["territory"][8, 9] == 4).sum() == 17
    with pytest.raises(WrongUse, match=r"task\.radius"):
        task_configs()["aneurysm"](radius=0.0)
