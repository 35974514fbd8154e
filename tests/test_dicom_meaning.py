"""A number is what its label says: rescaling, units, signs, grey scales, floats, from headers that lack or mix them up.

A made-up head: a disc of 40 HU in a ring of bone of 1600 HU, in air of -1000 HU; noise of a few HU where it matters.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from harmonize.dicom import find_files, find_volumes, load_volume
from harmonize.errors import Reason, Rejection

CT, MR, PET = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
SIDE, SLICES = 32, 12
BRAIN, BONE, AIR = 40, 1600, -1000


def head_hu(*, noise=0, seed=0):
    y, x = np.mgrid[:SIDE, :SIDE]
    r = (x - 15.5) ** 2 + (y - 15.5) ** 2
    clean = np.where(r < 150, BRAIN, np.where(r < 190, BONE, AIR))
    return clean + np.rint(np.random.default_rng(seed).normal(0, noise, clean.shape)).astype(int)


def items(**elements):
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return Sequence([dataset])


def picture(hu, k, *, intercept=-1024, dtype="<i2"):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.SeriesInstanceUID = CT, f"1.2.{k + 1}", "1.2.3"
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = CT, f"1.2.{k + 1}"
    dataset.Modality, dataset.ImageType, dataset.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], k + 1
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [-62, -62, 4.0 * k], [1, 0, 0, 0, 1, 0]
    dataset.Rows, dataset.Columns, dataset.PixelSpacing = *hu.shape, [4, 4]
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, intercept
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    store(dataset, hu - intercept, dtype)
    return dataset


def store(dataset, values, dtype="<i2"):
    dataset.PixelData = np.ascontiguousarray(values).astype(dtype).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.PixelRepresentation = int(np.dtype(dtype).kind == "i" and values.min() < 0)


def stored(dataset):
    return np.frombuffer(dataset.PixelData, "<i2").reshape(dataset.Rows, dataset.Columns).astype(int)


def write(folder, edit=None, *, intercept=-1024, hu=None):
    for k in range(SLICES):
        dataset = picture(head_hu() if hu is None else hu, k, intercept=intercept)
        if edit is not None:
            edit(dataset, k)
        dataset.save_as(folder / f"{k:02d}.dcm", enforce_file_format=True)
    return folder


def volumes(folder):
    return find_volumes(find_files(folder))


def read(folder):
    (volume,) = [volume for volume in volumes(folder) if volume.rejection is None]
    return load_volume(volume)


def rejection(folder):
    """Of the one volume: by its header or by its pixels."""
    (volume,) = volumes(folder)
    with pytest.raises(Rejection) as caught:
        load_volume(volume)
    return caught.value


def assert_head(scan):
    """The head in HU, voxel for voxel, in every slice."""
    assert (scan.modality, scan.unit) == ("CT", "HU")
    expected = np.broadcast_to(head_hu().T[:, :, None], scan.voxels_XYZ.shape)
    np.testing.assert_array_equal(scan.voxels_XYZ, expected)


def said(scan):
    return "; ".join(scan.decisions)


def drop(*names):
    def edit(dataset, k):
        for name in names:
            delattr(dataset, name)

    return edit


def every_third(change):
    return lambda dataset, k: change(dataset, k) if k % 3 == 1 else None


NO_RESCALE = drop("RescaleSlope", "RescaleIntercept")


def in_hounsfield_already(dataset, k):
    NO_RESCALE(dataset, k)
    store(dataset, head_hu())


# --- slope and intercept


def test_a_plain_ct_has_no_line_about_its_values(tmp_path):
    scan = read(write(tmp_path))
    assert_head(scan)
    assert scan.voxels_XYZ.dtype == np.int16
    assert scan.decisions == (f"{SLICES} slices of CT, 4.000 mm apart",)


@pytest.mark.parametrize("gone", [("RescaleSlope", "RescaleIntercept"), ("RescaleIntercept",), ("RescaleSlope",)])
def test_slices_that_lost_their_rescale_tags_get_those_of_the_others(tmp_path, gone):
    scan = read(write(tmp_path, every_third(drop(*gone))))
    assert_head(scan)
    assert "missing in 4 of 12 slices" in said(scan)


def test_slices_without_rescale_tags_that_are_in_hounsfield_units_already_stay_so(tmp_path):
    scan = read(write(tmp_path, every_third(in_hounsfield_already)))
    assert_head(scan)
    assert "resemble their neighbours as they are" in said(scan)


def test_slices_without_rescale_tags_are_refused_where_the_others_differ(tmp_path):
    def edit(dataset, k):
        dataset.RescaleSlope = 1 + k / 100
        if k % 3 == 1:
            NO_RESCALE(dataset, k)

    fault = rejection(write(tmp_path, edit))
    assert fault.reason is Reason.BAD_INTENSITY
    assert "slope" in fault.message


def test_slices_without_rescale_tags_that_resemble_neither_are_refused(tmp_path):
    def edit(dataset, k):
        if k % 3 == 1:
            NO_RESCALE(dataset, k)
            store(dataset, stored(dataset) - 600)

    assert rejection(write(tmp_path, edit)).reason is Reason.BAD_INTENSITY


def test_each_slice_is_rescaled_by_its_own_tags(tmp_path):
    def edit(dataset, k):
        dataset.RescaleIntercept = 0
        store(dataset, head_hu())

    scan = read(write(tmp_path, every_third(edit)))
    assert_head(scan)
    assert "2 different slopes or intercepts" in said(scan)


def test_an_intercept_that_the_neighbours_contradict_is_not_believed(tmp_path):
    def edit(dataset, k):
        dataset.RescaleIntercept = 0

    scan = read(write(tmp_path, every_third(edit)))
    assert_head(scan)
    assert "contradicts" in said(scan)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(lacking=st.sets(st.integers(0, SLICES - 1), min_size=1, max_size=SLICES - 1), intercept=st.integers(-2000, -500))
def test_whichever_slices_lack_their_tags_the_values_are_right(tmp_path_factory, lacking, intercept):
    folder = tmp_path_factory.mktemp("lacking")
    write(folder, lambda dataset, k: NO_RESCALE(dataset, k) if k in lacking else None, intercept=intercept)
    assert_head(read(folder))


def test_a_missing_slope_counts_as_one(tmp_path):
    scan = read(write(tmp_path, drop("RescaleSlope")))
    assert_head(scan)
    assert "slope is missing" in said(scan)


def test_an_empty_rescale_tag_is_a_missing_one(tmp_path):
    def edit(dataset, k):
        dataset.RescaleSlope, dataset.RescaleIntercept = "", ""

    assert_head(read(write(tmp_path, every_third(edit))))


@pytest.mark.parametrize("slope", ["0", "x"])
def test_a_rescale_tag_that_cannot_be_true_is_a_missing_one(tmp_path, slope):
    write(tmp_path, every_third(lambda dataset, k: setattr(dataset, "RescaleSlope", "7")))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"DS\x02\x007 ", b"DS\x02\x00" + slope.encode() + b" "))
    scan = read(tmp_path)
    assert_head(scan)
    assert "missing in 4 of 12 slices" in said(scan)


def zoomed(dataset):
    """Nothing but the inside of the head."""
    store(dataset, np.repeat(np.repeat(stored(dataset)[8:24, 8:24], 2, 0), 2, 1))


@pytest.mark.parametrize("tags", ["none", "1 and 0"])
@pytest.mark.parametrize("air", [True, False])
def test_a_lost_intercept_is_put_back_where_soft_tissue_is_stored_as_1024(tmp_path, tags, air):
    def edit(dataset, k):
        dataset.RescaleIntercept = 0
        if tags == "none":
            NO_RESCALE(dataset, k)
        if not air:
            zoomed(dataset)

    scan = read(write(tmp_path, edit))
    assert scan.voxels_XYZ[SIDE // 2, SIDE // 2].tolist() == [BRAIN] * SLICES
    assert scan.voxels_XYZ[0, 0, 0] == (AIR if air else BRAIN)
    assert "-1024 assumed" in said(scan)


def test_a_ct_without_rescale_tags_is_in_hounsfield_units_where_air_lies_at_minus_1000(tmp_path):
    scan = read(write(tmp_path, in_hounsfield_already))
    assert_head(scan)
    assert "rescale slope and intercept are missing" in said(scan)


def test_signed_pixels_without_rescale_tags_are_in_hounsfield_units_even_without_air(tmp_path):
    def edit(dataset, k):
        in_hounsfield_already(dataset, k)
        zoomed(dataset)
        dataset.PixelRepresentation = 1

    scan = read(write(tmp_path, edit))
    assert scan.voxels_XYZ[SIDE // 2, SIDE // 2].tolist() == [BRAIN] * SLICES
    assert "rescale slope and intercept are missing" in said(scan)


def little_tissue(dataset):
    """A head that is a small part of the picture, whose padding lies far below."""
    values = np.zeros((SIDE, SIDE), int)
    values[14:18, 14:18] = 1064
    values[0] = -1500
    store(dataset, values)


@pytest.mark.parametrize(("signed", "content"), [(0, zoomed), (1, little_tissue)])
def test_a_ct_without_rescale_tags_and_without_evidence_is_refused(tmp_path, signed, content):
    def edit(dataset, k):
        in_hounsfield_already(dataset, k)
        content(dataset)
        dataset.PixelRepresentation = signed

    fault = rejection(write(tmp_path, edit))
    assert fault.reason is Reason.UNSUPPORTED_UNIT
    assert "rescale" in fault.message


def test_padding_at_minus_1024_is_no_air(tmp_path):
    def edit(dataset, k):
        NO_RESCALE(dataset, k)
        values = stored(dataset)
        values[:4] = -1024
        store(dataset, values)

    assert read(write(tmp_path, edit)).voxels_XYZ[16, 16, 0] == BRAIN


def test_hounsfield_units_stored_without_negatives_keep_their_bone(tmp_path):
    def edit(dataset, k):
        dataset.RescaleIntercept = 0
        store(dataset, np.maximum(head_hu(), 0))

    scan = read(write(tmp_path, edit))
    np.testing.assert_array_equal(scan.voxels_XYZ[:, :, 0].T, np.maximum(head_hu(), 0))


def test_a_small_head_in_a_wide_picture_gets_its_lost_intercept_back(tmp_path):
    def edit(dataset, k):
        NO_RESCALE(dataset, k)
        values = np.zeros((SIDE, SIDE), int)
        values[14:18, 14:18] = 1064
        store(dataset, values)

    assert read(write(tmp_path, edit)).voxels_XYZ[[0, 16], 16, 0].tolist() == [-1024, 40]


# --- units


def test_numbers_that_cannot_reach_from_air_to_water_are_no_hounsfield_units(tmp_path):
    (tmp_path / "slope").mkdir()
    (tmp_path / "bits").mkdir()

    def small_slope(dataset, k):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.01, 0

    def eight_bits(dataset, k):
        dataset.RescaleIntercept = 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        store(dataset, np.clip(head_hu() + 40, 0, 255), "u1")

    for name, edit in {"slope": small_slope, "bits": eight_bits}.items():
        assert rejection(write(tmp_path / name, edit)).reason is Reason.UNSUPPORTED_UNIT


def test_a_negative_slope_is_believed_where_it_gives_hounsfield_units(tmp_path):
    (tmp_path / "right").mkdir()
    (tmp_path / "wrong").mkdir()

    def wrong(dataset, k):
        dataset.RescaleSlope, dataset.RescaleIntercept = -1, 3000

    def right(dataset, k):
        wrong(dataset, k)
        store(dataset, 3000 - head_hu())

    assert_head(read(write(tmp_path / "right", right)))
    assert "negative" in rejection(write(tmp_path / "wrong", wrong)).message


@pytest.mark.parametrize("kind", ["MGML", "Z_EFF", "ED", "HU_MOD", "something new"])
def test_a_map_of_something_else_is_no_ct(tmp_path, kind):
    def edit(dataset, k):
        dataset.RescaleType = kind

    fault = rejection(write(tmp_path, edit))
    assert fault.reason is Reason.UNSUPPORTED_UNIT
    assert "RescaleType" in fault.message
    assert "new" not in fault.message


def test_rescale_type_hu_needs_no_evidence(tmp_path):
    def edit(dataset, k):
        dataset.RescaleType = "HU"
        dataset.SeriesDescription = "CTA with iodine"
        zoomed(dataset)

    assert read(write(tmp_path, edit)).unit == "HU"


@pytest.mark.parametrize("element", ["RescaleType", "SeriesDescription"])
def test_an_open_unit_is_settled_by_the_pixels(tmp_path, element):
    (tmp_path / "hu").mkdir()
    (tmp_path / "map").mkdir()

    def edit(dataset, k):
        setattr(dataset, element, {"RescaleType": "US", "SeriesDescription": "Iodine Map 0.6"}[element])

    def scaled(dataset, k):
        edit(dataset, k)
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.01, 0

    assert_head(read(write(tmp_path / "hu", edit)))
    assert rejection(write(tmp_path / "map", scaled)).reason is Reason.UNSUPPORTED_UNIT


def test_the_image_type_of_a_material_map_is_believed(tmp_path):
    def edit(dataset, k):
        dataset.ImageType = ["DERIVED", "PRIMARY", "AXIAL", "EFF_ATOMIC_NUM"]

    assert rejection(write(tmp_path, edit)).reason is Reason.UNSUPPORTED_UNIT


def mapping(unit, slope, intercept):
    units = items(CodeValue=unit, CodingSchemeDesignator="UCUM", CodeMeaning="unit")
    return items(MeasurementUnitsCodeSequence=units, RealWorldValueSlope=slope, RealWorldValueIntercept=intercept)


def test_a_real_world_value_mapping_tells_another_unit(tmp_path):
    def edit(dataset, k):
        dataset.RealWorldValueMappingSequence = mapping("mg/mL", 0.1, 0.0)

    assert rejection(write(tmp_path, edit)).reason is Reason.UNSUPPORTED_UNIT


def test_a_real_world_value_mapping_to_hounsfield_units_stands_in_for_the_rescale_tags(tmp_path):
    def edit(dataset, k):
        NO_RESCALE(dataset, k)
        dataset.RealWorldValueMappingSequence = mapping("[hnsf'U]", 1.0, -1024.0)

    assert_head(read(write(tmp_path, edit)))


def write_enhanced(path, kinds, **shared):
    """An enhanced CT; `kinds` are the frames' rescale types, None for a frame without rescaling."""
    dataset = picture(head_hu(), 0)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(dataset, name)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ENHANCED_CT
    dataset.NumberOfFrames, dataset.PixelData = len(kinds), dataset.PixelData * len(kinds)
    orientation = items(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    dataset.SharedFunctionalGroupsSequence = items(
        PixelMeasuresSequence=items(PixelSpacing=[4, 4]), PlaneOrientationSequence=orientation, **shared
    )
    frames = []
    for k, kind in enumerate(kinds):
        (frame,) = items(PlanePositionSequence=items(ImagePositionPatient=[0, 0, 4.0 * k]))
        if kind is not None:
            transformation = items(RescaleSlope=1, RescaleIntercept=-1024, RescaleType=kind)
            frame.PixelValueTransformationSequence = transformation
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    dataset.save_as(path, enforce_file_format=True)


def test_frames_of_an_enhanced_ct_are_held_to_the_same_rules(tmp_path):
    for name in ("hu", "map", "some"):
        (tmp_path / name).mkdir()
    write_enhanced(tmp_path / "hu" / "a.dcm", ["HU"] * 6)
    write_enhanced(tmp_path / "map" / "a.dcm", ["Z_EFF"] * 6)
    write_enhanced(tmp_path / "some" / "a.dcm", ["HU", None, "HU", "HU", None, "HU"])
    assert_head(read(tmp_path / "hu"))
    assert rejection(tmp_path / "map").reason is Reason.UNSUPPORTED_UNIT
    assert_head(read(tmp_path / "some"))


def test_the_mapping_of_an_enhanced_ct_is_read_from_its_functional_groups(tmp_path):
    write_enhanced(tmp_path / "a.dcm", [None] * 6, RealWorldValueMappingSequence=mapping("mg/mL", 0.1, 0.0))
    assert rejection(tmp_path).reason is Reason.UNSUPPORTED_UNIT


def as_pet(dataset, k):
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = PET
    dataset.Modality, dataset.CorrectedImage = "PT", ["ATTN", "DECY"]
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.Units = 0.5, 0, "BQML"
    store(dataset, head_hu() + 1024)


def test_pet_is_activity_only_where_the_header_says_so(tmp_path):
    units = {}
    for name, change in {
        "activity": lambda dataset, k: None,
        "uptake": lambda dataset, k: setattr(dataset, "Units", "GML"),
        "stored": NO_RESCALE,
    }.items():
        (tmp_path / name).mkdir()
        scan = read(write(tmp_path / name, lambda dataset, k, change=change: (as_pet(dataset, k), change(dataset, k))))
        units[name] = scan.unit
    assert units == {"activity": "Bq/ml", "uptake": "arbitrary", "stored": "arbitrary"}


@pytest.mark.parametrize("lacking", [lambda k: True, lambda k: k % 3 == 1])
def test_pet_without_intercepts_keeps_the_slope_of_each_slice(tmp_path, lacking):
    def edit(dataset, k):
        as_pet(dataset, k)
        dataset.RescaleSlope = 0.5 * (k + 1)
        if lacking(k):
            del dataset.RescaleIntercept

    scan = read(write(tmp_path, edit))
    assert scan.unit == "Bq/ml"
    assert scan.voxels_XYZ[16, 16].tolist() == [(BRAIN + 1024) * 0.5 * (k + 1) for k in range(SLICES)]
    assert "intercept is missing" in said(scan)


def test_pet_without_the_slope_of_some_slices_is_refused(tmp_path):
    def edit(dataset, k):
        as_pet(dataset, k)
        dataset.RescaleSlope = 0.5 * (k + 1)
        if k == 4:
            del dataset.RescaleSlope

    assert rejection(write(tmp_path, edit)).reason is Reason.BAD_INTENSITY


def test_pet_slices_in_different_units_are_no_volume(tmp_path):
    def edit(dataset, k):
        as_pet(dataset, k)
        dataset.Units = "BQML" if k < SLICES // 2 else "CNTS"

    assert rejection(write(tmp_path, edit)).reason is Reason.UNSUPPORTED_UNIT


def as_mr(dataset, k):
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MR
    dataset.Modality, dataset.RescaleIntercept = "MR", 0
    store(dataset, head_hu() + 1024)


def test_a_private_scale_that_differs_between_mr_slices_is_taken_out(tmp_path):
    def edit(dataset, k):
        as_mr(dataset, k)
        scale = 1.0 + k % 2
        dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True).add_new(0x0E, "FL", scale)
        dataset.RescaleSlope = 2.0 / scale
        store(dataset, (head_hu() + 1024) * scale)

    scan = read(write(tmp_path, edit))
    assert scan.voxels_XYZ[16, 16].tolist() == [1064.0] * SLICES
    assert "private scale slope" in said(scan)


