"""Stored voxels: one formula for arrays, tensors and numbers, and its way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harmonize.voxels.stored import StoredVolume, StoredVoxels, real_value, stored_value

STORED = np.array([-32767, -1, 0, 3, 32767], dtype=np.int16)
SLOPE, INTER = float(np.float32(0.0037)), float(np.float32(-2.3))


def test_the_real_value_is_what_nifti_says_it_is() -> None:
    values = StoredVoxels(stored_XYZ=STORED, slope=SLOPE, inter=INTER).values()
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [SLOPE * number + INTER for number in STORED.tolist()], rtol=1e-6)


def test_numbers_arrays_and_tensors_have_the_same_value() -> None:
    array = StoredVoxels(stored_XYZ=STORED, slope=SLOPE, inter=INTER).values()
    scale = torch.tensor([SLOPE, INTER])
    tensor = real_value(torch.from_numpy(STORED), scale[0], scale[1])
    assert tensor.dtype == torch.float32
    assert np.array_equal(tensor.numpy(), array)
    assert real_value(3.0, 0.5, 1.0) == 2.5


def test_a_real_value_finds_back_to_the_number_it_is_stored_as() -> None:
    values = StoredVoxels(stored_XYZ=STORED, slope=SLOPE, inter=INTER).values()
    assert np.rint(stored_value(values, SLOPE, INTER)).tolist() == STORED.tolist()


@pytest.mark.parametrize("spacing", [(0.8, 1.0, 2.5), (0.4492, 0.4492, 5.0)])
def test_the_spacing_is_that_of_the_affine_to_the_last_bit(spacing: tuple[float, float, float]) -> None:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-80.0, 12.5, 3.0)
    assert StoredVolume(stored_XYZ=STORED.reshape(5, 1, 1), affine=affine).spacing == spacing
