"""The TCIA tree: DICOM geometry that agrees with itself, faults where they are meant, and names to keep private."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pydicom
import pytest

from harmonize import phantom

Series = list[pydicom.Dataset]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Series]:
    """The image series with a geometry, each sorted along its slices."""
    out = tmp_path_factory.mktemp("tcia")
    phantom.write("tcia", out, scans=8, size=24, seed=2)
    found: dict[str, Series] = defaultdict(list)
    for path in sorted((out / "tcia").rglob("*.dcm")):
        dataset = pydicom.dcmread(path)
        found[dataset.SeriesInstanceUID].append(dataset)
    return [
        sorted(group, key=along_normal) if "ImagePositionPatient" in group[0] else group for group in found.values()
    ]


def normal_of(dataset: pydicom.Dataset) -> np.ndarray:
    row, column = np.asarray(dataset.ImageOrientationPatient, dtype=float).reshape(2, 3)
    return np.cross(row, column)


def along_normal(dataset: pydicom.Dataset) -> float:
    return float(np.asarray(dataset.ImagePositionPatient, dtype=float) @ normal_of(dataset))


def gaps_of(group: Series) -> np.ndarray:
    return np.diff([along_normal(dataset) for dataset in group])


def named(series: list[Series], description: str) -> Series:
    (group,) = (group for group in series if group[0].get("SeriesDescription") == description)
    return group


def test_instances_are_unique_and_their_meta_information_agrees(series: list[Series]) -> None:
    datasets = [dataset for group in series for dataset in group]
    assert len({dataset.SOPInstanceUID for dataset in datasets}) == len(datasets)
    for dataset in datasets:
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.file_meta.MediaStorageSOPClassUID == dataset.SOPClassUID
        assert len(dataset.SeriesInstanceUID) <= 64


def test_a_plain_ct_is_even_and_untilted(series: list[Series]) -> None:
    group = named(series, "StandardFull")
    gaps = gaps_of(group)
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-6)
    way = np.subtract(group[-1].ImagePositionPatient, group[0].ImagePositionPatient)
    np.testing.assert_allclose(way / np.linalg.norm(way), normal_of(group[0]), atol=1e-6)


def test_a_tilted_ct_steps_aslant_to_its_planes(series: list[Series]) -> None:
    group = named(series, "Tete   C-")
    way = np.subtract(group[-1].ImagePositionPatient, group[0].ImagePositionPatient)
    angle = np.degrees(np.arccos(abs(way @ normal_of(group[0])) / np.linalg.norm(way)))
    assert 12 <= angle <= 20
    np.testing.assert_allclose(way[:2], 0, atol=1e-6)


def test_one_ct_is_uneven_and_one_lacks_a_slice(series: list[Series]) -> None:
    uneven = gaps_of(named(series, "HEAD SEQ"))
    assert np.isclose(uneven.max() / uneven.min(), 4 / 3)
    gap = gaps_of(named(series, "ANGIO COU"))
    assert np.isclose(gap.max() / np.median(gap), 2)
    assert (gap > 1.5 * np.median(gap)).sum() == 1


def test_ct_values_are_hounsfield_units(series: list[Series]) -> None:
    for dataset in (dataset for group in series for dataset in group[len(group) // 2 :][:1]):
        if dataset.Modality != "CT" or "LOCALIZER" in dataset.ImageType:
            continue
        values = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        assert np.sum(np.abs(values - 35) < 40) > 0.05 * values.size
        assert np.sum(values < -900) > 0.1 * values.size
        assert values.max() > 500


def test_pet_has_a_slope_for_each_slice_and_a_twin_without_correction(series: list[Series]) -> None:
    group = named(series, "PET AC")
    assert len({float(dataset.RescaleSlope) for dataset in group}) > 1
    assert group[0].Units == "BQML"
    assert "ATTN" in group[0].CorrectedImage
    assert "ATTN" not in named(series, "PET NO AC")[0].CorrectedImage


def test_every_patient_has_a_scout_and_a_structure_set(series: list[Series]) -> None:
    kinds = [(group[0].Modality, "LOCALIZER" in group[0].get("ImageType", ())) for group in series]
    patients = {group[0].PatientID for group in series}
    assert kinds.count(("RTSTRUCT", False)) == len(patients) == 4
    assert kinds.count(("CT", True)) == len(patients)


def test_headers_carry_names_that_must_not_leak(series: list[Series]) -> None:
    for group in series:
        assert "^" in str(group[0].PatientName)
        assert group[0].PatientBirthDate