# --- grey scales


def test_palette_colours_are_refused_without_taking_the_series_along(tmp_path):
    write(tmp_path)
    capture = picture(head_hu(), 50)
    capture.PhotometricInterpretation = "PALETTE COLOR"
    capture.save_as(tmp_path / "capture.dcm", enforce_file_format=True)
    assert_head(read(tmp_path))
    (refused,) = [volume.rejection for volume in volumes(tmp_path) if volume.rejection]
    assert refused.reason is Reason.UNSUPPORTED_ENCODING
    assert "PALETTE" in refused.message


def invert(dataset, k):
    dataset.PhotometricInterpretation = "MONOCHROME1"
    store(dataset, 4095 - stored(dataset))


def label_only(dataset, k):
    dataset.PhotometricInterpretation = "MONOCHROME1"


@pytest.mark.parametrize("change", [invert, label_only])
def test_an_mr_in_monochrome1_has_dark_air(tmp_path, change):
    scan = read(write(tmp_path, lambda dataset, k: (as_mr(dataset, k), change(dataset, k))))
    values = scan.voxels_XYZ.astype(int)
    assert (values[16, 16] - values[0, 0]).tolist() == [BRAIN - AIR] * SLICES
    assert "MONOCHROME1" in said(scan)


def test_an_mr_in_monochrome1_without_visible_air_is_refused(tmp_path):
    def edit(dataset, k):
        as_mr(dataset, k)
        store(dataset, np.full((SIDE, SIDE), 1000) + np.arange(SIDE))
        label_only(dataset, k)

    fault = rejection(write(tmp_path, edit))
    assert fault.reason is Reason.BAD_INTENSITY
    assert "MONOCHROME1" in fault.message


