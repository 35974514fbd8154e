"""Every scan lands on true world coordinates, whatever its affine and slice positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from harmonize.errors import Reason, Rejection
from harmonize.voxels.grids import Grid, check_geometry, target_grid
from harmonize.voxels.kernels import axis_weights
from harmonize.voxels.spatial import resample, resample_labels

WORLD_TOLERANCE_MM = 0.05
NOWHERE = -1e6


def world_of(shape: tuple[int, int, int], affine: NDArray[np.float64], offsets: NDArray[np.float64] | None = None):
    """The world coordinates of every voxel, (3, X, Y, Z) in mm."""
    i, j, k = np.meshgrid(*(np.arange(size, dtype=float) for size in shape), indexing="ij")
    t = k if offsets is None else offsets[k.astype(int)]
    return np.einsum("ab,bxyz->axyz", affine[:3, :3], np.stack((i, j, t))) + affine[:3, 3, None, None, None]


def world_errors(
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    spacing: tuple[float, float, float],
    offsets: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Errors in mm of voxels that were replaced by their own x, y and z, resampled; one value an inside voxel."""
    grid = target_grid(shape, affine, spacing, offsets)
    truth = world_of(grid.shape, grid.affine)
    source = world_of(shape, affine, offsets)
    # Inside: no part of the kernel sticks out, which is three coarse voxels from the border.
    into = np.linalg.inv(affine)
    index = np.einsum("ab,bxyz->axyz", into[:3, :3], truth) + into[:3, 3, None, None, None]
    step = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    margin = 2.5 * max(spacing) / step
    first = np.array([0, 0, 0 if offsets is None else offsets[0]]) + margin
    last = np.array([shape[0] - 1, shape[1] - 1, shape[2] - 1 if offsets is None else offsets[-1]]) - margin
    inside = ((index >= first[:, None, None, None]) & (index <= last[:, None, None, None])).all(axis=0)
    errors = [
        resample(source[axis].astype(np.float32), affine, grid, slice_offsets=offsets, outside=NOWHERE)[inside]
        - truth[axis][inside]
        for axis in range(3)
    ]
    return np.abs(np.stack(errors)).max(axis=0)


def affine_of(rotation: Rotation, spacing: NDArray[np.float64], shear: float, origin: NDArray[np.float64]):
    matrix = rotation.as_matrix() @ np.array([[1, 0, 0], [0, 1, shear], [0, 0, 1]]) @ np.diag(spacing)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, origin
    return affine


spacings = st.tuples(*[st.floats(0.4, 3.0)] * 3).map(np.array)
origins = st.tuples(*[st.floats(-300, 300)] * 3).map(np.array)
targets = st.sampled_from([(1.0, 1.0, 1.0), (0.5, 0.5, 1.0), (2.0, 2.0, 2.0), (1.3, 0.7, 2.9)])
gap_lists = st.lists(st.floats(0.3, 4.0), min_size=29, max_size=29)
flips = st.permutations(range(3)).flatmap(
    lambda order: st.tuples(st.just(order), st.tuples(*[st.sampled_from((-1.0, 1.0))] * 3))
)


@settings(max_examples=15, deadline=None)
@given(angles=st.tuples(*[st.floats(-180, 180)] * 3), spacing=spacings, origin=origins, target=targets)
def test_a_rotated_scan_lands_on_true_coordinates(angles, spacing, origin, target) -> None:
    affine = affine_of(Rotation.from_euler("xyz", angles, degrees=True), spacing, 0.0, origin)
    errors = world_errors((36, 32, 30), affine, target)
    assert errors.size == 0 or np.percentile(errors, 99.9) < WORLD_TOLERANCE_MM


