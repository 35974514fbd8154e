"""Whose pictures stand under one series UID: no volume is of two people, and none is torn by how one is written."""

from __future__ import annotations

import numpy as np
import pytest
from test_dicom_mixtures import STEP, levels, said, write


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