def test_monochrome1_does_not_touch_hounsfield_units_but_inverted_ones_are_refused(tmp_path):
    (tmp_path / "right").mkdir()
    (tmp_path / "inverted").mkdir()
    assert_head(read(write(tmp_path / "right", label_only)))
    assert "MONOCHROME1" in rejection(write(tmp_path / "inverted", invert)).message


def test_monochrome1_in_some_slices_of_an_mr_only_is_refused(tmp_path):
    def edit(dataset, k):
        as_mr(dataset, k)
        if k % 2:
            invert(dataset, k)

    assert rejection(write(tmp_path, edit)).reason is Reason.BAD_INTENSITY


def test_a_missing_photometric_interpretation_is_noted(tmp_path):
    scan = read(write(tmp_path, drop("PhotometricInterpretation")))
    assert_head(scan)
    assert "PhotometricInterpretation is missing" in said(scan)


# --- signs and bits


@pytest.mark.parametrize("bits", [16, 12])
@pytest.mark.parametrize("intercept", [0, -1024])
def test_a_missing_pixel_representation_is_told_by_the_pixels(tmp_path, intercept, bits):
    def edit(dataset, k):
        dataset.BitsStored, dataset.HighBit = bits, bits - 1
        if bits == 12:
            store(dataset, stored(dataset) & 0x0FFF)
        del dataset.PixelRepresentation

    scan = read(write(tmp_path, edit, intercept=intercept))
    assert_head(scan)
    assert "PixelRepresentation is missing" in said(scan)


