"""A CT is in Hounsfield units, or is refused: headers that say one thing of values that plainly are another.

The made-up head and its helpers are those of `test_dicom_meaning`.
"""

from __future__ import annotations

import numpy as np
import pytest
from test_dicom_meaning import (
    BRAIN,
    SIDE,
    SLICES,
    as_mr,
    as_pet,
    assert_head,
    head_hu,
    invert,
    label_only,
    read,
    rejection,
    said,
    store,
    stored,
    volumes,
    write,
    zoomed,
)

from harmonize.dicom import load_volume
from harmonize.errors import Reason


def already_rescaled(dataset, k):
    """In HU, by a tool that left the rescale tags as they were."""
    store(dataset, head_hu(noise=5, seed=k))


def test_a_ct_that_was_rescaled_before_and_kept_its_tags_is_taken_as_it_is_stored(tmp_path):
    scan = read(write(tmp_path, already_rescaled))
    expected = np.stack([head_hu(noise=5, seed=k).T for k in range(SLICES)], -1)
    np.testing.assert_array_equal(scan.voxels_XYZ, expected)
    assert "were not applied" in said(scan)


@pytest.mark.parametrize("intercept", [-1, 300, 1000])
def test_a_ct_that_its_intercept_makes_no_head_in_hounsfield_units_is_refused(tmp_path, intercept):
    fault = rejection(write(tmp_path, lambda dataset, k: setattr(dataset, "RescaleIntercept", intercept)))
    assert fault.reason is Reason.UNSUPPORTED_UNIT
    assert "intercept" in fault.message


@pytest.mark.parametrize("intercept", [-1024, -1000, -8192])
@pytest.mark.parametrize("padding", [None, -2000, -1000])
def test_a_ct_without_air_stays_as_its_header_says(tmp_path, intercept, padding):
    def edit(dataset, k):
        store(dataset, head_hu() - intercept)
        zoomed(dataset)
        if padding is not None:
            values = stored(dataset)
            values[:4] = padding
            store(dataset, values)

    scan = read(write(tmp_path, edit, intercept=intercept))
    assert scan.voxels_XYZ[SIDE // 2, SIDE // 2].tolist() == [BRAIN] * SLICES
    assert "rescale" not in said(scan)


def in_some(change, those):
    return lambda dataset, k: change(dataset, k) if k in those else None


@pytest.mark.parametrize("those", [range(SLICES // 2), range(1, SLICES, 3)])
def test_inverted_slices_of_a_ct_are_not_believed_for_the_air_of_the_others(tmp_path, those):
    fault = rejection(write(tmp_path, in_some(invert, those)))
    assert fault.reason is Reason.BAD_INTENSITY
    assert "MONOCHROME1" in fault.message
    assert "some slices" in fault.message


def test_slices_of_a_ct_that_are_only_called_inverted_are_in_hounsfield_units_by_their_own_air(tmp_path):
    scan = read(write(tmp_path, in_some(label_only, range(SLICES // 2))))
    assert_head(scan)
    assert "MONOCHROME1" in said(scan)


# --- two halves that contradict each other


def with_intercept(value):
    return lambda dataset, k: setattr(dataset, "RescaleIntercept", value)


@pytest.mark.parametrize("wrong", [0, -2048])
@pytest.mark.parametrize("those", [range(SLICES // 2), range(0, SLICES, 2)])
def test_of_two_halves_that_jump_the_one_that_shows_a_head_is_believed(tmp_path, those, wrong):
    scan = read(write(tmp_path, in_some(with_intercept(wrong), those)))
    assert_head(scan)
    assert "6 slices contradicts" in said(scan)


def test_two_halves_that_jump_and_show_no_head_are_refused(tmp_path):
    def edit(dataset, k):
        zoomed(dataset)
        dataset.RescaleIntercept = 0 if k < SLICES // 2 else -1024

    fault = rejection(write(tmp_path, edit))
    assert fault.reason is Reason.BAD_INTENSITY
    assert "halves" in fault.message


def test_two_halves_that_were_stored_with_an_intercept_each_are_right(tmp_path):
    def edit(dataset, k):
        dataset.RescaleIntercept = 0
        store(dataset, head_hu())

    scan = read(write(tmp_path, in_some(edit, range(SLICES // 2))))
    assert_head(scan)
    assert "contradicts" not in said(scan)


# --- maps of something else


MAPS = ["CBF", "CBV MAP", "MTT", "TTP", "TMAX", "PERMEABILITY", "SUBTRACTION", "STD_DEVIATION"]


@pytest.mark.parametrize("kind", MAPS)
def test_a_map_that_was_computed_of_pictures_is_no_ct(tmp_path, kind):
    def edit(dataset, k):
        dataset.ImageType, dataset.RescaleType = ["DERIVED", "SECONDARY", "AXIAL", kind], "HU"

    fault = rejection(write(tmp_path, edit))
    assert fault.reason is Reason.UNSUPPORTED_UNIT
    assert "ImageType" in fault.message


@pytest.mark.parametrize("words", ["Perfusion CBF", "head subtraction", "Tmax [s]"])
def test_words_for_such_a_map_are_believed_unless_air_is_seen(tmp_path, words):
    (tmp_path / "hu").mkdir()
    (tmp_path / "map").mkdir()

    def edit(dataset, k):
        dataset.SeriesDescription = words

    def scaled(dataset, k):
        edit(dataset, k)
        dataset.RescaleIntercept = 0
        store(dataset, np.where(head_hu() == BRAIN, 50, 0))

    assert_head(read(write(tmp_path / "hu", edit)))
    assert rejection(write(tmp_path / "map", scaled)).reason is Reason.UNSUPPORTED_UNIT


def test_pictures_of_a_perfusion_are_in_hounsfield_units_where_air_is_seen(tmp_path):
    def edit(dataset, k):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "PERFUSION"]

    assert_head(read(write(tmp_path, edit)))


# --- parts of a complex MR


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("ImageType", ["ORIGINAL", "PRIMARY", "P", "ND"], "phase"),
        ("ImageType", ["DERIVED", "PRIMARY", "PHASE MAP", "P", "FFE"], "phase"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "R", "NORM"], "real part"),
        ("ComplexImageComponent", "IMAGINARY", "imaginary part"),
        ((0x0043, 0x102F), 1, "phase"),
    ],
)
def test_what_is_not_the_magnitude_of_an_mr_is_told(tmp_path, name, value, part):
    def edit(dataset, k):
        as_mr(dataset, k)
        if isinstance(name, str):
            setattr(dataset, name, value)
        else:
            dataset.add_new(name, "SS", value)

    assert f"says {part} of a complex MR" in said(read(write(tmp_path, edit)))


def test_the_magnitude_beside_a_phase_has_no_such_line(tmp_path):
    def edit(kind):
        return lambda dataset, k: (as_mr(dataset, k), setattr(dataset, "ImageType", ["ORIGINAL", "PRIMARY", kind]))

    for kind in "MP":
        (tmp_path / kind).mkdir()
        write(tmp_path / kind, edit(kind))
    scans = [load_volume(volume) for volume in volumes(tmp_path)]
    assert ["complex MR" in said(scan) for scan in scans] == [False, True]


# --- PET


def test_slices_of_a_pet_that_lack_their_units_have_those_of_the_others(tmp_path):
    def edit(dataset, k):
        as_pet(dataset, k)
        if k % 4 == 1:
            del dataset.Units

    scan = read(write(tmp_path, edit))
    assert scan.unit == "Bq/ml"
    assert "Units is missing in 3 of 12 slices" in said(scan)
