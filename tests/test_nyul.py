"""Nyul: equal to intensity-normalization where that is defined, and defined where that is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intensity_normalization import NyulNormalizer, create_image
from numpy.typing import NDArray

from harmonize.errors import UserError
from harmonize.voxels import nyul


def population(count: int = 4) -> list[NDArray[np.float64]]:
    random = np.random.default_rng(3)
    return [
        np.concatenate((random.normal(80, 9, 4000), random.normal(130, 12, 6000), random.gamma(2, 30, 2000))).reshape(
            20, 20, 30
        )
        * random.uniform(0.4, 8)
        + random.uniform(0, 60)
        for _ in range(count)
    ]


def test_the_fit_is_the_librarys_fit() -> None:
    scans = population()
    library = NyulNormalizer(*nyul.OUTPUT_RANGE)
    library.fit_population([create_image(one) for one in scans], [create_image(np.ones_like(one)) for one in scans])
    found = nyul.fit(nyul.landmarks(one) for one in scans)
    assert np.allclose(found.scale, library.standard_scale)
    assert np.allclose(found.percentiles, library.percentiles)


def test_the_transform_equals_the_librarys_within_one_percent_of_the_range(tmp_path: Path) -> None:
    scans = population()
    nyul.save(tmp_path / "T1w.npy", nyul.fit(nyul.landmarks(one) for one in scans))
    library = NyulNormalizer()
    library.load_standard_histogram(str(tmp_path / "T1w.npy"))
    histogram = nyul.load(tmp_path / "T1w.npy")
    for scan in scans:
        wanted = library.transform(create_image(scan), create_image(np.ones_like(scan))).get_data()
        found = nyul.transform(scan, scan, histogram)
        assert np.abs(found - wanted).max() < 0.01 * np.ptp(wanted)


def test_a_file_that_the_library_wrote_is_read(tmp_path: Path) -> None:
    scans = population(2)
    library = NyulNormalizer()
    library.fit_population([create_image(one) for one in scans])
    library.save_standard_histogram(str(tmp_path / "T2w.npy"))
    assert np.allclose(nyul.load(tmp_path / "T2w.npy").scale, library.standard_scale)


def test_different_scanners_come_out_alike() -> None:
    scans = population(6)
    histogram = nyul.fit(nyul.landmarks(one) for one in scans)
    found = np.array([np.percentile(nyul.transform(one, one, histogram), [1, 25, 50, 75, 99]) for one in scans])
    assert found.std(axis=0).max() < 0.1
    assert np.allclose(found[:, [0, -1]], nyul.OUTPUT_RANGE, atol=0.01)


@pytest.mark.parametrize("brightest", [300.0, 3e4, 3e7])
def test_a_single_bright_voxel_costs_no_precision(brightest: float) -> None:
    scan = population(1)[0].astype(np.float32)
    histogram = nyul.fit(nyul.landmarks(one) for one in population())
    usual = nyul.transform(scan, scan, histogram)
    scan[0, 0, 0] = brightest * scan.max()
    found = nyul.transform(scan, scan.ravel()[1:], histogram)
    assert np.abs(found - usual).ravel()[1:].max() < 0.01
    assert found[0, 0, 0] == found.max() > usual.max()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=20, max_size=80).filter(lambda values: len(set(values)) > 1))
def test_tied_percentiles_never_give_nan_and_keep_the_order(values: list[int]) -> None:
    histogram = nyul.fit([nyul.landmarks(population(1)[0])])
    scan = np.array(values, dtype=np.float32).reshape(-1, 1, 1)
    if np.percentile(scan, 1) == np.percentile(scan, 99):
        return
    found = nyul.transform(scan, scan, histogram)
    assert np.isfinite(found).all()
    order = np.argsort(scan.ravel(), kind="stable")
    assert (np.diff(found.ravel()[order]) >= -1e-5).all()


@pytest.mark.parametrize("shape", [(12_000,), (1, 12_000), (12_000, 1), (20, 600), (20, 20, 30), (2, 10, 20, 30), (0,)])
def test_values_of_any_shape_are_mapped_alike(shape: tuple[int, ...]) -> None:
    scan = population(1)[0]
    histogram = nyul.fit(nyul.landmarks(one) for one in population())
    values = scan.ravel()[: int(np.prod(shape))].reshape(shape)
    found = nyul.transform(values, scan, histogram)
    assert found.shape == shape
    assert found.dtype == np.float32
    assert np.array_equal(found.ravel(), nyul.transform(scan, scan, histogram).ravel()[: values.size])


def test_a_single_value_is_mapped() -> None:
    scan = population(1)[0]
    histogram = nyul.fit(nyul.landmarks(one) for one in population())
    found = nyul.transform(np.array(scan[3, 4, 5]), scan, histogram)
    assert found.shape == ()
    assert found == pytest.approx(nyul.transform(scan, scan, histogram)[3, 4, 5], abs=1e-3)


@pytest.mark.parametrize("content", [b"", b"no numpy file", None])
def test_a_broken_histogram_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "T1w.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"T1w\.npy"):
        nyul.load(path)


def test_a_modality_cannot_name_a_file_outside_the_folder(tmp_path: Path) -> None:
    assert nyul.histogram_path(tmp_path, "../../etc/passwd").parent == tmp_path