def test_padding_far_below_air_tells_the_sign_of_the_pixels(tmp_path):
    def edit(dataset, k):
        values = stored(dataset)
        values[:3] = -2000
        store(dataset, values)
        del dataset.PixelRepresentation

    scan = read(write(tmp_path, edit))
    assert scan.voxels_XYZ[16, [0, 1, 2, 16], 0].tolist() == [-1024, -1024, -1024, BRAIN]


def test_signed_mr_without_pixel_representation_keeps_its_noise_around_zero(tmp_path):
    phase = np.rint(np.random.default_rng(0).normal(0, 50, (SIDE, SIDE))).astype(int)

    def edit(dataset, k):
        as_mr(dataset, k)
        store(dataset, phase)
        del dataset.PixelRepresentation

    np.testing.assert_array_equal(read(write(tmp_path, edit)).voxels_XYZ[:, :, 0].T, phase)


def test_bright_unsigned_mr_without_pixel_representation_stays_bright(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 65000, SIDE).astype(int), (SIDE, SIDE))

    def edit(dataset, k):
        as_mr(dataset, k)
        store(dataset, ramp, "<u2")
        del dataset.PixelRepresentation

    np.testing.assert_array_equal(read(write(tmp_path, edit)).voxels_XYZ[:, :, 0].T, ramp)


