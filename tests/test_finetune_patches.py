"""Patches: exact voxels upright, swapped sides mirrored, points that move with the image, targets in their cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.augment import AugmentConfig, Variation, draw_pose, draw_variation, vary_intensity
from finetune.losses.cells import HeatLoss
from finetune.series import UPRIGHT, Case, Findings, Pose, Region, Sample, Spot
from finetune.targets import IGNORE, points_and_mask_targets
from finetune.views.box import BoxView
from finetune.views.posing import pose_values
from finetune.views.region import cut_region
from harmonize.errors import UserError
from harmonize.labels import LABELS, LOCATIONS, MASK_VALUES, MIRRORED
from harmonize.scan import ARBITRARY, HU
from harmonize.voxels.stored import StoredVolume

SHAPE = (21, 24, 30)
PATCH = (16, 16, 16)
LEFT_MCA, RIGHT_MCA = LOCATIONS.index("Left Middle Cerebral Artery"), LOCATIONS.index("Right Middle Cerebral Artery")
BLOB_MM = (-7.5, 6.0, 33.0)
"""A place inside the patch, left of the middle."""


def affine(spacing: float = 3.0) -> np.ndarray:
    matrix = np.diag([spacing, spacing, spacing, 1.0])
    matrix[:3, 3] = (-31.5, -33.0, -9.0)
    return matrix


def blob_volume(spacing: float = 3.0) -> StoredVolume:
    """Air with one bright voxel at `BLOB_MM`."""
    voxels = np.full(SHAPE, -1000, dtype=np.int16)
    index = tuple(np.rint(np.linalg.inv(affine(spacing)) @ (*BLOB_MM, 1))[:3].astype(int))
    voxels[index] = 1000
    return StoredVolume(stored_XYZ=voxels, affine=affine(spacing))


def blob_region(patch: tuple[int, int, int] = PATCH, *, spacing: float | None = None, mask: bool = True) -> Region:
    volume = blob_volume()
    vessels = np.where(volume.stored_XYZ > 0, MASK_VALUES[LEFT_MCA], 0).astype(np.uint8)
    labels = [int(label in (LOCATIONS[LEFT_MCA], LABELS[-1])) for label in LABELS]
    return cut_region(
        volume,
        patch,
        spacing=spacing,
        unit=HU,
        foreground_box=(0, SHAPE[0], 0, SHAPE[1], 0, SHAPE[2]),
        mask=StoredVolume(stored_XYZ=vessels, affine=volume.affine) if mask else None,
        mask_values=MASK_VALUES,
        case=case_of(labels),
    )


def case_of(labels: Sequence[int] = (), *, spot: bool = True) -> Case:
    spots = (Spot(label=LEFT_MCA, xyz_mm=BLOB_MM),) if spot else ()
    return Case(
        scan_id="1", subject="1", modality="CTA", unit=HU, image=Path(), mask=None, foreground_box=(),
        labels=tuple(labels), spots=spots,
    )  # fmt: skip


class Patch(NamedTuple):
    """A posed patch with what is known about it."""

    values_XYZ: Tensor
    findings: Findings
    spacing: tuple[float, float, float]


def pose_patch(region: Region, patch: tuple[int, int, int], pose: Pose = UPRIGHT) -> Patch:
    view = BoxView(patch, spacing=None, windows=("brain",), mask_values=MASK_VALUES, mirror=MIRRORED)
    return Patch(pose_values(region, patch, pose), view.findings(region, pose), region.spacing)


def targets_of(patch: Patch, stride: int = 4) -> dict[str, Tensor]:
    shape = tuple(patch.values_XYZ.shape)
    sample = Sample(
        findings=patch.findings, shape=shape, spacing=patch.spacing, cells={"presence": stride, "territory": stride}
    )
    return points_and_mask_targets(sample, places=len(LOCATIONS), any_label=len(LOCATIONS))


def cell_targets(patch: Patch) -> tuple[Tensor, Tensor]:
    targets = targets_of(patch)
    return targets["presence"], targets["territory"]


def is_located(patch: Patch) -> bool:
    return bool(targets_of(patch)["presence_known"])


def with_findings(region: Region, **changes: object) -> Region:
    return dataclasses.replace(region, findings=dataclasses.replace(region.findings, **changes))


def brightest(patch: Patch) -> np.ndarray:
    return np.array(np.unravel_index(int(patch.values_XYZ.argmax()), tuple(patch.values_XYZ.shape)))


def test_an_upright_patch_holds_the_voxels_of_the_corpus() -> None:
    noise = np.random.default_rng(0).integers(-1000, 2000, SHAPE).astype(np.int16)
    volume = StoredVolume(stored_XYZ=noise, slope=0.5, inter=3.0, affine=affine())
    region = cut_region(volume, PATCH, spacing=None, unit=ARBITRARY, foreground_box=(2, 20, 4, 22, 6, 20))
    patch = pose_patch(region, PATCH)
    corner = (3, 5, 5)
    inside = tuple(slice(c, c + n) for c, n in zip(corner, PATCH, strict=True))
    np.testing.assert_allclose(patch.values_XYZ.numpy(), noise[inside] * 0.5 + 3, atol=1e-2)


@pytest.mark.parametrize(("z0", "z1", "corner"), [(12, 20, 8), (0, 30, 7), (0, 60, 22), (0, 70, 29)])
def test_the_patch_is_centred_but_never_below_the_circle_of_willis(z0: int, z1: int, corner: int) -> None:
    voxels = np.random.default_rng(0).integers(-500, 500, (*SHAPE[:2], 70)).astype(np.int16)
    volume = StoredVolume(stored_XYZ=voxels, affine=affine())
    region = cut_region(volume, PATCH, spacing=None, unit=HU, foreground_box=(0, 21, 0, 24, z0, z1))
    expected = voxels[2:18, 4:20, corner : corner + 16]
    np.testing.assert_allclose(pose_patch(region, PATCH).values_XYZ.numpy(), expected, atol=1e-2)


def test_what_lies_outside_the_field_of_view_is_air_in_ct() -> None:
    region = cut_region(blob_volume(), (32, 32, 32), spacing=None, unit=HU, foreground_box=(0, 21, 0, 24, 0, 30))
    patch = pose_patch(region, (32, 32, 32))
    assert patch.values_XYZ.shape == (32, 32, 32)
    assert patch.values_XYZ[0, 0, 0] == -1024


@pytest.mark.parametrize("spacing", [None, 3.0, 4.0, 1.5])
def test_a_point_stays_on_its_voxel_at_any_spacing(spacing: float | None) -> None:
    patch = pose_patch(blob_region((48, 48, 48), spacing=spacing), (48, 48, 48))
    assert np.abs(brightest(patch) - patch.findings.points_K3[0]).max() <= 0.51


def test_a_mirrored_patch_is_the_flipped_one_with_all_sides_swapped() -> None:
    region = blob_region()
    upright, mirrored = pose_patch(region, PATCH), pose_patch(region, PATCH, Pose(linear=np.diag([-1.0, 1.0, 1.0])))
    np.testing.assert_allclose(mirrored.values_XYZ.numpy(), upright.values_XYZ.flip(0).numpy(), atol=1e-2)
    assert mirrored.findings.places_K.tolist() == [RIGHT_MCA]
    assert [LABELS[i] for i in np.flatnonzero(mirrored.findings.labels_L)] == [LOCATIONS[RIGHT_MCA], LABELS[-1]]
    assert mirrored.findings.mask_XYZ is not None
    assert upright.findings.mask_XYZ is not None
    assert set(np.unique(mirrored.findings.mask_XYZ).tolist()) == {0, RIGHT_MCA + 1}
    assert np.array_equal(mirrored.findings.mask_XYZ > 0, upright.findings.mask_XYZ.flip(0) > 0)
    np.testing.assert_allclose(mirrored.findings.points_K3[0, 0], PATCH[0] - 1 - upright.findings.points_K3[0, 0])


def test_swapping_sides_twice_changes_nothing() -> None:
    mirrored = np.array(MIRRORED)
    assert mirrored[mirrored].tolist() == list(range(14))
    for index, label in enumerate(LABELS):
        other = LABELS[MIRRORED[index]]
        assert label.replace("Left", "?").replace("Right", "?") == other.replace("Left", "?").replace("Right", "?")
        assert ("Left" in label) == ("Right" in other)


@pytest.mark.parametrize("seed", range(6))
def test_points_move_with_the_image_in_any_pose(seed: int) -> None:
    size = (28, 28, 32)
    augment = AugmentConfig(rotate=25, scale=0.1, shift=6)
    pose = draw_pose(augment, np.random.default_rng(seed))
    volume = blob_volume()
    smooth = volume.stored_XYZ.astype(np.float32)
    for axis in range(3):
        smooth = (np.roll(smooth, 1, axis) + 2 * smooth + np.roll(smooth, -1, axis)) / 4
    moved = StoredVolume(stored_XYZ=smooth.astype(np.int16), affine=volume.affine)
    region = cut_region(
        moved,
        size,
        spacing=None,
        unit=HU,
        foreground_box=(0, 21, 0, 24, 0, 30),
        case=case_of([0] * len(LABELS)),
    )
    patch = pose_patch(region, size, pose)
    assert np.linalg.norm(brightest(patch) - patch.findings.points_K3[0]) < 1.1
    assert patch.findings.places_K[0] == (RIGHT_MCA if pose.mirrored else LEFT_MCA)


def test_baked_windows_are_refused_with_what_to_do() -> None:
    volume = StoredVolume(stored_XYZ=np.zeros((*SHAPE, 3), np.int16), affine=affine())
    with pytest.raises(UserError, match="bake-windows"):
        cut_region(volume, PATCH, spacing=None, unit="window", foreground_box=(0, 21, 0, 24, 0, 30))


def test_the_cell_of_a_point_is_hot_and_belongs_to_its_place() -> None:
    patch = pose_patch(blob_region(mask=False), PATCH)
    heat, territory = cell_targets(patch)
    assert heat.shape == territory.shape == (4, 4, 4)
    cell = tuple((patch.findings.points_K3[0] // 4).astype(int))
    assert heat[cell] == 1
    assert (heat == 1).sum() == 1
    assert territory[cell] == LEFT_MCA
    assert set(territory.unique().tolist()) == {IGNORE, LEFT_MCA}


def test_vessels_teach_the_place_of_cells_and_points_overrule_them() -> None:
    patch = pose_patch(blob_region(), PATCH)
    assert patch.findings.mask_XYZ is not None
    patch.findings.mask_XYZ[:] = 0
    patch.findings.mask_XYZ[0:2, 0, 0] = RIGHT_MCA + 1
    patch.findings.mask_XYZ[2, 0, 0] = LEFT_MCA + 1
    cell = tuple((patch.findings.points_K3[0] // 4).astype(int))
    patch.findings.mask_XYZ[tuple(4 * i for i in cell)] = RIGHT_MCA + 1
    _, territory = cell_targets(patch)
    assert territory[0, 0, 0] == RIGHT_MCA
    assert territory[cell] == LEFT_MCA
    assert (territory == IGNORE).sum() > 50


def test_a_point_outside_the_patch_leaves_no_heat() -> None:
    patch = pose_patch(blob_region(), PATCH, Pose(shift=(200.0, 0.0, 0.0)))
    heat, _ = cell_targets(patch)
    assert heat.max() == 0


def test_a_positive_series_without_a_point_for_each_place_is_not_located() -> None:
    located = pose_patch(blob_region(), PATCH)
    assert is_located(located)
    located.findings.labels_L[0] = 1
    assert not is_located(located)


def test_a_patch_whose_aneurysm_lies_outside_teaches_no_empty_cells() -> None:
    region = blob_region()
    spacing = np.array(region.spacing)
    inside = pose_patch(region, PATCH)
    voxels_to_edge = PATCH[0] - 1 - inside.findings.points_K3[0, 0]
    for voxels, located in ((voxels_to_edge - 0.1, True), (voxels_to_edge + 0.6, False), (40.0, False)):
        # The pose says where the patch goes, so the point goes the other way.
        moved = pose_patch(region, PATCH, Pose(shift=(-float(voxels * spacing[0]), 0.0, 0.0)))
        assert is_located(moved) == located, voxels
        heat, _ = cell_targets(moved)
        assert bool((heat == 1).any()) == located
    negative = with_findings(region, points_K3=np.empty((0, 3)), places_K=np.empty(0, np.int64))
    negative.findings.labels_L[:] = 0
    assert is_located(pose_patch(negative, PATCH, Pose(shift=(90.0, 0.0, 0.0))))


def test_of_two_aneurysms_one_outside_leaves_the_heat_map_out() -> None:
    region = blob_region()
    both = with_findings(
        region,
        points_K3=np.concatenate([region.findings.points_K3, [[-9.0, 4.0, 4.0]]]),
        places_K=np.array([LEFT_MCA, LEFT_MCA]),
    )
    assert is_located(pose_patch(region, PATCH))
    assert not is_located(pose_patch(both, PATCH))


@pytest.mark.parametrize("seed", range(8))
def test_in_any_pose_a_located_positive_patch_has_a_centre_for_each_point(seed: int) -> None:
    generator = np.random.default_rng(seed)
    config = AugmentConfig(shift=30.0, rotate=30.0, scale=0.3)
    region = blob_region()
    for _ in range(20):
        patch = pose_patch(region, PATCH, draw_pose(config, generator))
        heat, _ = cell_targets(patch)
        assert is_located(patch) == bool((heat == 1).any())


def test_a_lost_or_contradicting_localizer_leaves_the_heat_map_out() -> None:
    region = blob_region()
    assert not is_located(pose_patch(with_findings(region, points_complete=False), PATCH))
    denied = with_findings(region, places_K=np.array([RIGHT_MCA]))
    assert not is_located(pose_patch(denied, PATCH))


def test_what_is_not_located_moves_no_loss_of_the_heat_map() -> None:
    presence = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    heat = torch.zeros(2, 4, 4, 4)
    loss = HeatLoss()(presence, heat, torch.tensor([False, True]))
    loss.backward()
    assert presence.grad is not None
    assert presence.grad[0].abs().max() == 0
    assert presence.grad[1].abs().max() > 0


@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0), (3.0, -6.0, 9.0), (45.0, 0.0, 0.0)])
def test_a_pose_that_shifts_by_whole_voxels_gives_the_voxels_themselves(shift: tuple[float, float, float]) -> None:
    region = blob_region()
    sliced = pose_patch(region, PATCH, Pose(shift=shift))
    nudged = pose_patch(region, PATCH, Pose(shift=(shift[0] + 1e-9, *shift[1:])))  # so that it is interpolated
    torch.testing.assert_close(sliced.values_XYZ, nudged.values_XYZ, atol=2e-2, rtol=0)
    assert set(sliced.values_XYZ.unique().tolist()) <= {-1024.0, -1000.0, 1000.0}
    assert np.array_equal(sliced.findings.mask_XYZ, nudged.findings.mask_XYZ)
    np.testing.assert_allclose(sliced.findings.points_K3, nudged.findings.points_K3, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_an_elastic_deformation_moves_points_with_what_they_mark(seed: int) -> None:
    """A ball is marked at its centre; after the deformation its centre of mass is where the point went."""
    size, spacing = 64, 2.0
    line = np.arange(size)
    centre = np.array([30.0, 33.0, 28.0])
    index_XYZ3 = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1)
    distance = np.linalg.norm(index_XYZ3 - centre, axis=-1)
    ball = np.where(distance < 3, 1000, 0).astype(np.int16)
    region = Region(
        stored_XYZ=torch.from_numpy(ball), mask_XYZ=None, slope=1.0, inter=0.0, spacing=(spacing,) * 3, fill=0.0,
        unit=ARBITRARY, start=(0, 0, 0),
        findings=Findings(
            points_K3=centre[None], places_K=np.array([0]), mask_XYZ=None, labels_L=np.zeros(14, np.int64)
        ),
    )  # fmt: skip
    config = AugmentConfig(elastic=5.0, shift=4.0, rotate=15.0)
    generator, more = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    pose = draw_pose(config, generator, extent_mm=(size * spacing,) * 3, more=more)
    assert pose.elastic_mm_3DHW is not None
    assert np.abs(pose.elastic_mm_3DHW).max() <= 5
    patch = pose_patch(region, (size,) * 3, pose)
    weights = patch.values_XYZ.double()
    found = [
        float((weights.sum(dim=[n for n in range(3) if n != axis]) * torch.arange(size)).sum() / weights.sum())
        for axis in range(3)
    ]
    rigid = pose_patch(region, (size,) * 3, dataclasses.replace(pose, elastic_mm_3DHW=None)).findings.points_K3[0]
    assert np.abs(np.array(found) - patch.findings.points_K3[0]).max() < 0.35
    assert np.abs(rigid - patch.findings.points_K3[0]).max() > 0.01, "the deformation moved the point"


def test_each_change_of_intensity_does_what_it_says() -> None:
    ramp = torch.linspace(-1, 1, 16).expand(2, 16, 16, 16).contiguous()
    plain = Variation(contrast=1.0, brightness=0.0, noise=0.0, noise_source=0)
    assert torch.equal(vary_intensity(ramp, plain), ramp)
    darker = vary_intensity(ramp, dataclasses.replace(plain, gamma=2.0))
    torch.testing.assert_close(darker, ((ramp + 1) / 2) ** 2 * 2 - 1)
    turned = vary_intensity(ramp, dataclasses.replace(plain, contrast=1.5, brightness=0.25, inverted=True))
    torch.testing.assert_close(turned, -1.5 * ramp + 0.25)
    spike = torch.zeros(1, 16, 16, 16)
    spike[0, 8, 8, 8] = 3.0
    moved = vary_intensity(spike, dataclasses.replace(plain, blur=3, blur_axis=1))
    assert moved[0, 8, 7:10, 8].tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert moved.sum().item() == pytest.approx(3.0)
    coarse = vary_intensity(spike, dataclasses.replace(plain, low_resolution=2.0))
    assert coarse.max() < 3 / 2
    assert coarse.mean().item() == pytest.approx(spike.mean().item(), rel=1e-4)
    noisy = [
        vary_intensity(ramp, dataclasses.replace(plain, noise=0.1, noise_source=seed)) - ramp for seed in (1, 1, 2)
    ]
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2])
    assert noisy[0].std().item() == pytest.approx(0.1, rel=0.05)


def test_what_is_drawn_stays_within_what_the_recipe_says() -> None:
    config = AugmentConfig(gamma=0.5, blur=4.0, low_resolution=1.0, elastic=3.0)
    drawn = [draw_variation(config, np.random.default_rng(n), np.random.default_rng([n, 1])) for n in range(300)]
    assert 1 / 1.5 <= min(one.gamma for one in drawn) < 0.7 < 1.45 < max(one.gamma for one in drawn) <= 1.5
    assert {one.blur for one in drawn} == {1, 2, 3, 4, 5}
    assert {one.blur_axis for one in drawn} == {0, 1, 2}
    assert 1 <= min(one.low_resolution for one in drawn) < 1.1 < 1.9 < max(one.low_resolution for one in drawn) <= 2
    assert not any(one.inverted for one in drawn)
    turning = AugmentConfig(gamma=0.5, invert=0.25)
    turned = [draw_variation(turning, np.random.default_rng(n), np.random.default_rng([n, 1])) for n in range(300)]
    assert 0.2 < np.mean([one.inverted for one in turned]) < 0.3
    assert [one.gamma for one in turned] == [one.gamma for one in drawn], "what is drawn for other changes stays"
    for name in ("elastic", "gamma", "blur", "low_resolution", "invert"):
        with pytest.raises(UserError, match=rf"augment\.{name} -1"):
            AugmentConfig(**{name: -1.0})