@settings(max_examples=15, deadline=None)
@given(tilt=st.floats(-30, 30), spacing=spacings, origin=origins, target=targets)
def test_a_tilted_gantry_lands_on_true_coordinates(tilt, spacing, origin, target) -> None:
    affine = affine_of(Rotation.identity(), spacing, np.tan(np.radians(tilt)), origin)
    errors = world_errors((36, 32, 30), affine, target)
    assert errors.size == 0 or np.percentile(errors, 99.9) < WORLD_TOLERANCE_MM


@settings(max_examples=15, deadline=None)
@given(order=flips, spacing=spacings, origin=origins, target=targets)
def test_any_voxel_order_lands_on_true_coordinates(order, spacing, origin, target) -> None:
    axes, signs = order
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) * np.array(signs))[:, axes] @ np.diag(spacing)
    affine[:3, 3] = origin
    errors = world_errors((36, 32, 30), affine, target)
    assert errors.size == 0 or np.percentile(errors, 99.9) < WORLD_TOLERANCE_MM


@settings(max_examples=15, deadline=None)
@given(gaps=gap_lists, tilt=st.sampled_from([0.0, 12.0, 18.5]), spacing=spacings, target=targets)
def test_uneven_slices_land_on_true_coordinates(gaps, tilt, spacing, target) -> None:
    offsets = np.concatenate(([0.0], np.cumsum(gaps)))
    spacing = np.array([spacing[0], spacing[1], 1.0])
    affine = affine_of(Rotation.identity(), spacing, np.tan(np.radians(tilt)), np.array([5.0, -60.0, 11.0]))
    errors = world_errors((36, 32, 30), affine, target, offsets)
    assert errors.size == 0 or np.percentile(errors, 99.9) < WORLD_TOLERANCE_MM


def test_the_inside_of_a_head_sized_scan_is_tested_and_not_empty() -> None:
    affine = affine_of(Rotation.from_euler("x", 18.5, degrees=True), np.array([0.9, 0.9, 1.2]), 0.2, np.zeros(3))
    errors = world_errors((60, 60, 50), affine, (1.0, 1.0, 1.0))
    assert errors.size > 50_000
    assert np.percentile(errors, 99.9) < WORLD_TOLERANCE_MM


def test_a_scan_that_is_ras_at_the_target_spacing_is_copied_bit_for_bit() -> None:
    voxels = np.random.default_rng(0).integers(-1024, 3000, (20, 21, 22)).astype(np.int16)
    affine = np.eye(4)
    affine[:3, 3] = (-12.25, 3.5, 7.0)
    grid = target_grid(voxels.shape, affine, (1.0, 1.0, 1.0))
    found = resample(voxels, affine, grid)
    assert found.dtype == np.int16
    assert np.array_equal(found, voxels)
    assert np.array_equal(grid.affine, affine)


def test_a_flipped_scan_at_the_target_spacing_is_only_reordered() -> None:
    voxels = np.random.default_rng(0).integers(0, 99, (5, 6, 7)).astype(np.uint8)
    affine = np.array([[0, -1.0, 0, 4], [0, 0, 1, 0], [-1, 0, 0, 9], [0, 0, 0, 1]])
    grid = target_grid(voxels.shape, affine, (1.0, 1.0, 1.0))
    found = resample(voxels, affine, grid)
    assert found.dtype == np.uint8
    assert np.array_equal(found, voxels.transpose(1, 2, 0)[::-1, :, ::-1])


@settings(max_examples=15, deadline=None)
@given(angles=st.tuples(*[st.floats(-180, 180)] * 3), spacing=spacings, origin=origins, target=targets)
def test_the_grid_covers_the_whole_field_of_view(angles, spacing, origin, target) -> None:
    shape = (9, 8, 7)
    affine = affine_of(Rotation.from_euler("xyz", angles, degrees=True), spacing, 0.3, origin)
    grid = target_grid(shape, affine, target)
    ends = [(-0.5, size - 0.5) for size in shape]
    corners = np.array([[i, j, k, 1] for i in ends[0] for j in ends[1] for k in ends[2]]) @ affine.T
    low = grid.affine[:3, 3] - np.array(target) / 2
    high = low + np.array(target) * grid.shape
    slack = 2e-3 * max(target)
    assert (corners[:, :3].min(axis=0) >= low - slack).all()
    assert (corners[:, :3].max(axis=0) <= high + slack).all()


