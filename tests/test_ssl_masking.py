"""Masks: how many blocks, which, and what that means at other scales."""

from __future__ import annotations

import pytest
import torch

from harmonize.errors import UserError
from headspark.masking import MaskConfig, draw_mask, expand_cells, mask_grid


@pytest.mark.parametrize(("ratio", "count"), [(0.75, 16), (0.6, 26), (0.9, 6), (0.999, 1), (0.001, 63)])
def test_every_sample_sees_the_same_number_of_blocks(ratio: float, count: int) -> None:
    visible = draw_mask(5, (4, 4, 4), ratio, torch.Generator().manual_seed(0))
    assert visible.flatten(1).sum(1).tolist() == [count] * 5


def test_the_same_seed_gives_the_same_masks_and_samples_differ() -> None:
    first, again, other = (draw_mask(2, (4, 4, 4), 0.75, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_a_ratio_between_bounds_is_drawn_anew_each_time() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = [1 - draw_mask(1, (8, 8, 8), (0.6, 0.9), generator).float().mean().item() for _ in range(200)]
    assert 0.59 < min(shares) < 0.63
    assert 0.87 < max(shares) < 0.91
    assert 0.72 < sum(shares) / len(shares) < 0.78


def test_every_block_is_hidden_equally_often() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = draw_mask(4000, (2, 3, 2), 0.75, generator).float().mean(0)
    assert seen.min() > 0.22
    assert seen.max() < 0.28


def test_a_mask_expands_to_finer_grids_and_joins_to_coarser_ones() -> None:
    visible = torch.zeros(1, 2, 2, 4, dtype=torch.bool)
    visible[0, 0, 1, 2] = True
    fine = expand_cells(visible, (4, 4, 8))
    assert fine.shape == (1, 1, 4, 4, 8)
    assert fine.sum() == 8
    assert fine[0, 0, 1, 3, 5]
    assert expand_cells(visible, (1, 1, 2)).flatten().tolist() == [False, True]
    with pytest.raises(ValueError, match="does not fit"):
        expand_cells(visible, (3, 2, 4))


@pytest.mark.parametrize("ratio", [0.0, 1.0, (0.9, 0.6), (0.5, 1.0), -0.1])
def test_an_impossible_ratio_is_refused(ratio: float | tuple[float, float]) -> None:
    with pytest.raises(UserError, match=r"mask\.ratio"):
        MaskConfig(ratio=ratio)


def test_a_patch_that_blocks_do_not_tile_is_refused() -> None:
    assert mask_grid((96, 64, 32), 16) == (6, 4, 2)
    with pytest.raises(UserError, match="not tiled"):
        mask_grid((96, 64, 40), 16)
    with pytest.raises(UserError, match="nothing to hide"):
        draw_mask(1, (1, 1, 1), 0.75)