def either_sign(dataset, *, signed):
    """Twelve bits that are 3000 or -1096, both of which a CT may hold."""
    store(dataset, np.full((SIDE, SIDE), 3000))
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, int(signed)
    dataset.SmallestImagePixelValue = -1096 if signed else 3000


def write_either_sign(folder, *, signed, gone):
    """Write such a CT, and take the bytes of elements out that pydicom would not write without each other."""
    for k in range(SLICES):
        dataset = picture(head_hu(), k, intercept=0)
        either_sign(dataset, signed=signed)
        dataset.save_as(folder / f"{k:02d}.dcm", enforce_file_format=True)
        content = (folder / f"{k:02d}.dcm").read_bytes()
        for tag in gone(k):
            assert content.count(tag) == 1
            at = content.index(tag)
            content = content[:at] + content[at + 10 :]
        (folder / f"{k:02d}.dcm").write_bytes(content)
    return folder


REPRESENTATION, SMALLEST = b"\x28\x00\x03\x01US", b"\x28\x00\x06\x01"


@pytest.mark.parametrize("signed", [True, False])
def test_a_sign_that_the_pixels_do_not_tell_is_that_of_other_elements(tmp_path, signed):
    scan = read(write_either_sign(tmp_path, signed=signed, gone=lambda k: [REPRESENTATION]))
    assert set(scan.voxels_XYZ.ravel().tolist()) == {-1024 if signed else 3000}


