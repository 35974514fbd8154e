"""Synthetic DICOM series: true places for every voxel, and every picture in a volume or refused."""

from __future__ import annotations

import math
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from harmonize.dicom import Rules, find_files, find_volumes, load_volume, reload_volume
from harmonize.errors import Reason, Rejection

CT, MR, PET = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"
ENHANCED_MR, CAPTURE = "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.7"
STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
SERIES = "1.2.3.4"


def write_picture(path, pixels, **elements):
    """Write a single-frame file; `elements` replace the defaults, and None leaves one out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    defaults = {
        "SOPClassUID": MR,
        "SOPInstanceUID": generate_uid(),
        "SeriesInstanceUID": SERIES,
        "Modality": "MR",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImagePositionPatient": [0, 0, 0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1, 1],
        "Rows": pixels.shape[-2],
        "Columns": pixels.shape[-1],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelData": pixels.tobytes(),
    }
    for name, value in (defaults | elements).items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", MR)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2")
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_series(folder, offsets=range(6), *, name="", value=lambda k: k, **elements):
    """Write an axial series whose picture at offset number k is filled with `value(k)`."""
    for k, offset in enumerate(offsets):
        own = {key: item(k) if callable(item) else item for key, item in elements.items()}
        pixels = np.full((4, 5), value(k), np.int16)
        own.setdefault("ImagePositionPatient", [0, 0, float(offset)])
        own.setdefault("InstanceNumber", k + 1)
        write_picture(folder / f"{name}{k:03d}.dcm", pixels, **own)


def volumes(folder, **rules):
    return find_volumes(find_files(folder), Rules(**rules))


def read(folder, **rules):
    (volume,) = [volume for volume in volumes(folder, **rules) if volume.rejection is None]
    return load_volume(volume)


def refusals(folder, **rules):
    return {volume.rejection.reason for volume in volumes(folder, **rules) if volume.rejection}


# --- places


@st.composite
def series(draw):
    """Slice positions (N, 3), orientation and spacing of a series with any orientation, tilt, gaps and lost slices."""
    angles = [draw(st.floats(-math.pi, math.pi)) for _ in range(3)]
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [n for n in range(3) if n != axis]
        step = np.eye(3)
        step[[i, i, j, j], [i, j, i, j]] = [math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)]
        turn = turn @ step
    count = draw(st.integers(4, 9))
    if draw(st.booleans()):
        gaps = draw(st.lists(st.floats(2.0, 7.0), min_size=count, max_size=count))
    else:
        step = draw(st.floats(0.4, 6.0))
        gaps = [step] * count
        for lost in draw(st.lists(st.integers(0, count - 1), max_size=2)):
            gaps[lost] += step
    shear = np.tan(np.radians([draw(st.floats(-30, 30)), draw(st.floats(-30, 30))]))
    advance = turn[0] * shear[0] + turn[1] * shear[1] + turn[2]
    start = np.array([draw(st.floats(-200, 200)) for _ in range(3)])
    positions = start + np.concatenate([[0], np.cumsum(gaps)])[:, None] * advance
    spacing = [draw(st.floats(0.3, 3)), draw(st.floats(0.3, 3))]
    return positions, turn[:2], spacing


@given(series=series(), axis=st.integers(0, 2), seed=st.integers(0, 2**16), copies=st.integers(0, 2))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_voxel_that_holds_its_own_coordinate_is_read_at_that_place(series, axis, seed, copies):
    positions, directions, spacing = series
    rows, columns, slope = 4, 5, 0.02
    shuffled = random.Random(seed)
    names = [f"{number:04d}" for number in range(len(positions) + copies)]
    shuffled.shuffle(names)
    chosen = [*range(len(positions)), *(shuffled.randrange(len(positions)) for _ in range(copies))]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, k in zip(names, chosen, strict=True):
            row, column = np.mgrid[:rows, :columns]
            place = (
                positions[k]
                + column[..., None] * spacing[1] * directions[0]
                + row[..., None] * spacing[0] * directions[1]
            )
            write_picture(
                folder / name[:2] / f"{name}.dcm",
                np.rint(place[..., axis] / slope).astype(np.int16),
                ImagePositionPatient=[f"{value:.8f}" for value in positions[k]],
                ImageOrientationPatient=[f"{value:.12f}" for value in directions.ravel()],
                PixelSpacing=[f"{value:.12f}" for value in spacing],
                RescaleSlope=slope,
                RescaleIntercept=0,
                InstanceNumber=shuffled.randrange(1000),
            )
        scan = read(folder)
    index = np.stack(np.indices(scan.voxels_XYZ.shape).reshape(3, -1)).astype(float)
    if scan.slice_offsets is not None:
        assert (np.diff(scan.slice_offsets) > 0).all()
        index[2] = scan.slice_offsets[index[2].astype(int)]
    found = (scan.affine @ np.vstack([index, np.ones(index.shape[1])]))[axis]
    held = scan.voxels_XYZ.reshape(-1) * (-1 if axis < 2 else 1)
    assert scan.voxels_XYZ.shape == (columns, rows, len(positions))
    assert abs(found - held).max() < 0.05


def test_file_names_and_instance_numbers_do_not_order_the_slices(tmp_path):
    offsets = [6.0, 0.0, 4.0, 2.0, 8.0]
    write_series(tmp_path, offsets, value=lambda k: int(offsets[k]))
    assert read(tmp_path).voxels_XYZ[0, 0].tolist() == [0, 2, 4, 6, 8]


def test_slice_thickness_and_spacing_elements_are_not_believed(tmp_path):
    write_series(tmp_path, [0, 3, 6, 9], SliceThickness=8, SpacingBetweenSlices=1, GantryDetectorTilt=20)
    np.testing.assert_allclose(read(tmp_path).affine[:3, 2], [0, 0, 3])


def test_enhanced_multiframe_takes_geometry_and_slope_of_each_frame(tmp_path):
    frames = []
    order = [2, 0, 3, 1]
    for k in order:
        frame, plane, rescale = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = [0, 0, 2.5 * k]
        rescale.RescaleSlope, rescale.RescaleIntercept = k + 1, 10
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = Sequence([plane]), Sequence([rescale])
        frames.append(frame)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient, measures.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.5, 0.75]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    write_picture(
        tmp_path / "a.dcm",
        np.full((4, 4, 5), 7, np.int16),
        SOPClassUID=ENHANCED_MR,
        NumberOfFrames=4,
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        PixelSpacing=None,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )
    scan = read(tmp_path)
    np.testing.assert_allclose(np.diag(scan.affine), [-0.75, -0.5, 2.5, 1])
    assert scan.voxels_XYZ[0, 0].tolist() == [17, 24, 31, 38]


def write_stripped_multiframe(path, frames=6, **elements):
    gone = dict.fromkeys(["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
    pixels = np.arange(frames, dtype=np.int16)[:, None, None] + np.zeros((4, 5), np.int16)
    write_picture(path, pixels, **(gone | {"SOPClassUID": ENHANCED_MR, "SeriesInstanceUID": None} | elements))


def test_multiframe_without_geometry_is_refused(tmp_path):
    write_stripped_multiframe(tmp_path / "a.dcm")
    assert refusals(tmp_path) == {Reason.MISSING_METADATA}


def test_multiframe_without_geometry_or_frame_number_is_read_where_the_source_allows_it(tmp_path):
    write_stripped_multiframe(tmp_path / "a.dcm", PixelSpacing=[0.5, 0.5], SpacingBetweenSlices=0.8)
    scan = read(tmp_path, assume_geometry=True)
    np.testing.assert_allclose(np.diag(scan.affine), [-0.5, -0.5, 0.8, 1])
    assert scan.voxels_XYZ[0, 0].tolist() == list(range(6))
    assert any("assumed" in line for line in scan.decisions)


def test_frames_of_a_compressed_file_are_counted_where_their_number_is_gone(tmp_path):
    write_stripped_multiframe(tmp_path / "a.dcm", NumberOfFrames=6)
    dataset = dcmread(tmp_path / "a.dcm")
    dataset.compress(RLELossless)
    del dataset.NumberOfFrames
    dataset.save_as(tmp_path / "a.dcm")
    assert read(tmp_path, assume_geometry=True).voxels_XYZ[0, 0].tolist() == list(range(6))


def test_classic_multiframe_with_one_position_is_refused(tmp_path):
    write_picture(tmp_path / "a.dcm", np.zeros((6, 4, 5), np.int16), NumberOfFrames=6)
    assert refusals(tmp_path) == {Reason.MISSING_METADATA}


# --- which pictures make a volume


@pytest.mark.parametrize(
    ("element", "first", "second", "named"),
    [
        ("EchoTime", 5, 80, "echo time"),
        ("DiffusionBValue", 0.0, 1000.0, "b-value"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"], "image type"),
        ("TemporalPositionIdentifier", 1, 2, "temporal position"),
        ("AcquisitionNumber", 1, 2, "acquisition number"),
    ],
)
def test_volumes_at_the_same_positions_are_told_apart(tmp_path, element, first, second, named):
    write_series(tmp_path, name="a", value=lambda k: k, **{element: first})
    write_series(tmp_path, name="b", value=lambda k: k + 100, **{element: second})
    scans = [load_volume(volume) for volume in volumes(tmp_path)]
    assert [scan.voxels_XYZ[0, 0, 0] for scan in scans] == [0, 100]
    assert all(named in " ".join(scan.decisions) for scan in scans)


def test_four_echoes_at_three_times_are_twelve_volumes(tmp_path):
    for echo in range(4):
        for moment in range(3):
            write_series(
                tmp_path,
                name=f"{echo}{moment}",
                value=lambda k, mark=echo * 10 + moment: mark,
                EchoTime=10 + echo,
                TemporalPositionIdentifier=moment + 1,
            )
    marks = [int(load_volume(volume).voxels_XYZ[0, 0, 0]) for volume in volumes(tmp_path)]
    assert marks == [echo * 10 + moment for echo in range(4) for moment in range(3)]


def test_a_counter_that_changes_within_the_scan_does_not_split_it(tmp_path):
    image_type = ["ORIGINAL", "PRIMARY", "AXIAL"]
    write_series(
        tmp_path, AcquisitionNumber=lambda k: k, ImageType=lambda k: [*image_type, "ADD"] if k < 3 else image_type
    )
    assert read(tmp_path).voxels_XYZ.shape == (5, 4, 6)


def test_files_exported_twice_are_dropped(tmp_path):
    write_series(tmp_path, name="a", AcquisitionNumber=lambda k: k)
    write_series(tmp_path, name="b", AcquisitionNumber=lambda k: k)
    scan = read(tmp_path)
    assert scan.voxels_XYZ[0, 0].tolist() == list(range(6))
    assert any("6 dropped" in line for line in scan.decisions)


def test_different_pictures_at_one_place_without_a_telling_header_are_refused(tmp_path):
    write_series(tmp_path, name="a", InstanceNumber=1)
    write_series(tmp_path, name="b", InstanceNumber=1, value=lambda k: 50)
    with pytest.raises(Rejection) as caught:
        read(tmp_path)
    assert caught.value.reason is Reason.REPEATED_POSITIONS


def test_volumes_told_apart_only_by_instance_order_give_the_first(tmp_path):
    write_series(tmp_path, name="a", InstanceNumber=lambda k: 10 + k, value=lambda k: 50)
    write_series(tmp_path, name="b", InstanceNumber=lambda k: 1 + k)
    scan = read(tmp_path)
    assert scan.voxels_XYZ[0, 0].tolist() == list(range(6))
    assert any("first is kept" in line for line in scan.decisions)


def test_all_slices_at_one_position_are_refused_as_one(tmp_path):
    write_series(tmp_path, [5.0] * 8, AcquisitionNumber=lambda k: k)
    (volume,) = volumes(tmp_path)
    assert volume.rejection.reason is Reason.REPEATED_POSITIONS


def test_the_largest_of_several_orientations_is_kept_and_the_others_are_recorded(tmp_path):
    write_series(tmp_path, name="a")
    write_series(
        tmp_path,
        range(4),
        name="b",
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
        ImagePositionPatient=lambda k: [k, 0, 0],
    )
    assert read(tmp_path).voxels_XYZ.shape == (5, 4, 6)
    assert refusals(tmp_path) == {Reason.MIXED_GEOMETRY}


def test_a_scout_in_the_series_is_refused_alone(tmp_path):
    write_series(tmp_path, SOPClassUID=CT, Modality="CT")
    write_picture(
        tmp_path / "scout.dcm",
        np.zeros((9, 9), np.int16),
        SOPClassUID=CT,
        Modality="CT",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    assert read(tmp_path).voxels_XYZ.shape == (5, 4, 6)
    assert refusals(tmp_path) == {Reason.LOCALIZER}


def test_a_stack_with_a_large_hole_is_cut_in_two(tmp_path):
    write_series(tmp_path, [0, 2, 4, 6, 40, 42, 44, 46, 48])
    scans = [load_volume(volume) for volume in volumes(tmp_path)]
    assert [scan.voxels_XYZ.shape[2] for scan in scans] == [4, 5]
    np.testing.assert_allclose(scans[1].affine[2, 3], 40)


def test_a_stray_slice_beyond_a_hole_is_refused_and_the_rest_is_kept(tmp_path):
    write_series(tmp_path, [0, 2, 4, 6, 90])
    assert read(tmp_path).voxels_XYZ.shape[2] == 4
    assert refusals(tmp_path) == {Reason.MISSING_SLICES}


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"SOPClassUID": CAPTURE}, Reason.DERIVED),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, Reason.DERIVED),
        ({"ImageType": ["DERIVED", "PRIMARY", "PROJECTION IMAGE", "MIP"]}, Reason.DERIVED),
        ({"SeriesDescription": "3-plane localizer"}, Reason.LOCALIZER),
        ({"SOPClassUID": PET, "Modality": "PT", "CorrectedImage": ["DECY", "SCAT"]}, Reason.DERIVED),
        ({"SOPClassUID": PET, "Modality": "PT", "SeriesDescription": "PET NO AC"}, Reason.DERIVED),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.12.1", "Modality": "XA"}, Reason.UNSUPPORTED_MODALITY),
        ({"ImagePositionPatient": None}, Reason.MISSING_METADATA),
        ({"PixelSpacing": None}, Reason.MISSING_METADATA),
        ({"Rows": None}, Reason.MISSING_METADATA),
        ({"PixelSpacing": [0, 0]}, Reason.BAD_GEOMETRY),
        ({"PixelSpacing": [-1, 1]}, Reason.BAD_GEOMETRY),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, Reason.BAD_GEOMETRY),
        ({"NumberOfFrames": 2_000_000_000}, Reason.MISSING_METADATA),
    ],
)
def test_refusals_by_the_header(tmp_path, elements, reason):
    write_series(tmp_path, **elements)
    assert refusals(tmp_path) == {reason}
    assert all(volume.rejection for volume in volumes(tmp_path))


def test_reformats_are_read_where_the_source_allows_them(tmp_path):
    write_series(tmp_path, ImageType=["DERIVED", "SECONDARY", "MPR"])
    assert read(tmp_path, keep_derived=True).voxels_XYZ.shape == (5, 4, 6)


def test_an_original_secondary_series_is_a_scan(tmp_path):
    write_series(tmp_path, SOPClassUID=CT, Modality="CT", ImageType=["ORIGINAL", "SECONDARY", "AXIAL"])
    assert read(tmp_path).modality == "CT"


def test_attenuation_corrected_pet_keeps_activity_with_a_slope_for_each_slice(tmp_path):
    write_series(
        tmp_path,
        SOPClassUID=PET,
        Modality="PT",
        CorrectedImage=["DECY", "ATTN"],
        Units="BQML",
        RescaleSlope=lambda k: 0.5 * (k + 1),
        RescaleIntercept=0,
        value=lambda k: 10,
    )
    scan = read(tmp_path)
    assert (scan.modality, scan.unit, scan.voxels_XYZ.dtype) == ("PT", "Bq/ml", np.float32)
    assert scan.voxels_XYZ[0, 0].tolist() == [5, 10, 15, 20, 25, 30]


def test_objects_that_are_no_pictures_and_stray_files_are_skipped(tmp_path):
    write_series(tmp_path / "deep" / "er")
    write_picture(tmp_path / "rt.dcm", np.zeros((1, 1), np.int16), SOPClassUID=STRUCTURES, Modality="RTSTRUCT")
    write_picture(tmp_path / "DICOMDIR", np.zeros((1, 1), np.int16))
    write_picture(tmp_path / "._000.dcm", np.zeros((1, 1), np.int16))
    (tmp_path / "LICENSE").write_text("free text")
    assert len(volumes(tmp_path)) == 1


def test_files_without_a_suffix_are_found(tmp_path):
    write_series(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_suffix(""))
    assert read(tmp_path).voxels_XYZ.shape == (5, 4, 6)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", Reason.EMPTY), (b"no dicom at all", Reason.UNREADABLE), (b"\0" * 128 + b"DICM", Reason.UNREADABLE)],
)
def test_a_damaged_file_is_refused_without_taking_the_series_along(tmp_path, content, reason):
    write_series(tmp_path)
    (tmp_path / "bad.dcm").write_bytes(content)
    assert read(tmp_path).voxels_XYZ.shape == (5, 4, 6)
    assert refusals(tmp_path) == {reason}


def test_a_file_that_vanishes_after_discovery_is_a_rejection(tmp_path):
    write_series(tmp_path)
    (volume,) = volumes(tmp_path)
    volume.paths[2].unlink()
    with pytest.raises(Rejection) as caught:
        load_volume(volume)
    assert caught.value.reason is Reason.MISSING_FILE
    with pytest.raises(Rejection) as caught:
        reload_volume(volume.paths)
    assert caught.value.reason is Reason.MISSING_FILE


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(cut=st.floats(0, 1), noise=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8))
def test_damaged_bytes_never_crash_the_reader(tmp_path_factory, cut, noise):
    folder = tmp_path_factory.mktemp("damaged")
    write_series(folder, range(4))
    for path in folder.iterdir():
        content = bytearray(path.read_bytes())
        for place, byte in noise:
            content[int(place * (len(content) - 1))] = byte
        path.write_bytes(content[: max(1, int(cut * len(content)))])
    for volume in volumes(folder):
        try:
            scan = load_volume(volume)
        except Rejection:
            continue
        assert np.isfinite(scan.affine).all()
        assert abs(np.linalg.det(scan.affine[:3, :3])) > 0
