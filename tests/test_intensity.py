"""HU stay exact, MRI is normalised by its foreground, int16 keeps what matters."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from harmonize.errors import Reason, Rejection
from harmonize.voxels.intensity import (
    CT_WINDOWS,
    correct_bias,
    encode_hu,
    encode_int16,
    encode_windows,
    normalise,
    window,
)


def head(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A ball of three tissues in air, and where it is."""
    random = np.random.default_rng(seed)
    x, y, z = np.mgrid[-16:16, -16:16, -16:16]
    radius = np.sqrt(x**2 + y**2 + z**2)
    tissue = np.select([radius < 5, radius < 10, radius < 14], [300.0, 900.0, 600.0], 0.0)
    return (tissue + random.normal(0, 20, tissue.shape)).astype(np.float32), radius < 14


def test_hounsfield_units_are_stored_exactly() -> None:
    hu = np.arange(-1024, 30000, dtype=np.int16).reshape(-1, 1, 1)
    encoded, clipped = encode_hu(hu)
    assert np.array_equal(encoded.stored_XYZ, hu)
    assert (encoded.slope, encoded.inter, clipped) == (1.0, 0.0, 0)


def test_hounsfield_units_are_rounded_and_not_cut_off() -> None:
    encoded, clipped = encode_hu(np.array([[[-0.6, 0.4, 40.5, 41.5, -5000.0, 1e6]]], dtype=np.float32))
    assert encoded.stored_XYZ.ravel().tolist() == [-1, 0, 40, 42, -1024, 32767]
    assert clipped == 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "uint32", "float32", "float64"])
def test_hounsfield_units_are_the_same_from_any_type(dtype: str) -> None:
    hu = np.array([[[0, 40, 200]]], dtype=dtype)
    encoded, clipped = encode_hu(hu)
    assert (encoded.stored_XYZ.ravel().tolist(), encoded.stored_XYZ.dtype, clipped) == ([0, 40, 200], np.int16, 0)


def test_windows_run_from_zero_to_one_over_their_width() -> None:
    width, level = CT_WINDOWS["blood"]
    edges = np.array([level - width, level - width / 2, level, level + width / 2, level + width])
    assert window(edges, width, level).tolist() == [0, 0, 0.5, 1, 1]


def test_baked_windows_hold_the_three_channels() -> None:
    hu = np.array([[[-1000.0, 40.0, 80.0, 600.0]]])
    encoded, _ = encode_windows(hu)
    values = encoded.values()
    assert encoded.stored_XYZ.shape == (1, 1, 4, 3)
    for channel, (width, level) in enumerate(CT_WINDOWS.values()):
        assert np.allclose(values[..., channel], window(hu, width, level), atol=1e-4)


def test_int16_keeps_whole_numbers_as_they_are() -> None:
    values = np.array([[[-3, 0, 32000]]], dtype=np.int32)
    encoded, clipped = encode_int16(values)
    assert (encoded.slope, encoded.inter, clipped) == (1.0, 0.0, 0)
    assert np.array_equal(encoded.stored_XYZ, values)


def test_a_hot_voxel_costs_the_others_no_precision() -> None:
    values = np.random.default_rng(0).normal(0, 1, (40, 40, 40)).astype(np.float32)
    values[0, 0, 0] = 1e9
    encoded, clipped = encode_int16(values)
    decoded = encoded.values()
    assert clipped == 1
    assert np.abs(decoded - values).ravel()[1:].max() < 1e-3


def test_a_constant_image_is_encoded() -> None:
    encoded, _ = encode_int16(np.full((3, 3, 3), 2.5, dtype=np.float32))
    assert np.allclose(encoded.values(), 2.5)


def test_zscore_makes_the_foreground_mean_zero_and_deviation_one() -> None:
    values, foreground = head()
    found = normalise(values, foreground, method="zscore", modality="T1w")[foreground]
    assert float(found.mean()) == pytest.approx(0, abs=1e-4)
    assert float(found.std()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("method", ["fcm", "kde", "whitestripe"])
def test_tissue_normalisers_do_not_depend_on_the_scanners_scale(method: str) -> None:
    values, foreground = head()
    one = normalise(values, foreground, method=method, modality="T1w")
    other = normalise(values * 7.5, foreground, method=method, modality="T1w")
    assert np.isfinite(one).all()
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] == pytest.approx(1, abs=1e-6)
    assert float(np.abs(one[foreground] - other[foreground]).max()) < 0.02 * float(np.ptp(one))


def test_fcm_puts_white_matter_at_one() -> None:
    values, foreground = head()
    found = normalise(values, foreground, method="fcm", modality="T1w")
    assert float(np.median(found[(values > 850) & (values < 950)])) == pytest.approx(1, abs=0.05)


def test_none_leaves_the_values_alone() -> None:
    values, foreground = head()
    assert normalise(values, foreground, method="none", modality="T1w") is values


@pytest.mark.parametrize("method", ["zscore", "nyul", "fcm", "kde", "whitestripe"])
def test_a_constant_foreground_is_refused(method: str) -> None:
    with pytest.raises(Rejection) as caught:
        normalise(np.ones((8, 8, 8)), np.ones((8, 8, 8), dtype=bool), method=method, modality="T1w")
    assert caught.value.reason == Reason.BAD_INTENSITY


def test_n4_evens_out_a_bias_field() -> None:
    values, foreground = head()
    white = (values > 800) & foreground
    ramp = np.linspace(0.6, 1.4, 32, dtype=np.float32)[:, None, None]
    biased = values * ramp
    found = correct_bias(biased, foreground, (5.0, 5.0, 5.0))
    assert found[white].std() / found[white].mean() < 0.6 * biased[white].std() / biased[white].mean()


def test_fuzzy_c_means_gives_the_same_values_whatever_was_drawn_before() -> None:
    values = np.random.default_rng(0).normal(100, 20, (12, 12, 12))
    everywhere = np.ones(values.shape, dtype=bool)
    first = normalise(values, everywhere, method="fcm", modality="T1w")
    np.random.random(5)  # noqa: NPY002  # moves the global generator, from which the library draws
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    assert np.array_equal(normalise(values, everywhere, method="fcm", modality="T1w"), first)
    assert np.random.get_state()[1].tolist() == before, "the caller's generator is left alone"  # noqa: NPY002
