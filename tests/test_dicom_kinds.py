"""MR contrast names by physics, and objects that are no pictures."""

from __future__ import annotations

import pytest

from harmonize.dicom.kinds import is_image, mr_contrast, rejection, scan_modality
from harmonize.errors import Reason


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"sequence": ["SE"], "repetition_ms": 500, "echo_ms": 12}, "T1w"),
        ({"sequence": ["SE"], "repetition_ms": 4000, "echo_ms": 100}, "T2w"),
        ({"sequence": ["SE", "IR"], "repetition_ms": 9000, "echo_ms": 120, "inversion_ms": 2500}, "FLAIR"),
        ({"sequence": ["GR", "IR"], "repetition_ms": 2300, "echo_ms": 3, "inversion_ms": 900}, "T1w"),
        ({"sequence": ["GR"], "angio": True}, "MRA"),
        ({"sequence": ["GR"], "sequence_name": "*fi3d1r_TOF"}, "MRA"),
        ({"sequence": ["EP"], "b_value": 1000.0}, "DWI"),
        ({"image_type": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"], "b_value": 1000.0}, "ADC"),
        ({"acquisition_contrast": "FLUID_ATTENUATED"}, "FLAIR"),
        ({"sequence": ["SE"], "repetition_ms": 2000, "echo_ms": 40}, "MR"),
        ({"sequence": ["EP"], "repetition_ms": 3000, "echo_ms": 30}, "MR"),
        ({}, "MR"),
    ],
)
def test_a_contrast_is_named_only_where_the_physics_is_clear(facts, name):
    assert mr_contrast(**({"image_type": ["ORIGINAL", "PRIMARY"]} | facts)) == name


@pytest.mark.parametrize(
    ("sop_class", "modality", "image"),
    [
        ("1.2.840.10008.5.1.4.1.1.2", "CT", True),
        ("1.2.840.10008.5.1.4.1.1.7", "OT", True),
        ("", "MR", True),
        ("1.2.840.10008.5.1.4.1.1.66", "MR", False),
        ("1.2.840.10008.5.1.4.1.1.66.4", "SEG", False),
        ("1.2.840.10008.5.1.4.1.1.88.22", "SR", False),
        ("1.2.840.10008.5.1.4.1.1.481.2", "RTDOSE", False),
        ("1.2.840.10008.5.1.4.1.1.11.1", "PR", False),
        ("1.2.840.10008.1.3.10", "", False),
        ("1.3.46.670589.11.0.0.12.1", "MR", False),
        ("1.3.12.2.1107.5.9.1", "MR", False),
    ],
)
def test_only_pictures_are_looked_at(sop_class, modality, image):
    assert is_image(sop_class, modality) is image


def test_the_class_tells_the_modality_where_the_element_is_missing():
    assert scan_modality("1.2.840.10008.5.1.4.1.1.128", "") == "PT"


@pytest.mark.parametrize(
    ("corrections", "method", "description", "refused"),
    [
        (["DECY", "ATTN"], "", "", False),
        (["DECY"], "", "", True),
        ([], "NONE", "", True),
        ([], "", "PET NO AC", True),
        ([], "", "PET AC", False),
        ([], "", "", False),
    ],
)
def test_pet_without_attenuation_correction_is_refused(corrections, method, description, refused):
    found = rejection(
        sop_class="",
        modality="PT",
        image_type=["ORIGINAL", "PRIMARY"],
        description=description,
        corrections=corrections,
        attenuation_method=method,
    )
    assert (found is not None and found.reason is Reason.DERIVED) is refused