@pytest.mark.parametrize("signed", [True, False])
def test_a_sign_that_the_pixels_do_not_tell_is_that_of_the_other_slices(tmp_path, signed):
    gone = [REPRESENTATION, SMALLEST]
    scan = read(write_either_sign(tmp_path, signed=signed, gone=lambda k: gone if k % 3 == 1 else []))
    assert set(scan.voxels_XYZ.ravel().tolist()) == {-1024 if signed else 3000}


def test_a_ct_whose_sign_nothing_tells_is_refused(tmp_path):
    fault = rejection(write_either_sign(tmp_path, signed=True, gone=lambda k: [REPRESENTATION, SMALLEST]))
    assert fault.reason is Reason.MISSING_METADATA
    assert "PixelRepresentation" in fault.message


def test_pixels_that_are_plainly_signed_overrule_the_header(tmp_path):
    def edit(dataset, k):
        dataset.PixelRepresentation = 0

    scan = read(write(tmp_path, edit, intercept=0))
    assert_head(scan)
    assert "plainly signed" in said(scan)


def test_signs_and_bit_depths_may_differ_within_a_series(tmp_path):
    def edit(dataset, k):
        if k % 3 == 1:
            dataset.RescaleIntercept = 0
            store(dataset, head_hu())
        elif k % 3 == 2:
            dataset.BitsStored, dataset.HighBit = 12, 11

    assert_head(read(write(tmp_path, edit)))


