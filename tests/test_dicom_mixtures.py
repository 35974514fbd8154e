"""Several volumes under one series UID: none of them is ever woven into another, whatever tells them apart."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from harmonize.dicom import find_files, find_volumes, load_volume, reload_volume
from harmonize.dicom.grouping import group_series
from harmonize.dicom.headers import Frame, Header
from harmonize.dicom.layout import PixelLayout
from harmonize.dicom.meaning import Meaning
from harmonize.dicom.owners import split_by_identity
from harmonize.errors import Reason, Rejection
from harmonize.sources import tcia

CT, MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
STEP = 4.0
HALF = STEP / 2


def picture(level, k, size=16):
    """A disc of `level` that shrinks from slice to slice, in air."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.where(x**2 + y**2 < (size / 2.2 - 0.15 * k) ** 2, level, 0).astype(np.int16)


def dataset(pixels, **elements):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    defaults = {
        "SOPClassUID": CT if elements.get("Modality", "CT") == "CT" else MR,
        "SOPInstanceUID": generate_uid(),
        "PatientID": "A",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "FrameOfReferenceUID": "1.2.5",
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1, 1],
        "Rows": pixels.shape[-2],
        "Columns": pixels.shape[-1],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
        "PixelData": pixels.tobytes(),
    }
    for name, value in (defaults | elements).items():
        if name == "private":
            (group, element, kind), number = value
            ds.add_new((group, element), kind, number)
        elif value is not None:
            setattr(ds, name, value)
    return ds


def save(ds, path):
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def write(folder, offsets, level, *, name=None, **elements):
    """A series whose every picture shows `level`; an element may be a function of the slice number."""
    for k, offset in enumerate(offsets):
        own = {key: value(k) if callable(value) else value for key, value in elements.items()}
        own = {"InstanceNumber": k + 1, "ImagePositionPatient": [0, 0, float(offset)]} | own
        save(dataset(picture(level, k), **own), folder / f"{level if name is None else name}{k:03d}.dcm")


def levels(folder, **rules):
    """The values inside the head of each accepted volume, each volume as a set."""
    found = find_volumes(find_files(folder))
    scans = []
    for volume in found:
        if volume.rejection is None:
            scans.append(reload_volume(volume.paths, volume.part))
    return sorted((set(scan.voxels_XYZ[8, 8].tolist()) for scan in scans), key=min)


def said(folder):
    return " | ".join(line for volume in find_volumes(find_files(folder)) for line in volume.stack.decisions)


GE_COMPONENT = (0x0043, 0x102F, "SS")