def test_fine_detail_is_filtered_before_it_can_alias() -> None:
    spacing, wave_mm = 0.45, 1 / 0.9
    x = np.arange(400) * spacing
    voxels = np.broadcast_to(100 * np.sin(2 * np.pi * x / wave_mm)[:, None, None], (400, 8, 8)).astype(np.float32)
    affine = np.diag([spacing, 1.0, 1.0, 1.0])
    found = resample(voxels, affine, target_grid(voxels.shape, affine, (1.0, 1.0, 1.0)))
    assert np.abs(found[10:-10]).max() < 10


def test_an_oblique_scan_is_filtered_too() -> None:
    spacing, wave_mm = 0.45, 1 / 0.9
    x = np.arange(200) * spacing
    voxels = np.broadcast_to(100 * np.sin(2 * np.pi * x / wave_mm)[:, None, None], (200, 40, 40)).astype(np.float32)
    affine = affine_of(Rotation.from_euler("z", 10, degrees=True), np.array([spacing, 1, 1]), 0.0, np.zeros(3))
    grid = target_grid(voxels.shape, affine, (1.0, 1.0, 1.0))
    found = resample(voxels, affine, grid, outside=0.0)
    assert np.abs(found[20:-20, 10:-10, 10:-10]).max() < 15


def test_outside_the_field_of_view_stands_the_given_value() -> None:
    affine = affine_of(Rotation.from_euler("z", 45, degrees=True), np.ones(3), 0.0, np.zeros(3))
    voxels = np.full((20, 20, 10), 50, dtype=np.int16)
    found = resample(voxels, affine, target_grid(voxels.shape, affine, (1.0, 1.0, 1.0)), outside=-1024)
    assert found[0, 0, 5] == -1024
    assert found[found.shape[0] // 2, found.shape[1] // 2, 5] == pytest.approx(50)


@settings(max_examples=60, deadline=None)
@given(
    order=flips,
    spacing=spacings,
    origin=st.tuples(*[st.floats(-9, 9)] * 3),
    size=st.sampled_from([0.7, 1.0, 2.5]),
    gaps=st.none() | st.lists(st.floats(0.3, 4.0), min_size=5, max_size=5),
)
def test_aligned_or_not_nothing_is_made_up_beyond_the_field_of_view(order, spacing, origin, size, gaps) -> None:
    axes, signs = order
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) * np.array(signs))[:, axes] @ np.diag(spacing)
    affine[:3, 3] = origin
    offsets = None if gaps is None else np.concatenate(([0.0], np.cumsum(gaps)))
    grid = Grid(shape=(20, 21, 22), affine=np.diag([size, size, size, 1.0]))
    found = resample(np.full((8, 7, 6), 50, np.int16), affine, grid, slice_offsets=offsets, outside=-1024)
    index = np.einsum(
        "ab,bxyz->axyz",
        np.linalg.inv(affine)[:3, :3],
        world_of(grid.shape, grid.affine) - np.array(origin)[:, None, None, None],
    )
    first, last = np.full(3, -0.5), np.array([7.5, 6.5, 5.5])
    if offsets is not None:
        first[2], last[2] = -gaps[0] / 2, offsets[-1] + gaps[-1] / 2
    margin = 0.02 / spacing
    inside = ((index > (first + margin)[:, None, None, None]) & (index < (last - margin)[:, None, None, None])).all(0)
    beyond = ((index < (first - margin)[:, None, None, None]) | (index > (last + margin)[:, None, None, None])).any(0)
    assert found[inside] == pytest.approx(50, abs=1e-3)
    assert (found[beyond] == -1024).all()