def test_more_bits_than_bits_stored_says_are_read_where_they_belong_to_the_pixels(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 8000, SIDE).astype(int), (SIDE, SIDE))

    def edit(dataset, k):
        as_mr(dataset, k)
        store(dataset, ramp)
        dataset.BitsStored, dataset.HighBit = 12, 11

    scan = read(write(tmp_path, edit))
    np.testing.assert_array_equal(scan.voxels_XYZ[:, :, 0].T, ramp)
    assert "BitsStored" in said(scan)


def test_signed_pixels_below_what_bits_stored_allows_are_read_whole(tmp_path):
    def edit(dataset, k):
        values = stored(dataset)
        values[:3] = -3024
        store(dataset, values)
        dataset.BitsStored, dataset.HighBit = 12, 11

    scan = read(write(tmp_path, edit, intercept=0))
    assert scan.voxels_XYZ[16, [0, 16], 0].tolist() == [-1024, BRAIN]


def test_an_overlay_in_the_unused_bits_is_cut_off_and_noted(tmp_path):
    def edit(dataset, k):
        values = stored(dataset)
        values[10:12, 10:20] |= 0x1000
        store(dataset, values)
        dataset.BitsStored, dataset.HighBit = 12, 11

    assert_head(read(write(tmp_path, edit)))


def test_a_high_bit_that_the_pixels_contradict_is_not_believed(tmp_path):
    def edit(dataset, k):
        dataset.BitsStored, dataset.HighBit = 12, 15

    scan = read(write(tmp_path, edit))
    assert_head(scan)
    assert "HighBit" in said(scan)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_pixels_without_pixel_representation_are_read(tmp_path, syntax):
    for k in range(SLICES):
        dataset = picture(head_hu(), k)
        dataset.compress(syntax, generate_instance_uid=False)
        del dataset.PixelRepresentation
        dataset.save_as(tmp_path / f"{k}.dcm", enforce_file_format=True)
    assert_head(read(tmp_path))


# --- floats


