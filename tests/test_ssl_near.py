"""The tables of what lies around visible blocks, against a search voxel by voxel."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from headspark.decoder.faces import BETWEEN, add_faces_of_blocks
from headspark.masking import draw_mask
from headspark.packed import MaskGeometry
from headspark.packed.layout import Triple
from headspark.packed.near import TAPS, RimTable, gather_dense, rim_of

CASES: list[tuple[tuple[int, Triple], float, Triple]] = [
    ((2, (3, 4, 2)), 0.6, (4, 4, 4)),
    ((3, (1, 2, 3)), 0.5, (6, 2, 3)),
    ((1, (4, 4, 4)), 0.9, (3, 2, 5)),
]


@pytest.fixture(params=CASES, ids=["cubes", "one block thick", "few visible"])
def case(request: pytest.FixtureRequest) -> tuple[MaskGeometry, MaskGeometry, Triple]:
    """A mask, some of its hidden blocks, and the edges of a block."""
    (batch, grid), ratio, block = request.param
    draws = torch.Generator().manual_seed(3)
    mask_Bdhw = draw_mask(batch, grid, ratio, draws)
    wanted_Bdhw = ~mask_Bdhw & (torch.rand(mask_Bdhw.shape, generator=draws) < 0.6)
    return MaskGeometry(mask_Bdhw), MaskGeometry(wanted_Bdhw), block


def packed_rows(geometry: MaskGeometry, block: Triple) -> Tensor:
    """Row of each voxel in the packed data, [B, D, H, W]; -1 where its block is not among them."""
    blocks = geometry.mask_Bdhw.nonzero().tolist()
    rows = torch.full((geometry.batch, *geometry.space(block)), -1)
    z, y, x = block
    for number, (sample, *cell) in enumerate(blocks):
        corner = [index * edge for index, edge in zip(cell, block, strict=True)]
        voxels = number * z * y * x + torch.arange(z * y * x).view(block)
        rows[sample, corner[0] : corner[0] + z, corner[1] : corner[1] + y, corner[2] : corner[2] + x] = voxels
    return rows


def searched(geometry: MaskGeometry, block: Triple) -> dict[int, list[int]]:
    """The rim and what it reads: by row of the dense volume, the 27 rows of packed data, -1 for none."""
    rows = packed_rows(geometry, block)
    framed = torch.nn.functional.pad(rows, (1, 1, 1, 1, 1, 1), value=-1)
    found = {}
    for place, (sample, z, y, x) in enumerate(itertools.product(*map(range, rows.shape))):
        taps = framed[sample, z : z + 3, y : y + 3, x : x + 3].flatten()
        if rows[sample, z, y, x] < 0 and (taps >= 0).any():
            found[place] = taps.tolist()
    return found


def told(rim: RimTable, geometry: MaskGeometry, block: Triple) -> dict[int, list[int]]:
    """The same of a table, whose rows beyond the packed data are of a block that is zero."""
    size = block[0] * block[1] * block[2]
    assert rim.rows.max() < (geometry.blocks + 1) * size
    rows = torch.where(rim.rows < geometry.blocks * size, rim.rows, -1)
    return dict(zip(rim.places.tolist(), rows.view(-1, TAPS).tolist(), strict=True))


def test_the_rim_is_what_touches_a_visible_voxel(case: tuple[MaskGeometry, MaskGeometry, Triple]) -> None:
    geometry, _, block = case
    assert told(rim_of(geometry, block), geometry, block) == searched(geometry, block)


def test_the_rim_within_some_blocks_is_named_by_their_rows(case: tuple[MaskGeometry, MaskGeometry, Triple]) -> None:
    geometry, wanted, block = case
    row_of = packed_rows(wanted, block).flatten().tolist()
    expected = {row_of[place]: taps for place, taps in searched(geometry, block).items() if row_of[place] >= 0}
    assert expected
    assert told(rim_of(geometry, block, wanted), geometry, block) == expected


@pytest.mark.parametrize("margin", [1, 2])
def test_windows_of_a_dense_map_are_zero_beyond_the_volume(
    case: tuple[MaskGeometry, MaskGeometry, Triple], margin: int
) -> None:
    geometry, _, block = case
    volume = torch.randn(geometry.batch, *geometry.space(block), 1)
    framed = torch.nn.functional.pad(volume, (0, 0, *[margin] * 6))
    windows = gather_dense(volume, geometry.dense_windows(block, margin), slice(1, geometry.blocks))
    for window, (sample, *cell) in zip(windows, geometry.mask_Bdhw.nonzero().tolist()[1:], strict=True):
        z, y, x = (
            slice(index * edge, (index + 1) * edge + 2 * margin) for index, edge in zip(cell, block, strict=True)
        )
        assert torch.equal(window, framed[sample, z, y, x])


def test_voxels_of_blocks_know_the_faces_of_the_volume(case: tuple[MaskGeometry, MaskGeometry, Triple]) -> None:
    _, wanted, block = case
    dense = torch.full((wanted.batch, *wanted.space(block), 1), float(BETWEEN))
    for place in itertools.product(range(3), repeat=3):
        ends = [{0: slice(0, 1), 1: slice(1, -1), 2: slice(-1, None)}[one] for one in place]
        dense[(slice(None), *ends)] = float(9 * place[0] + 3 * place[1] + place[2])
    rows = torch.zeros(wanted.blocks * block[0] * block[1] * block[2], 1)
    add_faces_of_blocks(rows, torch.arange(27.0).view(1, 3, 3, 3), wanted, block)
    assert torch.equal(rows, dense.view(-1, 1)[wanted.voxel_rows(block)])
