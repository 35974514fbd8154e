"""Volumes larger than the patch: where tiles lie, what they see, and how their answers become one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.sliding import sliding_maps, tile_starts, tile_steps

PATCH = (16, 16, 16)


@pytest.mark.parametrize(
    ("shape", "overlap", "starts"),
    [
        ((16, 16, 16), 0.25, [(0, 0, 0)]),
        ((10, 16, 3), 0.25, [(0, 0, 0)]),
        ((16, 16, 17), 0.25, [(0, 0, 0), (0, 0, 1)]),
        ((32, 16, 32), 0.0, [(0, 0, 0), (0, 0, 16), (16, 0, 0), (16, 0, 16)]),
        ((16, 40, 16), 0.25, [(0, 0, 0), (0, 12, 0), (0, 24, 0)]),
        ((16, 16, 36), 0.5, [(0, 0, 0), (0, 0, 8), (0, 0, 16), (0, 0, 20)]),
    ],
)
def test_tiles_cover_a_volume_in_order_and_the_last_ends_with_it(
    shape: tuple[int, ...], overlap: float, starts: list[tuple[int, ...]]
) -> None:
    assert tile_starts(shape, PATCH, overlap) == starts


@pytest.mark.parametrize(("overlap", "stride", "step"), [(0.25, 1, 12), (0.25, 8, 8), (0.9, 8, 8), (0.99, 1, 1)])
def test_neighbours_share_at_least_what_was_asked_for(overlap: float, stride: int, step: int) -> None:
    assert tile_steps((16,), overlap, stride) == (step,)


class Cells:
    """Means over cells of three sizes, of which each is the same in any tile that holds the cell whole."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        self.seen.append(tuple(x.shape))
        fine = torch.cat([x, 3 * x], dim=1)
        coarse, middle = F.avg_pool3d(x, 4)[:, 0], F.avg_pool3d(fine, 2)
        return {"coarse": coarse, "middle": middle, "fine": fine, "labels": x.mean((2, 3, 4))}


@pytest.mark.parametrize("at_once", [1, 3])
def test_maps_of_all_sizes_are_stitched_to_those_of_the_whole(at_once: int) -> None:
    x = torch.randn(1, 1, 40, 16, 24, generator=torch.Generator().manual_seed(0))
    network = Cells()
    maps = sliding_maps(network, x, PATCH, 0.25, stride=4, at_once=at_once)
    expected = Cells()(x)
    assert set(maps) == {"coarse", "middle", "fine"}
    for name, found in maps.items():
        torch.testing.assert_close(found, expected[name], msg=name)
    assert sum(shape[0] for shape in network.seen) == 3 * 2
    assert {shape[2:] for shape in network.seen} == {PATCH}


def test_a_volume_of_odd_size_has_cells_to_its_end_and_no_more() -> None:
    x = torch.arange(18.0).expand(1, 1, 5, 30, 18).contiguous()
    maps = sliding_maps(Cells(), x, PATCH, 0.5, stride=4)
    assert {name: tuple(found.shape) for name, found in maps.items()} == {
        "coarse": (1, 2, 8, 5), "middle": (1, 2, 3, 15, 9), "fine": (1, 2, 5, 30, 18),
    }  # fmt: skip
    torch.testing.assert_close(maps["fine"][:, :1], x)
    # Past the end the last plane goes on: (16 + 17 + 17 + 17) / 4.
    torch.testing.assert_close(maps["coarse"][0, 0, 0], torch.tensor([1.5, 5.5, 9.5, 13.5, 16.75]))


def test_where_tiles_overlap_the_one_whose_middle_is_nearer_counts_more() -> None:
    def numbered(x: Tensor) -> dict[str, Tensor]:
        numbers.append(float(len(numbers)))
        return {"tile": torch.full_like(x, numbers[-1])}

    numbers: list[float] = []
    tile = sliding_maps(numbered, torch.zeros(1, 1, 16, 16, 24), PATCH, 0.5)["tile"][0, 0, 8, 8]
    assert tile[:8].tolist() == [0.0] * 8
    assert tile[16:].tolist() == [1.0] * 8
    assert (tile[8:16].diff() > 0).all()
    assert float(tile[8]) < 0.1
    assert float(tile[8:16].mean()) == pytest.approx(0.5)


def test_cells_that_would_not_coincide_are_refused() -> None:
    with pytest.raises(ValueError, match="middle: cells of"):
        sliding_maps(Cells(), torch.zeros(1, 1, 40, 16, 24), PATCH, 0.25)
    assert sliding_maps(Cells(), torch.zeros(1, 1, 16, 16, 16), PATCH, 0.25)["coarse"].shape == (1, 4, 4, 4)