TOLD_APART = [
    ("AcquisitionNumber", 1, 2, "CT"),
    ("ConvolutionKernel", "H30s", "H60s", "CT"),
    ("SliceThickness", 2, 6, "CT"),
    ("KVP", 80, 140, "CT"),
    ("ReconstructionDiameter", 220, 240, "CT"),
    ("ContrastBolusAgent", "NONE", "IODINE", "CT"),
    ("FilterType", "HEAD", "BODY", "CT"),
    ("SeriesNumber", 3, 4, "CT"),
    ("SeriesDescription", "native", "venous", "CT"),
    ("SeriesTime", "101500", "102000", "CT"),
    ("IrradiationEventUID", "1.9.1", "1.9.2", "CT"),
    ("ContentTime", "101500", "102000", "CT"),
    ("Exposure", 100, 300, "CT"),
    ("DerivationDescription", "native", "subtracted", "CT"),
    ("AccessionNumber", "1", "2", "CT"),
    ("PatientID", "P1", "P2", "CT"),
    ("PatientName", "Doe^A", "Roe^B", "CT"),
    ("PatientBirthDate", "19500101", "19600101", "CT"),
    ("StudyInstanceUID", "1.7.1", "1.7.2", "CT"),
    ("FrameOfReferenceUID", "1.8.1", "1.8.2", "CT"),
    ("EchoTime", 5, 80, "MR"),
    ("EchoNumbers", 1, 2, "MR"),
    ("InversionTime", 300, 2200, "MR"),
    ("FlipAngle", 5, 25, "MR"),
    ("DiffusionBValue", 0.0, 1000.0, "MR"),
    ("TemporalPositionIdentifier", 1, 2, "MR"),
    ("ImageType", ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"], "MR"),
    ("ImageType", ["DERIVED", "PRIMARY", "REAL"], ["DERIVED", "PRIMARY", "IMAGINARY"], "MR"),
    ("ComplexImageComponent", "MAGNITUDE", "PHASE", "MR"),
    (GE_COMPONENT, 0, 1, "MR"),
    ("SequenceName", "*fl2d1", "*tse2d1", "MR"),
    ("ScanOptions", "FAT_GEMS", "WATER_GEMS", "MR"),
    ("AcquisitionNumber", 1, 2, "MR"),
    ("AcquisitionTime", "101500", "102000", "MR"),
    ("RepetitionTime", 500, 3000, "MR"),
]


@pytest.mark.parametrize(("element", "first", "second", "modality"), TOLD_APART)
@pytest.mark.parametrize("shift", [0.0, HALF])
def test_two_volumes_in_one_series_come_out_as_two(tmp_path, element, first, second, modality, shift):
    heights = np.arange(7) * STEP
    write(tmp_path, heights, 100, Modality=modality, **_of(element, first))
    # The other way round, so that the instance numbers tell nothing.
    write(tmp_path, heights[::-1] + shift, 300, Modality=modality, **_of(element, second))
    assert levels(tmp_path) == [{100}, {300}]


def _of(element, value):
    return {element: value} if isinstance(element, str) else {"private": (element, value)}


@pytest.mark.parametrize("offset", [0.0, 0.7])
@pytest.mark.parametrize("element", ["ConvolutionKernel", "SliceThickness", "AcquisitionNumber", "SeriesNumber"])
def test_thin_and_thick_slices_come_out_as_two_whole_volumes(tmp_path, element, offset):
    values = {"ConvolutionKernel": ("H60s", "H30s")}.get(element, (2, 6))
    write(tmp_path, np.arange(18) * 2.0, 100, **{element: values[0]})
    write(tmp_path, np.arange(6) * 6.0 + offset, 300, **{element: values[1]})
    assert levels(tmp_path) == [{100}, {300}]
    assert "missing" not in said(tmp_path)


@pytest.mark.parametrize("number", [3, 4])
def test_another_orientation_is_a_volume_only_if_it_is_another_series(tmp_path, number):
    write(tmp_path, np.arange(8) * STEP, 100, SeriesNumber=3)
    turned = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "ImagePositionPatient": lambda k: [-k * STEP, 0, 0]}
    write(tmp_path, np.arange(6) * STEP, 300, SeriesNumber=number, **turned)
    assert levels(tmp_path) == [{100}] + [{300}] * (number != 3)


@pytest.mark.parametrize("uid", ["1.2.3.4", None])
def test_two_patients_in_folders_of_their_own_are_two_subjects(tmp_path, uid):
    for name, level, shift in (("P1", 100, 0.0), ("P2", 300, HALF)):
        write(tmp_path / name, np.arange(8) * STEP + shift, level, PatientID=name, SeriesInstanceUID=uid)
    assert levels(tmp_path) == [{100}, {300}]
    refs = [ref for ref in tcia.discover(tmp_path) if hasattr(ref, "key")]
    assert {ref.subject for ref in refs} == {"P1", "P2"}
    assert len({ref.key for ref in refs}) == 2


def test_patients_told_apart_by_their_names_alone_are_two_subjects(tmp_path):
    for name, level in (("Doe^A", 100), ("Roe^B", 300)):
        write(tmp_path / name, np.arange(8) * STEP + level / 50, level, PatientID="ANON", PatientName=name)
    refs = [ref for ref in tcia.discover(tmp_path) if hasattr(ref, "key")]
    assert len({ref.subject for ref in refs}) == len({ref.key for ref in refs}) == 2


