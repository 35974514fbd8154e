"""Whose pictures stand under one series UID: no volume is of two people, and none is torn by how one is written."""

from __future__ import annotations

import numpy as np
import pytest
from test_dicom_mixtures import STEP, levels, said, write

from harmonize.dicom import find_files, find_volumes, load_volume
from harmonize.dicom.owners import one_patient
from harmonize.errors import Reason
from harmonize.sources import tcia


@pytest.mark.parametrize("other", [{"AccessionNumber": ("1", "2")}, {"PatientAge": ("040Y", "060Y")}])
def test_examinations_of_two_days_end_to_end_are_two_volumes(tmp_path, other):
    for n, level in enumerate((100, 300)):
        own = {name: values[n] for name, values in other.items()}
        write(tmp_path, np.arange(8) * STEP + n * 8 * STEP, level, StudyDate=f"202{n}0101", **own)
    assert levels(tmp_path) == [{100}, {300}]
    assert "study date" in said(tmp_path)


@pytest.mark.parametrize(
    "elements",
    [
        {"StudyDate": "20200101", "AcquisitionDate": lambda k: f"2020010{1 + k // 6}"},
        {"StudyDate": lambda k: f"2020010{1 + k // 6}", "AccessionNumber": "1", "PatientAge": "040Y"},
        {"StudyDate": lambda k: f"2020010{1 + k // 6}", "AccessionNumber": lambda k: "1" if k > 6 else None},
        {"StudyDate": lambda k: f"202001{1 + k:02d}", "AccessionNumber": lambda k: f"{k}"},
        {"StudyDate": "20200101", "AccessionNumber": lambda k: f"{k // 6}"},
    ],
)
def test_an_examination_past_midnight_or_with_moved_dates_is_one_volume(tmp_path, elements):
    write(tmp_path, np.arange(12) * STEP, 100, **elements)
    assert levels(tmp_path) == [{100}]
    assert "one of" not in said(tmp_path)


@pytest.mark.parametrize(
    ("element", "first", "second"),
    [
        ("StudyID", "1", "2"),
        ("InstitutionName", "A", "B"),
        ("PatientWeight", 60, 80),
        ("PatientSize", 1.6, 1.8),
        ("ContrastBolusStartTime", "101500", "102000"),
        ("ContrastBolusVolume", 1, 50),
    ],
)
@pytest.mark.parametrize("shift", [0.0, STEP / 2])
def test_what_is_said_of_an_examination_tells_woven_volumes_apart(tmp_path, element, first, second, shift):
    write(tmp_path, np.arange(7) * STEP, 100, **{element: first})
    write(tmp_path, np.arange(7)[::-1] * STEP + shift, 102, **{element: second})
    assert levels(tmp_path) == [{100}, {102}]


@pytest.mark.parametrize("ids", [("00123", "123"), ("a", "A"), ("X-7", "x7")])
@pytest.mark.parametrize("second", [lambda k: k % 2, lambda k: k < 3, lambda k: k in (4, 5, 9)])
def test_a_scan_is_not_torn_by_how_its_patients_id_is_spelt(tmp_path, ids, second):
    write(tmp_path, np.arange(12) * STEP, 100, PatientID=lambda k: ids[bool(second(k))])
    (volume,) = find_volumes(find_files(tmp_path))
    scan = load_volume(volume)
    assert scan.voxels_XYZ.shape[2] == 12
    assert any("2 ways" in line for line in scan.decisions)
    (ref,) = [ref for ref in tcia.discover(tmp_path) if hasattr(ref, "key")]
    assert ref.subject in ids


@pytest.mark.parametrize("ids", [("0", "-"), ("00", "0"), ("?", ""), ("", "0")])
def test_ids_that_say_nothing_are_not_one_spelt_in_two_ways(ids):
    assert one_patient(ids) == ""
    assert one_patient(ids[:1] * 2) == ids[0]


@pytest.mark.parametrize(
    "other",
    [
        {"StudyInstanceUID": "1.7.1"},
        {"FrameOfReferenceUID": "1.8.1"},
        {"PatientName": "Roe"},
        {"PatientBirthDate": "19600101"},
        {"ImagePositionPatient": lambda k: [0, 0, k * STEP]},
        {"ImagePositionPatient": lambda k: [0, 0, k * STEP + 0.3 * STEP]},
    ],
)
def test_patients_whose_ids_are_alike_are_two_where_anything_else_differs(tmp_path, other):
    write(tmp_path, np.arange(8) * STEP, 100, PatientID="00123")
    write(tmp_path, np.arange(8) * STEP + STEP / 2, 300, **({"PatientID": "123"} | other))
    assert levels(tmp_path) == [{100}, {300}]
    refs = [ref for ref in tcia.discover(tmp_path) if hasattr(ref, "key")]
    assert {ref.subject.split("/")[0] for ref in refs} == {"00123", "123"}


def test_a_birth_date_and_a_sex_are_the_same_however_they_are_written(tmp_path):
    dates = "19800101", "1980-01-01"
    written = {"PatientSex": lambda k: ("F", "Female")[k % 2], "PatientBirthDate": lambda k: dates[k % 2]}
    write(tmp_path, np.arange(12) * STEP, 100, **written)
    assert levels(tmp_path) == [{100}]
    assert "one of" not in said(tmp_path)


def test_a_lost_position_does_not_end_the_look_at_how_ids_are_spelt(tmp_path):
    for n, written in enumerate(("00123", "123")):
        gone = {"ImagePositionPatient": lambda k: None if k == 3 else [0, 0, k * STEP]}
        write(tmp_path, np.arange(8) * STEP, 100 + n, PatientID=written, **gone)
    reasons = {found.rejection and found.rejection.reason for found in find_volumes(find_files(tmp_path))}
    assert reasons == {None, Reason.MISSING_METADATA}