def to_float(dataset, dtype, factor=1.0):
    values = stored(dataset).astype(dtype) * factor
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, name)
    dataset.BitsAllocated = values.dtype.itemsize * 8
    name = "FloatPixelData" if values.dtype.itemsize == 4 else "DoubleFloatPixelData"
    setattr(dataset, name, values.tobytes())
    return values


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_float_pixels_are_read(tmp_path, dtype):
    scan = read(write(tmp_path, lambda dataset, k: to_float(dataset, dtype)))
    assert scan.voxels_XYZ.dtype == np.float32
    assert_head(scan)


def test_the_padding_of_float_pixels_becomes_air(tmp_path):
    def edit(dataset, k):
        values = to_float(dataset, "<f4")
        values[:3] = 99999
        dataset.FloatPixelData, dataset.FloatPixelPaddingValue = values.tobytes(), 99999.0

    assert read(write(tmp_path, edit)).voxels_XYZ[16, [0, 16], 0].tolist() == [-1024, BRAIN]


def test_doubles_beyond_single_precision_are_refused(tmp_path):
    fault = rejection(write(tmp_path, lambda dataset, k: to_float(dataset, "<f8", 1e300)))
    assert fault.reason is Reason.BAD_INTENSITY
    assert "double" in fault.message


@pytest.mark.parametrize(("bits", "right"), [(64, True), (16, False)])
def test_float_pixels_with_the_wrong_number_of_bits_are_named(tmp_path, bits, right):
    def edit(dataset, k):
        to_float(dataset, "<f4")
        dataset.BitsAllocated = bits

    write(tmp_path, edit)
    if right:
        assert_head(read(tmp_path))
    else:
        fault = rejection(tmp_path)
        assert fault.reason is Reason.UNSUPPORTED_ENCODING
        assert "float" in fault.message


def test_float_pixels_that_end_early_are_truncated(tmp_path):
    write(tmp_path, lambda dataset, k: to_float(dataset, "<f4"))
    last = tmp_path / "03.dcm"
    last.write_bytes(last.read_bytes()[:-100])
    assert rejection(tmp_path).reason is Reason.TRUNCATED


def test_float_pixels_are_read_in_other_encodings_too(tmp_path):
    for name, options in {
        "implicit": {"implicit_vr": True},
        "big": {"implicit_vr": False, "little_endian": False},
    }.items():
        (tmp_path / name).mkdir()
        for k in range(SLICES):
            dataset = picture(head_hu(), k)
            values = to_float(dataset, "<f4")
            big = name == "big"
            dataset.FloatPixelData = values.astype(">f4" if big else "<f4").tobytes()
            dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian if big else ImplicitVRLittleEndian
            dataset.save_as(tmp_path / name / f"{k:02d}.dcm", **({"little_endian": True} | options))
        assert_head(read(tmp_path / name))


def test_a_parametric_map_object_is_refused_for_what_it_is(tmp_path):
    def edit(dataset, k):
        to_float(dataset, "<f4")
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.30"

    fault = rejection(write(tmp_path, edit))
    assert fault.reason is Reason.DERIVED
    assert "parametric map" in fault.message


# --- padding


def test_padding_among_the_values_of_an_mr_is_not_believed(tmp_path):
    def edit(dataset, k):
        as_mr(dataset, k)
        dataset.PixelPaddingValue = BRAIN + 1024

    scan = read(write(tmp_path, edit))
    assert scan.voxels_XYZ[16, 16, 0] == BRAIN + 1024
    assert "not applied" in said(scan)


def test_padding_below_all_values_of_an_mr_becomes_zero(tmp_path):
    def edit(dataset, k):
        as_mr(dataset, k)
        values = stored(dataset)
        values[:3] = -2000
        store(dataset, values)
        dataset.PixelPaddingValue = -2000

    scan = read(write(tmp_path, edit))
    assert scan.voxels_XYZ[16, [0, 16], 0].tolist() == [0, BRAIN + 1024]


def test_a_padding_range_that_reaches_into_tissue_is_not_believed(tmp_path):
    def edit(dataset, k):
        dataset.PixelPaddingValue, dataset.PixelPaddingRangeLimit = -2000, BRAIN

    scan = read(write(tmp_path, edit, intercept=0))
    assert_head(scan)
    assert "not applied" in said(scan)
