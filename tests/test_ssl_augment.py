"""Variations of a batch: rotations about the centre, intensities, nothing scored that was made up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headspark.data.augment import AugmentConfig, draw_variation, numbers_of, turn, vary_intensity, within


def matrix(quarter_turns: int = 0, scale: float = 1.0) -> torch.Tensor:
    angle = quarter_turns * np.pi / 2
    about_z = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    return torch.tensor(about_z).div(scale)[None]


def test_no_turn_changes_nothing() -> None:
    x = torch.rand(1, 2, 8, 8, 8)
    assert torch.allclose(turn(x, matrix(), size=8, mode="bilinear"), x, atol=1e-6)


def test_a_quarter_turn_is_numpys() -> None:
    x = torch.rand(1, 1, 8, 8, 8)
    turned = turn(x, matrix(quarter_turns=1), size=8, mode="nearest")[0, 0].numpy()
    quarter = [np.rot90(x[0, 0].numpy(), turns, axes=(0, 1)) for turns in (1, 3)]
    assert any(np.allclose(turned, one) for one in quarter)


def test_a_larger_source_keeps_the_voxel_size() -> None:
    x = torch.rand(1, 1, 12, 12, 12)
    assert torch.allclose(turn(x, matrix(), size=8, mode="bilinear"), x[..., 2:-2, 2:-2, 2:-2], atol=1e-5)


def test_a_magnification_of_two_doubles_a_ball() -> None:
    line = torch.linspace(-1, 1, 32)
    x, y, z = torch.meshgrid(line, line, line, indexing="ij")
    ball = (x**2 + y**2 + z**2 < 0.3**2).float()[None, None]
    grown = turn(ball, matrix(scale=2.0), size=32, mode="nearest")
    assert float(grown.sum()) == pytest.approx(8 * float(ball.sum()), rel=0.1)


def test_what_lies_beyond_the_source_is_not_scored() -> None:
    inside = within(matrix(scale=0.5), size=16, source_size=16)
    assert inside[0, 0, 4:12, 4:12, 4:12].all()
    assert inside.sum() == 8**3


def test_noise_and_gain_are_the_same_for_the_same_draw() -> None:
    config = AugmentConfig(contrast=0.3, brightness=0.2, noise=0.5)
    drawn = [draw_variation(np.random.default_rng(3), config) for _ in range(2)]
    x = torch.ones(1, 1, 4, 4, 4)
    first, second = (vary_intensity(x.clone(), numbers_of([one]), [one]) for one in drawn)
    assert torch.equal(first, second)
    assert not torch.equal(first, x)


def test_the_default_varies_nothing_but_the_side() -> None:
    variation = draw_variation(np.random.default_rng(0), AugmentConfig())
    x = torch.rand(1, 1, 4, 4, 4)
    assert variation.matrix is None
    assert torch.equal(vary_intensity(x.clone(), numbers_of([variation]), [variation]), x)
