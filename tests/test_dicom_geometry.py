"""Positions of slices to affines, without any file."""

from __future__ import annotations

import numpy as np
import pytest

from harmonize.dicom.geometry import find_holes, fit_stack, pixel_to_ras, slice_normal
from harmonize.errors import Reason, Rejection

AXIAL = [1, 0, 0, 0, 1, 0]


def straight(offsets, shear=0.0):
    return [[10, 20 + shear * t, t] for t in offsets]


def test_even_slices_give_one_affine_and_no_offsets():
    geometry = fit_stack(straight([5, 7.5, 10, 12.5]), AXIAL, (0.5, 0.25))
    expected = [[-0.25, 0, 0, -10], [0, -0.5, 0, -20], [0, 0, 2.5, 5], [0, 0, 0, 1]]
    np.testing.assert_allclose(geometry.affine, expected, atol=1e-12)
    assert geometry.slice_offsets is None
    assert geometry.tilt_deg == pytest.approx(0, abs=1e-6)


def test_tilt_is_kept_as_shear_along_the_line_of_the_slices():
    geometry = fit_stack(straight([0, 4, 8, 12], shear=0.3), AXIAL, (1, 1))
    np.testing.assert_allclose(geometry.affine[:3, 2], [0, -1.2, 4], atol=1e-12)
    assert geometry.tilt_deg == pytest.approx(np.degrees(np.arctan(0.3)))


def test_rounded_positions_are_still_even():
    offsets = np.round(np.arange(200) * 0.6254, 2)
    assert fit_stack(straight(offsets), AXIAL, (0.5, 0.5)).slice_offsets is None


def test_gaps_that_pass_one_by_one_but_drift_are_kept_on_their_true_places():
    offsets = np.cumsum([0.0] + [1.0] * 50 + [1.009] * 49)
    geometry = fit_stack(straight(offsets), AXIAL, (0.5, 0.5))
    assert geometry.slice_offsets is not None
    places = geometry.affine[2, 3] + geometry.slice_offsets * geometry.affine[2, 2]
    np.testing.assert_allclose(places, offsets, atol=1e-9)


def test_missing_slices_are_counted_and_stay_on_their_true_places():
    geometry = fit_stack(straight([0, 2, 4, 8, 10, 16]), AXIAL, (0.5, 0.5))
    assert geometry.missing == 3
    np.testing.assert_allclose(geometry.slice_offsets, [0, 1, 2, 4, 5, 8])


def test_uneven_slices_are_not_called_missing():
    geometry = fit_stack(straight([0, 4, 8, 9.1, 16.1, 23.1]), AXIAL, (0.5, 0.5))
    assert geometry.missing == 0
    assert geometry.gaps_mm == pytest.approx((1.1, 7.0))


@pytest.mark.parametrize(
    ("offsets", "holes"),
    [
        ([0, 1, 2, 3], []),
        ([0, 1, 2, 5, 6, 7], []),
        ([0, 1, 2, 6, 7, 8], [2]),
        ([0, 1, 2, 3, 40], [3]),
        ([0, 1.25, 2.5, 3.75, 8.75, 13.75, 18.75], []),
        ([0, 2.5, 5.1, 30.0, 32.4, 35.0], [2]),
    ],
    ids=["even", "two missing", "three missing", "stray slice", "thin then thick", "hole in an uneven stack"],
)
def test_a_stack_is_cut_where_too_much_is_missing(offsets, holes):
    assert find_holes(np.array(offsets, float)) == holes


def test_slices_off_the_line_are_refused():
    positions = straight([0, 1, 2, 3, 4])
    positions[2][0] += 3
    with pytest.raises(Rejection) as caught:
        fit_stack(positions, AXIAL, (0.5, 0.5))
    assert caught.value.reason is Reason.MIXED_GEOMETRY


def test_a_single_slice_is_refused():
    with pytest.raises(Rejection) as caught:
        fit_stack(straight([0]), AXIAL, (0.5, 0.5))
    assert caught.value.reason is Reason.TOO_FEW_SLICES


@pytest.mark.parametrize("spacing", [(0, 1), (1, -1), (float("nan"), 1), (1, float("inf")), (1,), (1e6, 1)])
def test_impossible_pixel_spacings_are_refused(spacing):
    with pytest.raises(Rejection) as caught:
        fit_stack(straight([0, 1, 2]), AXIAL, spacing)
    assert caught.value.reason is Reason.BAD_GEOMETRY


@pytest.mark.parametrize(
    "orientation", [[0] * 6, [1, 0, 0, 1, 0, 0], [2, 0, 0, 0, 1, 0], [1, 0, 0, 0, float("nan"), 0], [1, 0, 0]]
)
def test_impossible_orientations_are_refused(orientation):
    with pytest.raises(Rejection) as caught:
        slice_normal(orientation)
    assert caught.value.reason is Reason.BAD_GEOMETRY


def test_the_affine_and_the_pixel_formula_agree():
    orientation = [0, 1, 0, 0, 0, -1]
    geometry = fit_stack([[1, 4, 5], [-1, 4, 5], [-3, 4, 5]], orientation, (0.7, 0.4))
    by_affine = geometry.affine @ [11, 7, 1, 1]
    np.testing.assert_allclose(by_affine[:3], pixel_to_ras([-1, 4, 5], orientation, (0.7, 0.4), 11, 7), atol=1e-12)
