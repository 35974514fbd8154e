"""Right data are taken: what a word of the header says counts less than where the slices lie."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from harmonize.dicom import Rules, find_files, find_volumes, load_volume
from harmonize.errors import Reason

CT, MR, PET = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
AXIAL, CORONAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]
GATEWAY = Rules(keep_derived=True, assume_geometry=True)


def picture(modality, *, position=(0, 0, 0), orientation=AXIAL, frames=1, **elements):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    uid = "1.2." + ".".join(str(round(abs(10 * value))) for value in (*position, *orientation))
    pixels = np.arange(frames, dtype=np.int16)[:, None, None] + np.zeros((8, 8), np.int16)
    defaults = {
        "SOPClassUID": {"CT": CT, "MR": MR, "PT": PET}[modality],
        "SOPInstanceUID": uid,
        "SeriesInstanceUID": "1.2.3",
        "Modality": modality,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImagePositionPatient": list(position),
        "ImageOrientationPatient": orientation,
        "PixelSpacing": [2, 2],
        "RescaleSlope": 1,
        "RescaleIntercept": -5,
        "Rows": 8,
        "Columns": 8,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelData": pixels.tobytes(),
    }
    for name, value in (defaults | elements).items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = uid
    return dataset


def write_stack(folder, modality, count, *, step=4.0, orientation=AXIAL, name="a", **elements):
    normal = np.cross(orientation[:3], orientation[3:])
    for k in range(count):
        position = tuple((k * step * normal + 0.0).tolist())
        dataset = picture(modality, position=position, orientation=orientation, **elements)
        dataset.save_as(folder / f"{name}{k:02d}.dcm", enforce_file_format=True)
    return folder


def volumes(folder, rules=None):
    return find_volumes(find_files(folder), rules or Rules())


def accepted(folder, rules=None):
    return [load_volume(volume) for volume in volumes(folder, rules) if volume.rejection is None]


def refusals(folder):
    return {volume.rejection.reason for volume in volumes(folder) if volume.rejection}


# --- scouts


@pytest.mark.parametrize("description", ["LOC", "Lokalisation", None])
def test_three_planes_of_few_slices_are_an_mr_scout_in_any_language(tmp_path, description):
    for name, orientation in (("a", AXIAL), ("c", CORONAL), ("s", SAGITTAL)):
        write_stack(
            tmp_path, "MR", 5, step=10.0, orientation=orientation, name=name, SeriesDescription=description,
            SeriesNumber=1,
        )  # fmt: skip
    assert accepted(tmp_path) == []
    assert refusals(tmp_path) == {Reason.LOCALIZER}


def test_two_planes_or_a_full_stack_or_series_of_their_own_are_no_scout_without_a_word(tmp_path):
    planes = (("a", AXIAL), ("c", CORONAL), ("s", SAGITTAL))
    cases = {
        "two": [(name, orientation, 5, 1) for name, orientation in planes[:2]],
        "full": [(name, orientation, 12 if name == "a" else 5, 1) for name, orientation in planes],
        "numbers": [(name, orientation, 5, ord(name)) for name, orientation in planes],
    }
    for case, stacks in cases.items():
        (tmp_path / case).mkdir()
        for name, orientation, count, number in stacks:
            write_stack(tmp_path / case, "MR", count, orientation=orientation, name=name, SeriesNumber=number)
        assert accepted(tmp_path / case)
        assert Reason.LOCALIZER not in refusals(tmp_path / case)


WORDS = (
    "CTA HEAD (no scout)",
    "AX 5mm head, 3 plane recon",
    "HEAD post-topogram",
    "Survey of vessels",
    "localizer off",
)


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize(("modality", "count"), [("CT", 4), ("CT", 20), ("MR", 20), ("PT", 20)])
def test_a_full_stack_is_no_scout_whatever_its_description_mentions(tmp_path, modality, count, words):
    corrections = {"CorrectedImage": ["ATTN"], "Units": "BQML"} if modality == "PT" else {}
    (scan,) = accepted(write_stack(tmp_path, modality, count, SeriesDescription=words, **corrections))
    assert scan.voxels_XYZ.shape == (8, 8, count)
    assert any("full stack" in line for line in scan.decisions)


@pytest.mark.parametrize(("modality", "count"), [("CT", 1), ("CT", 2), ("MR", 3), ("MR", 6)])
def test_a_few_slices_that_are_called_a_scout_are_one(tmp_path, modality, count):
    write_stack(tmp_path, modality, count, SeriesDescription="3-plane localizer")
    assert not accepted(tmp_path)
    assert refusals(tmp_path) == {Reason.LOCALIZER}


def test_an_mr_scout_in_three_planes_is_one_however_many_slices_it_has(tmp_path):
    for orientation, name in ((AXIAL, "a"), (CORONAL, "c"), (SAGITTAL, "s")):
        write_stack(tmp_path, "MR", 15, orientation=orientation, name=name, SeriesDescription="Survey_3plane")
    assert not accepted(tmp_path)
    assert refusals(tmp_path) == {Reason.LOCALIZER}


def test_thick_mr_slices_far_apart_that_are_called_a_scout_are_one(tmp_path):
    assert not accepted(write_stack(tmp_path, "MR", 12, step=12.0, SeriesDescription="scout"))


@pytest.mark.parametrize(
    "elements",
    [{"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, {"SeriesDescription": "AAHead_Scout_32ch-head-coil"}],
)
def test_a_scout_by_its_image_type_or_sequence_is_one(tmp_path, elements):
    assert not accepted(write_stack(tmp_path, "MR", 30, **elements))
    assert refusals(tmp_path) == {Reason.LOCALIZER}


def test_two_scout_views_beside_a_full_stack_are_refused_alone(tmp_path):
    write_stack(tmp_path, "CT", 12, SeriesDescription="HEAD with scout")
    write_stack(tmp_path, "CT", 1, orientation=CORONAL, name="c", SeriesDescription="HEAD with scout")
    write_stack(tmp_path, "CT", 1, orientation=SAGITTAL, name="s", SeriesDescription="HEAD with scout")
    (scan,) = accepted(tmp_path)
    assert scan.voxels_XYZ.shape == (8, 8, 12)
    assert refusals(tmp_path) == {Reason.LOCALIZER}


def test_a_derived_axial_reconstruction_is_a_scan(tmp_path):
    assert len(accepted(write_stack(tmp_path, "CT", 12, ImageType=["DERIVED", "SECONDARY", "AXIAL"]))) == 1


@pytest.mark.parametrize(
    ("elements", "count"),
    [
        ({"SeriesDescription": "Head NAC"}, 0),
        ({"SeriesDescription": "Head AC and NAC", "AttenuationCorrectionMethod": "measured,Germanium"}, 1),
        ({"SeriesDescription": "Head NAC", "CorrectedImage": ["DECY", "ATTN"]}, 1),
        ({"AttenuationCorrectionMethod": "NONE"}, 0),
    ],
)
def test_elements_about_attenuation_count_before_words(tmp_path, elements, count):
    assert len(accepted(write_stack(tmp_path, "PT", 12, Units="BQML", **elements))) == count


# --- mosaics


def frame_groups(positions):
    frames = []
    for position in positions:
        frame, plane = Dataset(), Dataset()
        plane.ImagePositionPatient = list(position)
        frame.PlanePositionSequence = Sequence([plane])
        frames.append(frame)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient, measures.PixelSpacing = AXIAL, [2, 2]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    return {
        "SharedFunctionalGroupsSequence": Sequence([shared]),
        "PerFrameFunctionalGroupsSequence": Sequence(frames),
        "ImagePositionPatient": None,
        "ImageOrientationPatient": None,
        "PixelSpacing": None,
        "SOPClassUID": ENHANCED_MR,
    }


MOSAIC = {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}


@pytest.mark.parametrize("tiles", [None, 4])
def test_an_enhanced_file_with_a_position_for_each_frame_is_no_mosaic(tmp_path, tiles):
    groups = frame_groups([(0, 0, 3.0 * k) for k in range(6)])
    dataset = picture("MR", frames=6, NumberOfFrames=6, **MOSAIC, **groups)
    if tiles:
        dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", tiles)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    (scan,) = accepted(tmp_path)
    np.testing.assert_allclose(np.diag(scan.affine), [-2, -2, 3, 1])
    assert scan.voxels_XYZ[0, 0].tolist() == [k - 5 for k in range(6)]


def test_slices_of_their_own_are_no_mosaics(tmp_path):
    (scan,) = accepted(write_stack(tmp_path, "MR", 12, **MOSAIC))
    assert scan.voxels_XYZ.shape == (8, 8, 12)


def test_enhanced_files_of_one_slice_each_are_no_mosaics(tmp_path):
    for k in range(12):
        groups = frame_groups([(0, 0, 3.0 * k)])
        dataset = picture("MR", position=(0, 0, k), NumberOfFrames=1, **MOSAIC, **groups)
        dataset.save_as(tmp_path / f"{k:02d}.dcm", enforce_file_format=True)
    (scan,) = accepted(tmp_path)
    assert scan.voxels_XYZ.shape == (8, 8, 12)


def test_a_mosaic_that_lost_its_private_header_is_refused_as_one(tmp_path):
    for k in range(12):
        dataset = picture("MR", InstanceNumber=k, **MOSAIC)
        dataset.SOPInstanceUID = f"1.2.3.{k}"
        dataset.save_as(tmp_path / f"{k:02d}.dcm", enforce_file_format=True)
    (volume,) = volumes(tmp_path)
    assert volume.rejection.reason is Reason.MISSING_METADATA
    assert "mosaic" in volume.rejection.message


def mosaic(**elements):
    """Four slices of 4 x 4 pixels in one picture."""
    dataset = picture("MR", **MOSAIC, **elements)
    block = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0A, "US", 4)
    tiles = np.arange(4, dtype=np.int16).reshape(2, 2)
    dataset.PixelData = np.kron(tiles, np.ones((4, 4), np.int16)).tobytes()
    return dataset


@pytest.mark.parametrize("step", [3, -3])
def test_a_real_mosaic_is_cut(tmp_path, step):
    mosaic(SpacingBetweenSlices=step).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    (scan,) = accepted(tmp_path)
    assert scan.voxels_XYZ[0, 0].tolist() == [-5, -4, -3, -2]
    np.testing.assert_allclose(scan.affine[:3, 2], [0, 0, 3])


@pytest.mark.parametrize("step", [None, 0, 500])
def test_a_mosaic_without_a_plausible_distance_of_slices_is_refused(tmp_path, step):
    mosaic(SpacingBetweenSlices=step).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    (volume,) = volumes(tmp_path)
    assert volume.rejection.reason is Reason.MISSING_METADATA
    assert "how far apart" in volume.rejection.message


# --- multi-frame files without geometry


@pytest.mark.parametrize(
    ("between", "thickness", "step"),
    [(0.8, 4, 0.8), (0, 4, 4), (-0.8, 4, 0.8), (1000, 4, 4), (None, 4, 4), (0, 0, 1), (0, -1, 1), (0, 1e9, 1)],
)
def test_the_first_plausible_distance_of_slices_is_taken(tmp_path, between, thickness, step):
    stripped = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient"))
    dataset = picture("MR", frames=6, SOPClassUID=ENHANCED_MR, NumberOfFrames=6, **stripped)
    dataset.SliceThickness = thickness
    if between is not None:
        dataset.SpacingBetweenSlices = between
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    (scan,) = accepted(tmp_path, GATEWAY)
    np.testing.assert_allclose(np.diag(scan.affine), [-2, -2, step, 1])
    wanted = {0.8: "SpacingBetweenSlices", 4: "SliceThickness", 1: "no element says"}[step]
    assert any("assumed" in line and wanted in line for line in scan.decisions)


def test_a_distance_of_slices_that_is_no_number_is_passed_over(tmp_path):
    stripped = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient"))
    dataset = picture("MR", frames=6, SOPClassUID=ENHANCED_MR, NumberOfFrames=6, SliceThickness=4, **stripped)
    dataset.SpacingBetweenSlices = "8"
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    content = (tmp_path / "a.dcm").read_bytes()
    assert content.count(b"DS\x02\x008 ") == 1
    (tmp_path / "a.dcm").write_bytes(content.replace(b"DS\x02\x008 ", b"DS\x02\x00x "))
    (scan,) = accepted(tmp_path, GATEWAY)
    np.testing.assert_allclose(scan.affine[2, 2], 4)


@pytest.mark.parametrize("spacing", [None, [0, 0], [-1, 1], [500, 500]])
def test_implausible_pixels_of_a_file_without_geometry_are_those_of_a_head_scan(tmp_path, spacing):
    stripped = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient"))
    dataset = picture(
        "MR", frames=6, SOPClassUID=ENHANCED_MR, NumberOfFrames=6, SliceThickness=4, **stripped, PixelSpacing=spacing
    )
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    (scan,) = accepted(tmp_path, GATEWAY)
    np.testing.assert_allclose(np.diag(scan.affine), [-27.5, -27.5, 4, 1])
    assert any("field of view" in line for line in scan.decisions)


def test_one_orientation_of_a_file_without_frame_positions_is_believed(tmp_path):
    dataset = picture(
        "MR",
        frames=6,
        SOPClassUID=ENHANCED_MR,
        NumberOfFrames=6,
        SliceThickness=4,
        orientation=SAGITTAL,
        position=(5, 6, 7),
    )
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    (scan,) = accepted(tmp_path, GATEWAY)
    normal = np.cross(SAGITTAL[:3], SAGITTAL[3:])
    np.testing.assert_allclose(scan.affine[:3, 3], [-5, -6, 7])
    np.testing.assert_allclose(scan.affine[:3, 2], np.array([-1, -1, 1]) * normal * 4)
    assert any("its one orientation" in line for line in scan.decisions)


# --- directions


def test_direction_cosines_rounded_to_two_decimals_are_made_unit_vectors(tmp_path):
    turned = [0.97, 0.26, 0, -0.26, 0.97, 0]
    (scan,) = accepted(write_stack(tmp_path, "CT", 6, orientation=turned))
    np.testing.assert_allclose(np.linalg.norm(scan.affine[:3, :2], axis=0), 2, rtol=1e-9)
    np.testing.assert_allclose(scan.affine[:3, 0] / 2, np.array([-0.97, -0.26, 0]) / np.hypot(0.97, 0.26), atol=1e-9)
    assert any("rounded" in line for line in scan.decisions)


@pytest.mark.parametrize("directions", [[0.9, 0, 0, 0, 1, 0], [1, 0, 0, 0.1, 1, 0], [0] * 6])
def test_direction_cosines_that_are_no_unit_vectors_are_refused(tmp_path, directions):
    for k in range(6):
        picture("CT", position=(0, 0, k), ImageOrientationPatient=directions).save_as(
            tmp_path / f"{k}.dcm", enforce_file_format=True
        )
    assert refusals(tmp_path) == {Reason.BAD_GEOMETRY}
