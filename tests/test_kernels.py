"""Banded products: what skips the zeros gives what the whole matrix gives."""

from __future__ import annotations

import numpy as np
import pytest

from harmonize.voxels.kernels import axis_weights, multiply, multiply_planes

VOLUME = np.random.default_rng(0).integers(-1000, 1000, (40, 50, 60)).astype(np.int16)


def shrinking(count: int) -> np.ndarray:
    return axis_weights(np.arange(count, dtype=np.float64), np.arange(0.4, count - 1, 2.3), 2.3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_banded_product_is_the_whole_product(axis: int) -> None:
    matrix = shrinking(VOLUME.shape[axis])
    whole = np.moveaxis(np.tensordot(matrix, VOLUME.astype(np.float64), axes=(1, axis)), 0, axis)
    np.testing.assert_allclose(multiply(VOLUME, matrix, axis), whole, atol=1e-3)


def test_planes_at_once_are_one_axis_after_the_other() -> None:
    rows, columns = shrinking(50), shrinking(60)
    np.testing.assert_array_equal(
        multiply_planes(VOLUME, rows, columns), multiply(multiply(VOLUME, rows, 1), columns, 2)
    )