def test_the_grid_of_a_scan_reaches_nowhere_beyond_it() -> None:
    voxels = np.full((9, 8, 7), 50, dtype=np.int16)
    for spacing in ((0.7, 1.3, 2.9), (40.0, 40.0, 40.0)):
        grid = target_grid(voxels.shape, np.diag([0.9, 1.1, 1.7, 1.0]), spacing)
        assert resample(voxels, np.diag([0.9, 1.1, 1.7, 1.0]), grid, outside=NOWHERE) == pytest.approx(50, abs=1e-3)


def test_labels_keep_their_values_and_their_place() -> None:
    labels = np.zeros((40, 40, 40), dtype=np.uint8)
    labels[10:20, 12:30, 5:9] = 7
    affine = np.diag([-0.5, -0.5, 0.8, 1.0])
    grid = target_grid(labels.shape, affine, (1.0, 1.0, 1.0))
    found = resample_labels(labels, affine, grid)
    assert set(np.unique(found)) == {0, 7}
    centre = np.argwhere(found == 7).mean(axis=0) @ grid.affine[:3, :3] + grid.affine[:3, 3]
    truth = np.argwhere(labels == 7).mean(axis=0) @ affine[:3, :3] + affine[:3, 3]
    assert np.abs(centre - truth).max() < 0.5


def test_labels_of_another_grid_land_where_the_image_is() -> None:
    affine = affine_of(
        Rotation.from_euler("xyz", (8, -5, 11), degrees=True), np.array([0.8, 0.8, 1.5]), 0.0, np.ones(3)
    )
    grid = Grid(shape=(60, 60, 60), affine=np.diag([1.0, 1.0, 1.0, 1.0]))
    labels = np.zeros((60, 60, 40), dtype=np.uint8)
    labels[20:32, 25:40, 10:16] = 3
    found = resample_labels(labels, affine, grid)
    truth = world_of(labels.shape, affine)[:, labels == 3].mean(axis=1)
    centre = np.argwhere(found == 3).mean(axis=0)
    assert set(np.unique(found)) == {0, 3}
    assert np.abs(centre - truth).max() < 0.5


def test_labels_beyond_their_own_field_of_view_are_background() -> None:
    grid = Grid(shape=(30, 10, 10), affine=np.eye(4))
    found = resample_labels(np.ones((10, 10, 10), dtype=np.uint8), np.eye(4), grid)
    assert found[:10].all()
    assert not found[10:].any()


@given(gaps=st.lists(st.floats(0.2, 5.0), min_size=1, max_size=40), start=st.floats(-3, 3), step=st.floats(0.3, 4.0))
def test_weights_of_an_axis_sum_to_one_and_are_not_negative(gaps, start, step) -> None:
    source = np.concatenate(([0.0], np.cumsum(gaps)))
    weights = axis_weights(source, start + step * np.arange(20), step)
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert (weights >= 0).all()


@pytest.mark.parametrize(
    ("affine", "offsets"),
    [
        (np.diag([0.0, 1, 1, 1]), None),
        (np.diag([np.nan, 1, 1, 1]), None),
        (np.array([[1, 1, 0, 0], [0, 1e-3, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), None),
        (np.diag([500.0, 1, 1, 1]), None),
        (np.eye(4), np.array([0.0, 2.0, 1.0, 3.0])),
        (np.eye(4), np.array([0.0, 1.0, np.nan, 3.0])),
    ],
)
def test_an_impossible_geometry_is_refused(affine, offsets) -> None:
    with pytest.raises(Rejection) as caught:
        check_geometry((4, 4, 4), affine, offsets)
    assert caught.value.reason == Reason.BAD_GEOMETRY


def test_an_absurd_target_grid_is_refused() -> None:
    with pytest.raises(Rejection) as caught:
        target_grid((900, 900, 900), np.diag([2.0, 2, 2, 1]), (0.5, 0.5, 0.5))
    assert caught.value.reason == Reason.TOO_LARGE
