"""Foreground: the body and nothing but the body, whatever the order of the voxels in memory."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from harmonize.scan import ARBITRARY, HU
from harmonize.voxels.foreground import _inner, bounding_box, find_foreground, values_inside


@pytest.fixture
def body_XYZ() -> np.ndarray:
    """A ball with a hole, and a small thing beside it."""
    x, y, z = np.meshgrid(np.arange(40), np.arange(36), np.arange(30), indexing="ij")
    radius = np.sqrt((x - 20) ** 2 + (y - 18) ** 2 + (z - 15) ** 2)
    body = (radius < 12) & (radius > 4)
    body[1:3, 1:3, 1:3] = True
    return body


@pytest.mark.parametrize(("unit", "bright", "dark"), [(HU, 40, -1000), (ARBITRARY, 300, 10)])
def test_the_largest_part_is_found_and_its_holes_are_filled(
    body_XYZ: np.ndarray, unit: str, bright: float, dark: float
) -> None:
    found = find_foreground(np.where(body_XYZ, bright, dark).astype(np.float32), (1.0, 1.0, 1.0), unit)
    assert found[20, 18, 15]
    assert found[20, 18, 25]
    assert not found[1:3, 1:3, 1:3].any()


def test_the_order_in_memory_does_not_matter(body_XYZ: np.ndarray) -> None:
    values = np.where(body_XYZ, 40, -1000).astype(np.float32)
    found = find_foreground(values, (1.0, 1.0, 2.0), HU)
    np.testing.assert_array_equal(find_foreground(np.asfortranarray(values), (1.0, 1.0, 2.0), HU), found)
    inside = values_inside(values, body_XYZ)
    np.testing.assert_array_equal(np.sort(values_inside(np.asfortranarray(values), body_XYZ)), np.sort(inside))


def test_channels_stay_together(body_XYZ: np.ndarray) -> None:
    values = np.asfortranarray(np.stack([body_XYZ * 1, body_XYZ * 2, body_XYZ * 3], axis=-1))
    np.testing.assert_array_equal(np.unique(values_inside(values, body_XYZ), axis=0), [[1, 2, 3]])


def test_the_box_of_nothing_is_the_whole_volume() -> None:
    assert bounding_box(np.zeros((3, 4, 5), dtype=bool)) == (0, 3, 0, 4, 0, 5)


@pytest.mark.parametrize("shape", [(12, 9, 7), (1, 5, 4), (3, 3, 3)])
def test_what_is_inside_is_what_scipy_erodes_to(shape: tuple[int, int, int]) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.8
    assert np.array_equal(_inner(mask), binary_erosion(mask, border_value=1))
    assert np.array_equal(~_inner(~mask), binary_dilation(mask))
