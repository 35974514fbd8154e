"""The voxels that a box needs give what all of them would, and a thinned scan lies where the scan does."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from harmonize.pipeline.source import Source
from harmonize.voxels.grids import covering_grid, part_of, target_grid

SHAPE = (60, 50, 30)
SPACINGS = (0.8, 0.7, 2.0)
OFFSETS = np.cumsum(np.where(np.arange(SHAPE[2]) % 7 == 3, 1.8, 1.0))
TURNS = {"aligned": (0, 0, 0), "oblique": (9, -4, 12), "sagittal": (0, 90, 0), "turned round": (180, 0, 0)}


def affine_of(turn: tuple[float, ...]) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.diag(SPACINGS)
    affine[:3, 3] = (-20, 13, 5)
    return affine


def source_of(turn: str, offsets: NDArray[np.float64] | None) -> Source:
    voxels = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    affine = affine_of(TURNS[turn])
    return Source(voxels_XYZ=voxels, affine=affine, slice_offsets=offsets, outside=-9.0, decisions=())


@pytest.mark.parametrize("offsets", [None, OFFSETS], ids=["even", "uneven"])
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("spacing", [0.5, 1.5, 3.0])
def test_the_voxels_around_a_box_give_its_values_as_all_of_them_do(
    spacing: float, turn: str, offsets: NDArray[np.float64] | None
) -> None:
    source = source_of(turn, offsets)
    whole = covering_grid(SHAPE, source.affine, (spacing,) * 3, offsets)
    count = np.array(whole.shape)
    for low, high in ((count * 2 // 5, count * 3 // 5), (count * 0, count // 4 + 1), (count * 4 // 5, count)):
        box = part_of(whole, low, high)
        around = source.around(box)
        np.testing.assert_allclose(around.on(box), source.on(box), atol=1e-5)
        if spacing < 1:
            assert around.voxels_XYZ.size < 0.3 * source.voxels_XYZ.size


@pytest.mark.parametrize("offsets", [None, OFFSETS], ids=["even", "uneven"])
@pytest.mark.parametrize("turn", TURNS)
def test_a_thinned_scan_lies_where_the_scan_does(turn: str, offsets: NDArray[np.float64] | None) -> None:
    affine = affine_of(TURNS[turn])
    i, j, k = np.meshgrid(*(np.arange(count, dtype=float) for count in SHAPE), indexing="ij")
    x_mm = np.tensordot(affine[0, :3], np.stack((i, j, k if offsets is None else offsets[k.astype(int)])), axes=1)
    source = Source(
        voxels_XYZ=(x_mm + affine[0, 3]).astype(np.float32),
        affine=affine, slice_offsets=offsets, outside=np.nan, decisions=(),
    )  # fmt: skip
    grid = target_grid(SHAPE, affine, (4.0,) * 3, offsets)
    thinned = source.thinned(grid.spacing)
    assert thinned.voxels_XYZ.shape == (30, 25, 30)
    truth = grid.affine[0, 3] + grid.spacing[0] * np.arange(grid.shape[0])
    error = np.abs(thinned.on(grid) - truth[:, None, None])
    assert np.isfinite(error).mean() > 0.4
    # At the border of the field of view a smoothed ramp is flatter.
    assert np.nanquantile(error, 0.5) < 0.01