def test_a_public_subject_is_not_given_to_another_patient_under_the_same_uid(tmp_path):
    for name, level in (("P1", 100), ("P2", 300)):
        write(tmp_path / name, np.arange(8) * STEP, level, PatientID=name)
    (tmp_path / "metadata.csv").write_text("Series UID,Subject ID\n1.2.3.4,P1\n")
    refs = {ref.subject: ref for ref in tcia.discover(tmp_path) if hasattr(ref, "key")}
    assert set(refs) == {"P1", "P2"}
    assert refs["P1"].public_id is not None
    assert refs["P2"].public_id is None


def test_the_key_of_one_patient_does_not_depend_on_how_many_others_there_are(tmp_path):
    keys = []
    for number in range(3):
        write(tmp_path / str(number), np.arange(6) * STEP, 100 + number, PatientID=f"P{9 - number}")
        keys.append({ref.subject: ref.key for ref in tcia.discover(tmp_path) if hasattr(ref, "key")})
    assert keys[1]["P9"] == keys[2]["P9"]
    assert keys[0]["P9"] == "1.2.3.4/0"


# --- what says nothing


@pytest.mark.parametrize(
    "elements",
    [
        {"AcquisitionNumber": lambda k: k},
        {"FrameOfReferenceUID": lambda k: f"1.5.{k}"},
        {"StudyInstanceUID": lambda k: f"1.5.{k}", "FrameOfReferenceUID": lambda k: f"1.6.{k}"},
        {"PatientID": lambda k: f"drawn {k}"},
        {"SeriesNumber": lambda k: k},
        {"SeriesInstanceUID": lambda k: f"1.5.{k}", "SeriesNumber": 3},
        {"SeriesInstanceUID": lambda k: f"1.5.{k}", "InstanceNumber": lambda k: k + 1},
        {"KVP": lambda k: None if k % 5 == 2 else 120},
        {"PatientID": lambda k: None if k % 2 else "A"},
        {"AcquisitionNumber": lambda k: k // 3},
        {"ImageType": lambda k: ["ORIGINAL", "PRIMARY", "AXIAL", "ADD"][: 4 if k < 5 else 3]},
        {"SliceThickness": lambda k: 2.5 if k < 4 else 5},
        {"SliceThickness": lambda k: 5.001 if k % 2 else 4.999},
        {"AcquisitionNumber": lambda k: 2 if 3 <= k < 8 else 1},
        {"Modality": "MR", "AcquisitionNumber": lambda k: 1 + k % 2},
        {"Modality": "MR", "AcquisitionTime": lambda k: f"10150{k % 2}"},
        {"Modality": "MR", "RepetitionTime": lambda k: 900 + 50 * (k % 2)},
    ],
)
def test_what_counts_slices_is_drawn_at_random_or_comes_in_blocks_splits_nothing(tmp_path, elements):
    write(tmp_path, np.arange(12) * STEP, 100, **elements)
    (volume,) = find_volumes(find_files(tmp_path))
    scan = reload_volume(volume.paths, volume.part)
    assert scan.voxels_XYZ.shape[2] == 12
    assert not any("volume" in line for line in scan.decisions)
    (ref,) = [ref for ref in tcia.discover(tmp_path) if hasattr(ref, "key")]
    assert ref.key.endswith("/0")


def test_a_slice_that_was_measured_again_stays_in_its_place(tmp_path):
    write(tmp_path, np.arange(12) * STEP, 100, AcquisitionNumber=lambda k: 2 if k in (4, 8) else 1)
    assert levels(tmp_path) == [{100}]


def test_slices_of_many_series_in_one_folder_are_not_put_together(tmp_path):
    write(tmp_path, np.arange(8) * STEP, 100, SeriesInstanceUID=lambda k: f"1.5.{k}", SeriesNumber=lambda k: k)
    assert levels(tmp_path) == []


def test_slices_of_many_series_that_lost_their_numbers_are_not_put_together(tmp_path):
    uids = {"SeriesInstanceUID": lambda k: f"1.5.{k}", "InstanceNumber": lambda k: 1 + k % 2}
    write(tmp_path, np.arange(8) * STEP, 100, **uids)
    assert levels(tmp_path) == []


# --- where no header helps


def test_slices_that_alternate_without_any_header_are_refused_for_that(tmp_path):
    write(tmp_path, np.arange(10) * STEP, 100, name="s", InstanceNumber=None)
    write(tmp_path, np.arange(10) * STEP + HALF, 300, name="t", InstanceNumber=None)
    (volume,) = find_volumes(find_files(tmp_path))
    with pytest.raises(Rejection, match="alternate") as caught:
        load_volume(volume)
    assert caught.value.reason is Reason.MIXED_VOLUMES


@pytest.mark.parametrize("shift", [HALF, 0.3 * STEP])
@pytest.mark.parametrize("second", [lambda k: 9 + k, lambda k: 16 - k])
def test_slices_numbered_one_volume_after_the_other_are_two_where_intensities_agree(tmp_path, shift, second):
    write(tmp_path, np.arange(8) * STEP, 100)
    write(tmp_path, np.arange(8) * STEP + shift, 300, InstanceNumber=second)
    assert levels(tmp_path) == [{100}, {300}]


def test_slices_numbered_in_the_order_of_excitation_are_one_volume(tmp_path):
    write(tmp_path, np.arange(16) * STEP, 100, Modality="MR", InstanceNumber=lambda k: k // 2 + 8 * (k % 2))
    assert levels(tmp_path) == [{100}]


@pytest.mark.parametrize("shift", [0.0, HALF])
def test_folders_tell_two_volumes_apart_where_nothing_else_does(tmp_path, shift):
    write(tmp_path / "one", np.arange(8) * STEP, 100, InstanceNumber=None)
    write(tmp_path / "two", np.arange(8) * STEP + shift, 300, InstanceNumber=None)
    assert levels(tmp_path) == [{100}, {300}]


def test_a_volume_spread_over_folders_is_one(tmp_path):
    for k in range(12):
        write(tmp_path / f"{k % 2}", [k * STEP], 100, name=f"{k:02d}")
    assert levels(tmp_path) == [{100}]


@pytest.mark.parametrize("shift", [0.0, HALF])
def test_one_number_for_a_volume_and_counters_for_another(tmp_path, shift):
    write(tmp_path, np.arange(8) * STEP, 100, AcquisitionNumber=1)
    write(tmp_path, np.arange(8)[::-1] * STEP + shift, 300, AcquisitionNumber=lambda k: k + 2)
    assert levels(tmp_path) == [{100}, {300}]


def test_slices_in_pairs_are_refused_in_words_that_are_true(tmp_path):
    write(tmp_path, np.arange(8) * STEP, 100, InstanceNumber=None)
    write(tmp_path, np.arange(8) * STEP + 0.05 * STEP, 300, InstanceNumber=None)
    (volume,) = find_volumes(find_files(tmp_path))
    assert volume.rejection.reason is Reason.MISSING_SLICES
    assert "16 slices, nowhere 4 in a row" in volume.rejection.message


def test_instances_in_opposed_order_never_mix_two_volumes(tmp_path):
    write(tmp_path, np.arange(8) * STEP, 100, InstanceNumber=lambda k: 2 * k + 1)
    write(tmp_path, np.arange(8) * STEP, 300, InstanceNumber=lambda k: 2 * (8 - k))
    (volume,) = find_volumes(find_files(tmp_path))
    with pytest.raises(Rejection) as caught:
        load_volume(volume)
    assert caught.value.reason is Reason.REPEATED_POSITIONS


def test_instances_that_count_two_volumes_in_turn_give_the_first(tmp_path):
    write(tmp_path, np.arange(8) * STEP, 100, InstanceNumber=lambda k: 2 * k + 1)
    write(tmp_path, np.arange(8) * STEP, 300, InstanceNumber=lambda k: 2 * k + 2)
    (volume,) = find_volumes(find_files(tmp_path))
    scan = load_volume(volume)
    assert set(scan.voxels_XYZ[8, 8].tolist()) == {100}
    assert any("first is kept" in line for line in scan.decisions)


def test_unlike_slices_of_one_mr_in_two_packages_make_two_volumes(tmp_path):
    write(tmp_path, np.arange(16) * STEP, 100, Modality="MR", AcquisitionNumber=lambda k: 1 + k % 2)
    assert levels(tmp_path) == [{100}]
    for path in tmp_path.iterdir():
        path.unlink()
    for number in (0, 1):
        write(
            tmp_path,
            np.arange(8) * 2 * STEP + number * STEP,
            100 + 200 * number,
            Modality="MR",
            AcquisitionNumber=number + 1,
        )
    assert levels(tmp_path) == [{100}, {300}]


# --- files that hold whole volumes


def item(**elements):
    ds = Dataset()
    for name, value in elements.items():
        setattr(ds, name, value)
    return Sequence([ds])


def write_enhanced(path, heights, level, frames=None, **elements):
    """An enhanced MR file; `frames` gives (level, functional groups) of each frame instead."""
    frames = frames or [(level, {})] * len(heights)
    pixels = np.stack([picture(mark, k) for k, (mark, _) in enumerate(frames)])
    per_frame = [
        item(
            PlanePositionSequence=item(ImagePositionPatient=[0, 0, float(z)]),
            **({"FrameContentSequence": item(StackID="1")} | groups),
        )[0]
        for z, (_, groups) in zip(heights, frames, strict=True)
    ]
    gone = dict.fromkeys(["ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"])
    ds = dataset(
        pixels,
        Modality="MR",
        **gone,
        **{
            "SOPClassUID": ENHANCED_MR,
            "NumberOfFrames": len(heights),
            "SharedFunctionalGroupsSequence": item(
                PixelMeasuresSequence=item(PixelSpacing=[1, 1]),
                PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
            ),
            "PerFrameFunctionalGroupsSequence": Sequence(per_frame),
        }
        | elements,
    )
    save(ds, path)


@pytest.mark.parametrize("shift", [0.0, HALF, 0.3 * STEP])
def test_files_that_each_hold_a_whole_volume_are_volumes(tmp_path, shift):
    for number in range(3):
        write_enhanced(tmp_path / f"{number}.dcm", np.arange(8) * STEP + number * shift / 2, 100 * (number + 1))
    assert levels(tmp_path) == [{100}, {200}, {300}]


def test_files_with_one_instance_uid_for_all_are_volumes_of_their_own(tmp_path):
    for number in range(2):
        write_enhanced(tmp_path / f"{number}.dcm", np.arange(8) * STEP, 100 * (number + 1), SOPInstanceUID="1.2.9")
    assert levels(tmp_path) == [{100}, {200}]


@pytest.mark.parametrize("shift", [0.0, HALF, 20 * STEP])
def test_stacks_of_one_file_are_volumes(tmp_path, shift):
    frames = [(100 + 200 * n, {"FrameContentSequence": item(StackID=str(n + 1))}) for _ in range(8) for n in (0, 1)]
    write_enhanced(tmp_path / "a.dcm", [k * STEP + n * shift for k in range(8) for n in (0, 1)], 0, frames)
    assert levels(tmp_path) == [{100}, {300}]


@pytest.mark.parametrize("shift", [0.0, HALF])
def test_single_frame_slices_beside_a_whole_file_are_a_volume(tmp_path, shift):
    write_enhanced(tmp_path / "a.dcm", np.arange(8) * STEP, 100)
    write(tmp_path, np.arange(8) * STEP + shift, 300, Modality="MR")
    assert levels(tmp_path) == [{100}, {300}]


def test_files_that_go_on_where_the_first_ends_are_one_volume(tmp_path):
    for number in range(2):
        write_enhanced(tmp_path / f"{number}.dcm", np.arange(8) * STEP + number * 8 * STEP, 100)
    assert levels(tmp_path) == [{100}]


def test_parts_of_a_concatenation_are_one_volume(tmp_path):
    for number in range(2):
        write_enhanced(tmp_path / f"{number}.dcm", np.arange(8) * STEP + number * HALF, 100, ConcatenationUID="1.4.4")
    assert levels(tmp_path) == [{100}]


@pytest.mark.parametrize("element", ["SeriesDescription", "SoftwareVersions", "SeriesTime", "DerivationDescription"])
def test_slices_exported_twice_are_one_volume_whatever_the_export_changed(tmp_path, element):
    for number in range(2):
        write(tmp_path / str(number), np.arange(6) * STEP, 100, **{element: f"{101500 + number}"})
    assert levels(tmp_path) == [{100}]


def test_a_whole_volume_exported_twice_is_one(tmp_path):
    for number in range(2):
        write_enhanced(tmp_path / f"{number}.dcm", np.arange(8) * STEP, 100, SeriesNumber=number)
    assert levels(tmp_path) == [{100}]


GROUPS = {
    "echo": lambda n: {"MREchoSequence": item(EffectiveEchoTime=5.0 + 70 * n)},
    "b-value": lambda n: {"MRDiffusionSequence": item(DiffusionBValue=1000.0 * n)},
    "component": lambda n: {"MRImageFrameTypeSequence": item(ComplexImageComponent=("MAGNITUDE", "PHASE")[n])},
    "type": lambda n: {"MRImageFrameTypeSequence": item(FrameType=["ORIGINAL", "PRIMARY", "MP"[n]])},
    "time": lambda n: {"FrameContentSequence": item(StackID="1", TemporalPositionIndex=n + 1)},
    "inversion": lambda n: {"MRModifierSequence": item(InversionTimes=300.0 + 1000 * n)},
}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shift", [0.0, HALF])
def test_frames_of_two_volumes_in_one_file_are_told_apart(tmp_path, group, shift):
    frames = [(100 + 200 * n, GROUPS[group](n)) for _ in range(8) for n in (0, 1)]
    write_enhanced(tmp_path / "a.dcm", [k * STEP + n * shift for k in range(8) for n in (0, 1)], 0, frames)
    assert levels(tmp_path) == [{100}, {300}]


# --- any arrangement


LAYOUT = PixelLayout(
    transfer_syntax=ExplicitVRLittleEndian,
    offset=0,
    rows=8,
    columns=8,
    frames=1,
    bits_allocated=16,
    bits_stored=16,
    high_bit=15,
    signed=True,
    samples=1,
    padding=None,
    has_lookup_table=False,
    tiles=1,
)


def frame(name, z, *, instance, identity=("A", "", "", "", "1.2", "1.5", "CT"), modality="CT", **traits):
    header = Header(
        path=Path(name),
        pixels=LAYOUT,
        series_uid="1.2.3.4",
        study_uid="1.2",
        patient_id="A",
        sop_uid=name,
        sop_class=CT,
        modality=modality,
        contrast=modality,
        units="",
        frames_of_file=1,
        identity=identity,
    )
    return Frame(
        header=header,
        index=0,
        position=(0.0, 0.0, z),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        spacing=(1.0, 1.0),
        meaning=Meaning(slope=1.0, intercept=0.0),
        stack="",
        instance=instance,
        traits={key: str(value) for key, value in traits.items()},
        rejection=None,
    )


TRAIT_VALUES = st.sampled_from(
    [
        ("kernel", "A", "B"),
        ("thickness", "2", "6"),
        ("acquisition", "1", "2"),
        ("series", "3", "4"),
        ("kvp", "80", "140"),
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    trait=TRAIT_VALUES,
    counts=st.tuples(st.integers(4, 25), st.integers(4, 25)),
    steps=st.tuples(st.sampled_from([0.5, 1.0, 2.0, 3.3, 6.0]), st.sampled_from([0.5, 1.0, 2.0, 3.3, 6.0])),
    offset=st.floats(-5, 60),
    opposed=st.booleans(),
    counter=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_no_interleaving_of_two_volumes_gives_a_mixed_one(trait, counts, steps, offset, opposed, counter, seed):
    name, *values = trait
    shuffled = random.Random(seed)
    frames = []
    for which in (0, 1):
        for k in range(counts[which]):
            instance = counts[which] - k if opposed and which else k + 1
            more = {"trigger": shuffled.random(), "acquired": len(frames)} if counter else {}
            z = offset * which + k * steps[which]
            frames.append(frame(shuffled.random().hex(), z, instance=instance, **{name: values[which]}, **more))
    shuffled.shuffle(frames)
    stacks = group_series(frames)
    assert sorted(f.header.sop_uid for s in stacks for f in s.frames) == sorted(f.header.sop_uid for f in frames)
    extents = [[k * steps[which] + offset * which for k in range(counts[which])] for which in (0, 1)]
    overlap = min(max(extents[0]), max(extents[1])) - max(min(extents[0]), min(extents[1]))
    if overlap > max(steps) or name == "series":
        for stack in stacks:
            assert len({f.traits[name] for f in stack.frames}) == 1
        whole = [len(s.frames) for s in stacks if s.rejection is None]
        assert sorted(whole) == sorted(counts)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    count=st.integers(4, 40),
    blocks=st.integers(2, 6),
    counters=st.lists(
        st.sampled_from(["acquisition", "trigger", "acquired", "event", "series", "description"]), unique=True
    ),
    drawn=st.lists(st.integers(0, 5), unique=True),
    descending=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_order_of_one_volume_with_counters_and_blocks_gives_one(count, blocks, counters, drawn, descending, seed):
    shuffled = random.Random(seed)
    frames = []
    for k in range(count):
        identity = ["A", "", "", "", "1.2", "1.5", "CT"]
        for number in drawn:
            identity[number] = f"drawn {k} {number}"
        traits = dict.fromkeys(counters, f"{seed + k}") | {"thickness": 2 + k * blocks // count}
        instance = count - k if descending else k + 1
        frames.append(frame(f"{k:03d}", 2.5 * k, instance=instance, identity=tuple(identity), **traits))
    shuffled.shuffle(frames)
    ((member, own),) = split_by_identity(frames)
    (stack,) = group_series(own)
    assert member == ()
    assert stack.rejection is None
    assert [f.header.sop_uid for f in stack.frames] == [f"{k:03d}" for k in range(count)]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    owners=st.lists(st.integers(0, 6), min_size=2, max_size=4, unique=True),
    attribute=st.integers(0, 6),
    seed=st.integers(0, 2**16),
    offsets=st.lists(st.floats(-40, 40), min_size=4, max_size=4),
)
def test_different_owners_are_never_one_volume_wherever_their_slices_lie(owners, attribute, seed, offsets):
    shuffled = random.Random(seed)
    frames = []
    for n, owner in enumerate(owners):
        identity = ["A", "", "", "", "1.2", "1.5", "CT"]
        identity[attribute] = f"owner {owner}"
        for k in range(5 + n):
            frames.append(
                frame(f"{owner}-{k:03d}", offsets[n] + 2.5 * k, instance=k, identity=tuple(identity), acquisition=k)
            )
    shuffled.shuffle(frames)
    members = split_by_identity(frames)
    assert sorted(len(own) for _, own in members) == [5 + n for n in range(len(owners))]
    assert all(len({f.header.identity for f in own}) == 1 for _, own in members)
