"""A lab's own NIfTI images: names, contrasts, masks and a table, in the layouts that labs have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from harmonize import sources
from harmonize.cli import main
from harmonize.corpus import Corpus, read_volume
from harmonize.decisions import DecisionKind, kind_of
from harmonize.errors import UserError
from harmonize.scan import LeftOut, ScanRef
from harmonize.sources import nifti

SHAPE = (24, 26, 16)
AFFINE = np.diag([8.0, 8.0, 10.0, 1.0])


def head(*, ct: bool = False, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.int16]:
    """A ball of tissue in air; each seed has other noise, so that no two are duplicates."""
    centre = np.array(shape) / 2
    far = np.sqrt(sum(((np.indices(shape) - centre[:, None, None, None]) / centre[:, None, None, None]) ** 2))
    noise = np.random.default_rng(seed).normal(0, 8, shape)
    return (np.where(far < 0.8, 40 if ct else 400, -1000 if ct else 5) + noise).astype(np.int16)


def labels(*values: int, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint16]:
    """A block of each value side by side in the middle of a head."""
    found = np.zeros(shape, np.uint16)
    for number, value in enumerate(values):
        found[8 + 2 * number : 10 + 2 * number, 9:17, 5:11] = value
    return found


def save(path: Path, array: NDArray[Any], affine: NDArray[np.float64] = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    nib.save(image, path)
    return path


def harmonize(root: Path, out: Path, *words: object, code: int = 0) -> Corpus:
    given = ["nifti", root, "--out", out, "--spacing", "8", "--workers", "0", "--mri-norm", "none", *words]
    assert main([str(word) for word in given]) == code
    assert main(["verify", str(out), "--workers", "1"]) == 0
    return Corpus.open(out)


def found(root: Path, **given: Any) -> tuple[dict[str, ScanRef], dict[tuple[str, str], int]]:
    """References by key, and what was left out."""
    items = list(nifti.discover(root, **given))
    refs = {item.key: item for item in items if isinstance(item, ScanRef)}
    return refs, {(item.what, item.why): item.count for item in items if isinstance(item, LeftOut)}


def kinds(lines: Any) -> set[DecisionKind | None]:
    return {kind_of(line) for line in lines}


def test_bids_names_say_subject_session_and_contrast(tmp_path: Path) -> None:
    (tmp_path / "dataset_description.json").write_text("{}")
    for name in ("T1w", "ce-gd_T1w", "acq-tof_angio", "FLAIR", "part-phase_T2w"):
        save(tmp_path / f"sub-07/ses-b/anat/sub-07_ses-b_{name}.nii.gz", head(seed=len(name)))
    save(tmp_path / "derivatives/skullstripped/sub-07/sub-07_T1w.nii.gz", head())
    refs, left = found(tmp_path)
    assert {key.rpartition("ses-b_")[2]: ref.modality for key, ref in refs.items()} == {
        "T1w.nii.gz": "T1w",
        "ce-gd_T1w.nii.gz": "T1post",
        "acq-tof_angio.nii.gz": "MRA",
        "FLAIR.nii.gz": "FLAIR",
        "part-phase_T2w.nii.gz": "T2w",
    }
    assert {(ref.subject, ref.session) for ref in refs.values()} == {("sub-07", "ses-b")}
    assert all(ref.public_id is None for ref in refs.values())
    (phase,) = (ref.rejection for key, ref in refs.items() if "phase" in key)
    assert phase is not None
    assert phase.reason == "derived"
    assert left["images", "in derivatives/ of a BIDS tree: not raw"] == 1


@pytest.mark.parametrize("described", [True, False])
def test_each_bids_tree_in_a_folder_has_its_own_people_and_derivatives(tmp_path: Path, described: bool) -> None:
    for number, name in enumerate(("ds1", "site/ds2")):
        root = tmp_path / name
        for part in ("sub-01/anat/sub-01", "derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc", "sourcedata/sub-01"):
            save(root / f"{part}_T1w.nii.gz", head(seed=number))
        if described:
            (root / "dataset_description.json").write_text("{}")
        rows = ("participant_id\tage\tgroup", f"sub-01\t{30 + number}\t{name[-1]}", "sub-02\t80\t1")
        (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    save(tmp_path / "ds3/sub-01/anat/sub-01_T1w.nii.gz", head(seed=3))
    (tmp_path / "ds3/participants.tsv").write_text("who\tage\nsub-01\t50\n")
    refs, left = found(tmp_path)
    assert {ref.subject: ref.meta["age"] for ref in refs.values()} == {
        "ds1/sub-01": 30, "site/ds2/sub-01": 31, "ds3/sub-01": None,
    }  # fmt: skip
    assert left == {
        ("images", "in derivatives/ of a BIDS tree: not raw"): 2,
        ("images", "in sourcedata/ of a BIDS tree: not raw"): 2,
        ("rows of participants.tsv", "no image of theirs"): 2,
        ("tables participants.tsv of data sets", "not read: damaged, or without a column participant_id"): 1,
    }


def test_a_study_may_keep_what_was_made_beside_its_raw_images(tmp_path: Path) -> None:
    save(tmp_path / "rawdata/sub-01/anat/sub-01_T1w.nii.gz", head())
    (tmp_path / "rawdata/dataset_description.json").write_text("{}")
    save(tmp_path / "derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz", head(seed=1))
    refs, left = found(tmp_path)
    assert len(refs) == 1
    assert left == {("images", "in derivatives/ of a BIDS tree: not raw"): 1}


def test_tables_of_several_data_sets_may_call_different_people_the_same(tmp_path: Path) -> None:
    for name in ("ds1", "ds2"):
        for image in ("a", "b"):
            save(tmp_path / name / f"{image}_T1w.nii.gz", head(seed=ord(image) + len(name)))
        (tmp_path / name / "participants.tsv").write_text("file\tsubject\na_T1w\tp1\nb_T1w.nii.gz\tp1\n")
    (tmp_path / "participants.tsv").write_text("file\tsubject\nds2/b_T1w\tp9\n")
    refs, left = found(tmp_path)
    assert [refs[key].subject for key in sorted(refs)] == ["ds1/p1", "ds1/p1", "ds2/p1", "p9"]
    assert not left


@pytest.mark.parametrize(
    ("key", "subject", "session", "modality"),
    [
        ("p01/T1.nii.gz", "p01", None, "T1w"),
        ("p01/2019/flair.nii.gz", "p01", "2019", "FLAIR"),
        ("p01_T2.nii.gz", "p01", None, "T2w"),
        ("images/p01_ct.nii", "p01", None, "CT"),
        ("CTA/p01.nii.gz", "p01", None, "CTA"),
        ("oasis/sub-01/anat/sub-01_T1w.nii.gz", "oasis/sub-01", None, "T1w"),
        ("p01.nii.gz", "p01", None, None),
    ],
)
def test_other_names_say_it_too(
    tmp_path: Path, key: str, subject: str, session: str | None, modality: str | None
) -> None:
    save(tmp_path / key, head())
    refs, _ = found(tmp_path)
    assert (refs[key].subject, refs[key].session, refs[key].modality) == (subject, session, modality)


def test_what_names_the_contrast_goes_in_order_and_contradictions_are_noted(tmp_path: Path) -> None:
    key = "sub-1/sub-1_T1w.nii.gz"
    save(tmp_path / key, head())
    sidecar = tmp_path / "sub-1/sub-1_T1w.json"
    sidecar.write_text(json.dumps({"Modality": "CT"}))
    table = tmp_path / "t.csv"
    table.write_text("file,modality\nsub-1_T1w.nii.gz,FLAIR\n")

    def says(**given: Any) -> tuple[str | None, list[str]]:
        ref = found(tmp_path, **given)[0][key]
        return ref.modality, [line for line in ref.meta["notes"] if kind_of(line) is DecisionKind.CONTRAST_OVERRULED]

    assert says() == ("T1w", ["taken as T1w by its name; its sidecar says CT"])
    assert says(modality="T2w")[0] == "T2w"
    assert says(modality="T2w", table=table)[0] == "FLAIR"
    assert len(says(modality="T2w", table=table)[1]) == 3
    sidecar.write_text(json.dumps({"Modality": "MR"}))
    assert says() == ("T1w", [])


@pytest.mark.parametrize(
    ("content", "modality", "scanner"),
    [
        ({"Modality": "MR", "EchoTime": 0.095, "RepetitionTime": 4.5, "ScanningSequence": "SE"}, "T2w", None),
        ({"Modality": "MR", "Manufacturer": "SIEMENS Doe^Ada", "MagneticFieldStrength": 2.89}, "MR", "Siemens 3 T"),
        ({"Modality": "CT", "Manufacturer": "Doe^Ada"}, "CT", None),
        ({"EchoTime": "soon"}, None, None),
    ],
)
def test_a_sidecar_says_contrast_and_scanner_in_words_that_are_known(
    tmp_path: Path, content: dict[str, object], modality: str | None, scanner: str | None
) -> None:
    save(tmp_path / "a.nii.gz", head())
    (tmp_path / "a.json").write_text(json.dumps(content))
    refs, left = found(tmp_path)
    assert refs["a.nii.gz"].modality == modality
    assert refs["a.nii.gz"].meta["table"] == ({} if scanner is None else {"scanner": scanner})
    assert left == {}


@pytest.mark.parametrize("content", ["{", "[]", '{"Modality": "CT", "Modality": "MR"}'])
def test_a_damaged_sidecar_is_noted(tmp_path: Path, content: str) -> None:
    save(tmp_path / "a_T1w.nii.gz", head())
    (tmp_path / "a_T1w.json").write_text(content)
    (ref,) = found(tmp_path)[0].values()
    assert kinds(ref.meta["notes"]) == {DecisionKind.SIDECAR_UNREADABLE}
    assert ref.modality == "T1w"


def test_sidecars_of_folders_above_say_what_the_nearest_does_not(tmp_path: Path) -> None:
    one, other = "sub-1/ses-a/anat/sub-1_ses-a_acq-x_T1w", "sub-2/anat/sub-2_T1w"
    bold = "sub-1/ses-a/func/sub-1_ses-a_task-rest_run-2_bold"
    for number, key in enumerate((one, other, bold, "p9/p9_T1w")):
        save(tmp_path / f"{key}.nii.gz", head(seed=number))
    said = {
        "T1w.json": {"Modality": "MR", "Manufacturer": "Siemens", "MagneticFieldStrength": 3},
        "sub-1/sub-1_T1w.json": {"Manufacturer": "Philips"},
        "sub-1/ses-a/anat/ses-a_acq-x_T1w.json": {"MagneticFieldStrength": 7},
        "sub-1/ses-a/anat/T1w.json": {"MagneticFieldStrength": 1.5},  # fewer entities: the one above goes before it
        "sub-1/ses-a/anat/acq-y_T1w.json": {"Manufacturer": "GE"},
        "sub-2/anat/sub-2_T1w.json": {"Manufacturer": "GE MEDICAL SYSTEMS"},
        "task-rest_bold.json": {"Manufacturer": "Canon"},
        "task-nback_bold.json": {"Manufacturer": "Hitachi"},
        "my_notes.json": {"Manufacturer": "Hitachi"},
    }
    for key, content in said.items():
        (tmp_path / key).write_text(json.dumps(content))
    refs, left = found(tmp_path)
    scanners = {key: ref.meta["table"].get("scanner") for key, ref in refs.items()}  # type: ignore[attr-defined]
    assert scanners == {
        f"{one}.nii.gz": "Philips 7 T",
        f"{other}.nii.gz": "GE 3 T",
        f"{bold}.nii.gz": "Canon",
        "p9/p9_T1w.nii.gz": None,  # no BIDS name
    }
    assert left == {(".json", "about no image"): 2, (".json", "no image"): 1}
    (tmp_path / "T1w.json").write_text("{")
    refs, _ = found(tmp_path)
    assert refs[f"{other}.nii.gz"].meta["table"] == {"scanner": "GE"}
    assert kinds(refs[f"{other}.nii.gz"].meta["notes"]) == {DecisionKind.SIDECAR_UNREADABLE}


def test_a_ct_is_known_by_its_air_or_named_and_has_to_be_in_hounsfield_units(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    ct = head(ct=True)
    save(raw / "unnamed.nii.gz", ct)
    save(raw / "named_ct.nii.gz", head(ct=True, seed=1))
    save(raw / "beyond_ct.nii.gz", np.where(ct > 0, ct.astype(np.int32) + 40_000, ct))
    save(raw / "padded_ct.nii.gz", np.where(np.indices(SHAPE)[0] < 3, -3024, head(ct=True, seed=2)))
    save(raw / "shifted_ct.nii.gz", (head(ct=True, seed=3).clip(-1024) + 1024).astype(np.uint16))
    save(raw / "windowed_ct.nii.gz", ((head(ct=True, seed=4).clip(-160, 240) + 160) * 0.6).astype(np.uint8))
    save(raw / "density_ct.nii.gz", (head(ct=True, seed=5) / 1000 + 1).astype(np.float32))
    save(raw / "nothing.nii.gz", head())
    save(raw / "blank_ct.nii.gz", np.full(SHAPE, np.nan, np.float32))
    corpus = harmonize(raw, tmp_path / "out")
    assert set(corpus.scans["modality"]) == {"CT"}
    assert set(corpus.scans["unit"]) == {"HU"}
    assert len(corpus.scans) == 5
    all_said = [kinds(lines) for lines in corpus.scans["decisions"]]
    for kind in (DecisionKind.CT_BY_VALUES, DecisionKind.CLIPPED_INT16, DecisionKind.INTERCEPT_ASSUMED):
        assert sum(kind in said for said in all_said) == 1
    for row in corpus.scans.itertuples():
        volume = read_volume(corpus.path / row.image_file_name)
        assert volume.stored_XYZ.min() >= -1024
        if DecisionKind.INTERCEPT_ASSUMED in kinds(row.decisions):
            assert np.median(volume.values()[10:14, 10:14, 8:10]) == pytest.approx(40, abs=6)
    assert corpus.rejected["reason"].value_counts().to_dict() == {
        "unsupported_unit": 2,
        "unsupported_modality": 1,
        "bad_intensity": 1,
    }


def test_an_mri_that_looks_like_a_ct_is_said(tmp_path: Path) -> None:
    save(tmp_path / "raw/a_T1w.nii.gz", head(ct=True))
    corpus = harmonize(tmp_path / "raw", tmp_path / "out")
    assert DecisionKind.MAY_BE_CT in kinds(corpus.scans["decisions"][0])
    assert corpus.scans["unit"][0] == "arbitrary"


def test_what_cannot_be_read_has_its_reason(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    save(raw / "a_T1w.nii.gz", head())
    save(raw / "four_T1w.nii.gz", np.stack([head(seed=1)] * 2, axis=-1))
    (raw / "cut_T1w.nii.gz").write_bytes((raw / "a_T1w.nii.gz").read_bytes()[:-500])
    (raw / "text_T1w.nii").write_text("no image" * 100)
    (raw / "zero_T1w.nii").touch()
    (raw / "b_T1w.hdr").touch()
    (raw / "c_T1w.dcm").touch()
    (raw / "README.md").touch()
    save(raw / "b/x_T2w.nii", head(seed=3))
    (raw / "b/x_T2w.nii.gz").write_bytes((raw / "a_T1w.nii.gz").read_bytes())
    corpus = harmonize(raw, tmp_path / "out")
    assert len(corpus.scans) == 2
    assert corpus.rejected["reason"].value_counts().to_dict() == {
        "not_3d": 1,
        "truncated": 1,
        "not_an_image": 1,
        "empty": 1,
        "missing_file": 1,
        "unsupported_encoding": 1,
        "duplicate": 1,
    }


@pytest.mark.parametrize(
    ("image", "mask", "given"),
    [
        ("p01_T1.nii.gz", "p01_T1_seg.nii.gz", False),
        ("p01/T1.nii.gz", "p01/T1_mask.nii", False),
        ("p01/T1.nii.gz", "p01/seg.nii.gz", False),
        ("sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_desc-lesion_dseg.nii.gz", False),
        ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", False),
        ("set/imagesTr/a_ct_001_0000.nii.gz", "set/cow_seg_labelsTr/a_ct_001.nii.gz", False),
        ("imagesTr/a_0000.nii.gz", "a.nii.gz", True),
        ("imagesTr/a_0000.nii.gz", "deep/a.nii.gz", True),
        ("imagesTr/a_0000.nii.gz", "cow_seg_labelsTr/a.nii.gz", True),
        ("p01_T1.nii.gz", "p01_T1.nii.gz", True),
        ("p01_T1.nii.gz", "deep/p01.nii.gz", True),
        ("p01/T1.nii.gz", "p01.nii.gz", True),
        ("p01/T1.nii.gz", "p01/T1.nii.gz", True),
        ("imagesTr/a.nii.gz", "a.nii.gz", True),
    ],
)
def test_a_mask_is_found_by_its_name_and_place(tmp_path: Path, image: str, mask: str, given: bool) -> None:
    raw, masks = tmp_path / "raw", tmp_path / ("masks" if given else "raw")
    save(raw / image, head())
    path = save(masks / mask, labels(1))
    refs, left = found(raw, modality="T1w", masks=masks if given else None)
    assert [refs[image].meta.get("mask")] == [path]
    assert len(refs) == 1
    assert left == {}


def test_a_mask_that_may_be_of_several_images_is_nobodys(tmp_path: Path) -> None:
    for name in ("T1w", "FLAIR"):
        save(tmp_path / f"sub-1/sub-1_{name}.nii.gz", head())
    save(tmp_path / "sub-1/sub-1_dseg.nii.gz", labels(1))
    save(tmp_path / "sub-1/sub-2_dseg.nii.gz", labels(1))
    refs, left = found(tmp_path)
    assert [ref.meta.get("mask") for ref in refs.values()] == [None, None]
    assert left == {("masks", "several images could be meant"): 1, ("masks", "no image of their name"): 1}
    named = save(tmp_path / "sub-1/sub-1_FLAIR_seg.nii.gz", labels(1))
    refs, left = found(tmp_path)
    assert [ref.meta.get("mask") for ref in refs.values()] == [named, None]


def test_of_two_masks_of_one_image_the_other_is_counted(tmp_path: Path) -> None:
    first = save(tmp_path / "a_T1_mask.nii.gz", labels(1))
    save(tmp_path / "a_T1_seg.nii.gz", labels(1))
    save(tmp_path / "a_T1.nii.gz", head())
    refs, left = found(tmp_path)
    assert refs["a_T1.nii.gz"].meta["mask"] == first
    assert left == {("masks", "the image has another"): 1}


def nnunet(root: Path, channels: dict[str, str], names: dict[str, object], *, key: str = "channel_names") -> None:
    """Two cases in nnU-Net's layout, and a third without labels."""
    for case in range(3):
        part = "Ts" if case == 2 else "Tr"
        for channel in channels:
            save(root / f"images{part}/case_{case}_{int(channel):04d}.nii.gz", head(seed=10 * case + int(channel)))
        if case < 2:
            save(root / f"labelsTr/case_{case}.nii.gz", labels(1, 2))
    (root / "dataset.json").write_text(json.dumps({key: channels, "labels": names, "file_ending": ".nii.gz"}))


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("channel_names", {"background": 0, "whole": [1, 2], "core": 1, "edema": 2}),
        ("modality", {"0": "background", "1": "core", "2": "edema"}),
    ],
)
def test_channels_of_nnunet_are_images_of_one_case_and_share_its_mask(
    tmp_path: Path, key: str, names: dict[str, object]
) -> None:
    nnunet(tmp_path / "raw", {"0": "T1", "1": "FLAIR"}, names, key=key)
    corpus = harmonize(tmp_path / "raw", tmp_path / "out")
    scans = corpus.scans
    assert sorted(scans["modality"]) == ["FLAIR"] * 3 + ["T1w"] * 3
    assert scans["subject"].value_counts().tolist() == [2, 2, 2]
    with_mask = scans[scans["mask_kind"] == "labels"]
    assert len(with_mask) == 4
    for row in with_mask.itertuples():
        assert {entry["value"]: entry["name"] for entry in row.mask_labels} == {1: "core", 2: "edema"}
        assert np.unique(read_volume(corpus.path / row.mask_file_name).stored_XYZ).tolist() == [0, 1, 2]
    assert scans[scans["mask_kind"].isna()]["mask_labels"].isna().all()


@pytest.mark.parametrize(
    ("channels", "shown"),
    [
        ({"1": "T2", "0": "T1"}, ["T1w", "T2w"]),
        ({"01": "T2", "00": "T1"}, ["T1w", "T2w"]),
        ({"0": "T1", "10": "CT", "1": "T2"}, ["T1w", "T2w"]),
        ({"0": "T1", "2": "T2"}, ["T1w", None]),
        ({"first": "T1", "second": "T2"}, [None, None]),
        ({"1": "T1", "2": "T2"}, [None, None]),
        ({"0": "T1", "00": "T2"}, [None, None]),
    ],
)
def test_a_channel_is_what_its_number_says_whatever_the_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, channels: dict[str, str], shown: list[str | None]
) -> None:
    for number in range(2):
        save(tmp_path / f"imagesTr/a_{number:04d}.nii.gz", head(seed=number))
    save(tmp_path / "labelsTr/a.nii.gz", labels(1))
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": channels}))
    refs, _ = found(tmp_path)
    assert [(ref.subject, ref.modality) for ref in refs.values()] == [("a", contrast) for contrast in shown]
    assert ("its channels are not numbered from 0" in caplog.text) == (shown == [None, None])


def test_numbers_of_cases_are_no_channels(tmp_path: Path) -> None:
    """AMOS calls its images amos_0001.nii.gz, though its dataset.json is nnU-Net's."""
    for number in ("0001", "0004"):
        save(tmp_path / f"imagesTr/amos_{number}.nii.gz", head(ct=True))
        save(tmp_path / f"labelsTr/amos_{number}.nii.gz", labels(1))
    save(tmp_path / "imagesTs/amos_0009.nii.gz", head(ct=True))
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "labels": {"1": "spleen"}}))
    refs, left = found(tmp_path)
    assert {ref.subject for ref in refs.values()} == {"amos_0001", "amos_0004", "amos_0009"}
    assert [ref.modality for ref in refs.values()] == ["CT"] * 3
    assert [ref.meta.get("mask_labels") for ref in refs.values()] == [{1: "spleen"}, {1: "spleen"}, None]
    assert left == {}


def test_a_ct_and_an_mri_of_topcow_are_one_persons_and_each_has_its_labels(tmp_path: Path) -> None:
    release = tmp_path / "TopCoW2024_Data_Release"
    for number in ("001", "002"):
        for kind in ("ct", "mr"):
            save(release / f"imagesTr/topcow_{kind}_{number}_0000.nii.gz", head(ct=kind == "ct"))
            save(release / f"cow_seg_labelsTr/topcow_{kind}_{number}.nii.gz", labels(1, 15))
            (release / f"roi_loc_labelsTr/topcow_{kind}_{number}.txt").parent.mkdir(exist_ok=True)
            (release / f"roi_loc_labelsTr/topcow_{kind}_{number}.txt").write_text("Size: 1 1 1")
    refs, left = found(tmp_path)
    said = {key.rpartition("/")[2]: (ref.modality, ref.meta["mask"], ref.subject) for key, ref in refs.items()}
    assert said == {
        f"topcow_{kind}_{number}_0000.nii.gz": (
            kind.upper(),
            release / f"cow_seg_labelsTr/topcow_{kind}_{number}.nii.gz",
            f"TopCoW2024_Data_Release/topcow_{number}",
        )
        for number in ("001", "002")
        for kind in ("ct", "mr")
    }
    assert left == {(".txt", "no image"): 4}
    assert {ref.subject for ref in found(release)[0].values()} == {"topcow_001", "topcow_002"}


def test_the_only_channel_of_a_data_set_yields_to_names_numbers_and_values(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for seed, name in enumerate(("a_ct", "amos_0500", "a_mr", "amos_0501", "amos_0507_0000", "b_T2")):
        save(raw / f"imagesTr/{name}.nii.gz", head(ct=seed < 2, seed=seed))
    (raw / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}}))
    refs, _ = found(raw)
    assert {Path(key).name.partition(".")[0]: ref.modality for key, ref in refs.items()} == {
        "a_ct": "CT",
        "a_mr": "MR",
        "amos_0500": "CT",
        "amos_0501": "MR",
        "amos_0507_0000": "MR",
        "b_T2": "T2w",
    }
    (raw / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}}))
    save(raw / "imagesTr/x.nii.gz", head(ct=True, seed=9))
    save(raw / "imagesTr/y.nii.gz", head(seed=10))
    corpus = harmonize(raw, tmp_path / "out")
    assert sorted(corpus.scans["modality"]) == ["CT", "CT", "CT", "MR", "MR", "MR", "MR", "T2w"]
    assert "taken as CT by its values; dataset.json says MR" in {
        line for lines in corpus.scans["decisions"] for line in lines
    }


def test_a_damaged_dataset_json_leaves_masks_without_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nnunet(tmp_path, {"0": "T1"}, {"core": 1})
    (tmp_path / "dataset.json").write_text("{")
    refs, _ = found(tmp_path, modality="T1w")
    assert [ref.meta.get("mask_labels") for ref in refs.values()] == [{}, {}, None]
    assert "a dataset.json: not JSON" in caplog.text


def test_masks_on_another_grid_keep_their_values_and_place(tmp_path: Path) -> None:
    raw, masks = tmp_path / "raw", tmp_path / "masks"
    save(raw / "a_T1.nii.gz", head())
    # Half the voxel size, turned round along x, in floats, with a value that needs sixteen bits.
    fine = np.repeat(np.repeat(np.repeat(labels(3, 2035), 2, 0), 2, 1), 2, 2)[::-1]
    affine = np.diag([-4.0, 4.0, 5.0, 1.0])
    affine[:3, 3] = (8 * 24 - 4 - 2, -2, -2.5)
    save(masks / "a_T1.nii.gz", fine.astype(np.float32), affine)
    (masks / "dseg.tsv").write_text("index\tname\tabbreviation\n2035\tctx-rh-insula\tx\n0\tbackground\tb\n")
    corpus = harmonize(raw, tmp_path / "out", "--masks", masks)
    (row,) = corpus.scans.itertuples()
    mask = read_volume(corpus.path / row.mask_file_name)
    assert mask.stored_XYZ.dtype == np.uint16
    assert [dict(entry) for entry in row.mask_labels] == [{"value": 2035, "name": "ctx-rh-insula"}]
    for value, x in ((3, (64, 80)), (2035, (80, 96))):
        places = np.argwhere(mask.stored_XYZ == value) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
        assert places[:, 0].mean() == pytest.approx(np.mean(x) - 4, abs=2)
        assert places[:, 1].mean() == pytest.approx(9 * 8 + 4 * 8 - 4, abs=4)
        volume_ml = len(places) * np.prod(mask.spacing) / 1000
        assert volume_ml == pytest.approx(2 * 8 * 6 * 640 / 1000, rel=0.2)


@pytest.mark.parametrize(
    ("array", "affine", "why"),
    [
        (labels(1) * 0.5, AFFINE, "its values are no whole numbers"),
        (labels(1).astype(np.int32) * -1, AFFINE, "it has values beyond 0 to 65535"),
        (labels(1).astype(np.int32) * 70_000, AFFINE, "it has values beyond 0 to 65535"),
        (labels(1), AFFINE + np.array([[0, 0, 0, 900.0]] + [[0.0] * 4] * 3), "it lies elsewhere than the image"),
        (np.zeros((*SHAPE, 2), np.uint8), AFFINE, "are not one volume"),
    ],
)
def test_what_cannot_be_a_mask_is_left_out_and_the_image_stays(
    tmp_path: Path, array: NDArray[Any], affine: NDArray[np.float64], why: str
) -> None:
    save(tmp_path / "raw/a_T1.nii.gz", head())
    save(tmp_path / "raw/a_T1_seg.nii.gz", array, affine)
    corpus = harmonize(tmp_path / "raw", tmp_path / "out")
    (row,) = corpus.scans.itertuples()
    assert row.mask_file_name is None
    assert row.mask_labels is None
    (line,) = (line for line in row.decisions if kind_of(line) is DecisionKind.MASK_LEFT_OUT)
    assert why in line


def test_a_mask_that_may_not_be_read_is_said_to_be_the_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The superuser may read everything, so the refusal is put into Python's own `open`."""
    raw, out = tmp_path / "raw", tmp_path / "corpus"
    save(raw / "p1/T1.nii.gz", head())
    mask = save(raw / "p1/T1_seg.nii.gz", labels(1))
    opened = Path.open

    def refusing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == mask:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    monkeypatch.setattr("harmonize.engine.one_scan.RETRY_AFTER_S", 0.0)
    corpus = harmonize(raw, out, code=1)
    (message,) = corpus.rejected["message"]
    assert corpus.rejected["reason"].tolist() == ["io_error"]
    assert message == "reading the mask failed: Permission denied"
    capsys.readouterr()
    assert main(["locate", "nifti", str(raw), str(out)]) == 0
    assert f"read with {mask}" in capsys.readouterr().out


def test_a_mask_of_the_images_shape_in_another_place_is_said(tmp_path: Path) -> None:
    save(tmp_path / "raw/a_T1.nii.gz", head())
    moved = AFFINE.copy()
    moved[0, 3] = 16
    save(tmp_path / "raw/a_T1_seg.nii.gz", labels(1), moved)
    corpus = harmonize(tmp_path / "raw", tmp_path / "out")
    assert DecisionKind.LABELS_PLACED_OTHERWISE in kinds(corpus.scans["decisions"][0])
    assert corpus.scans["mask_kind"][0] == "labels"


def people(root: Path, count: int = 4) -> None:
    for number in range(count):
        save(root / f"sub-{number}/sub-{number}_T1w.nii.gz", head(seed=number))


def test_a_table_by_person_brings_age_sex_and_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    people(tmp_path / "raw")
    (tmp_path / "raw/participants.tsv").write_text(
        "participant_id\tage\tsex\tdiagnosis\tmmse\tPatient Name\tmrn_old\tscan_day\tremarks\n"
        "sub-0\t60\tF\tAD\t21\tDoe\t8812345\t2019-02-03\tfell twice\n"
        "sub-1\t61\tM\tAD\t22.5\tRoe\t8812346\t2019-02-04\tn/a\n"
        "2\tn/a\tx\thealthy\t30\tMoe\t8812347\t2019-02-05\tworks as a baker\n"
        "sub-9\t62\tM\tAD\t20\tZoe\t8812348\t2019-02-06\tn/a\n"
    )
    corpus = harmonize(tmp_path / "raw", tmp_path / "out", "--salt", "secret")
    scans = corpus.scans.merge(corpus.table[["diagnosis", "mmse"]].reset_index(), on=["source", "scan_id"], how="left")
    assert sorted(corpus.table.columns) == ["age", "diagnosis", "mmse", "sex"]
    assert sorted(scans["diagnosis"].fillna("")) == ["", "AD", "AD", "healthy"]
    assert dict(zip(scans["mmse"].fillna(""), scans["age"].fillna(0), strict=True)) == {
        "": 0,
        "21": 60,
        "22.5": 61,
        "30": 0,
    }
    said = [line for lines in corpus.scans["decisions"] for line in lines]
    assert DecisionKind.SEX_SENSELESS in kinds(said)
    for column in ("Patient Name", "mrn_old", "scan_day", "remarks"):
        assert f"{column} (" in caplog.text
    assert "1 of 4 images have no row in the table" in caplog.text
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    for secret in (b"8812345", b"Doe", b"2019-02-03", b"sub-0", b"baker"):
        assert secret not in written


def test_a_table_by_file_names_person_and_contrast_of_each_image(tmp_path: Path) -> None:
    for name in ("a", "b", "deep/b", "c"):
        save(tmp_path / f"raw/x/{name}.nii.gz", head(seed=len(name)))
    table = tmp_path / "t.csv"
    table.write_text(
        "File;Subject;Contrast;grade\nx/a.nii.gz;one;T1;1\ndeep/b.nii.gz;one;T2;2\nx/c;two;sketch;3\nnobody;z;T1;4\n;q;T1;5\n"
    )
    refs, left = found(tmp_path / "raw", table=table)
    said = {key: (ref.subject, ref.modality, ref.meta["table"]) for key, ref in refs.items()}
    assert said == {
        "x/a.nii.gz": ("one", "T1w", {"grade": "1"}),
        "x/b.nii.gz": ("x", None, {}),
        "x/c.nii.gz": ("two", None, {"grade": "3"}),
        "x/deep/b.nii.gz": ("one", "T2w", {"grade": "2"}),
    }
    assert refs["x/c.nii.gz"].rejection is not None
    assert refs["x/c.nii.gz"].rejection.reason == "unsupported_modality"
    assert left == {("rows of t.csv", "no image of theirs"): 1, ("rows of t.csv", "they name no scan"): 1}


def test_rows_that_contradict_each_other_keep_what_they_agree_in(tmp_path: Path) -> None:
    people(tmp_path, 1)
    table = tmp_path / "t.csv"
    table.write_text("subject,age,sex,score,group\n0,50,F,1,2\nsub-0,51,?,1,3\n")
    refs, left = found(tmp_path, table=table)
    (ref,) = refs.values()
    assert (ref.meta["age"], ref.meta["table"]) == (None, {"score": "1"})
    assert kinds(ref.meta["notes"]) == {DecisionKind.TABLE_CONTRADICTS}
    assert left["rows of t.csv", "the same scan stands in an earlier row"] == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--modality", "a b"], "--modality a b: no word of letters and digits; use one of CT"),
        (["--table", "t.csv"], "t.csv: no column says which scan a row is about; name one of them file"),
        (["--table", "nowhere.csv"], "--table nowhere.csv: no such file"),
        (["--masks", "nowhere"], "--masks nowhere: no such folder"),
        (["--masks", "empty"], "empty: holds no NIfTI files"),
        (["--maks", "x"], "--maks: unknown option; did you mean --masks?"),
    ],
)
def test_wrong_use_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    people(tmp_path / "raw", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.csv").write_text("name,age\nDoe,50\n")
    assert main(["nifti", "raw", "--out", "out", *words]) == 2
    said = capsys.readouterr().err
    assert error in said
    assert said.count("\n") == 1
    assert "Doe" not in said
    assert not (tmp_path / "out").exists()


def test_other_options_and_tables_make_scans_again_and_the_same_do_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out, table = tmp_path / "raw", tmp_path / "out", tmp_path / "t.csv"
    people(raw)
    save(tmp_path / "masks/sub-1_T1w.nii.gz", labels(4))
    table.write_text("subject,grade\n0,1\n1,0\n")
    words = ("--table", table, "--masks", tmp_path / "masks")
    first = harmonize(raw, out, *words).manifest_sha256()
    capsys.readouterr()
    assert harmonize(raw, out, *words).manifest_sha256() == first
    assert "4 (4 done before)" in capsys.readouterr().out
    table.write_text("subject,grade\n0,1\n1,1\n")
    corpus = harmonize(raw, out, *words)
    assert "4 (3 done before)" in capsys.readouterr().out
    assert sorted(corpus.table["grade"]) == ["1", "1"]
    corpus = harmonize(raw, out, *words[:2])
    assert corpus.scans["mask_kind"].isna().all()
    assert not list((out / "masks").rglob("*.nii.gz"))


def test_shards_merge_to_the_same_corpus_and_scans_are_located(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    nnunet(raw, {"0": "T1"}, {"core": 1, "edema": 2})
    whole = harmonize(raw, tmp_path / "whole")
    for part in range(2):
        words = ["--out", tmp_path / "parts", "--spacing", "8", "--workers", "0", "--mri-norm", "none"]
        assert main([str(word) for word in ["nifti", raw, *words, "--shard", f"{part}/2"]]) == 0
    assert main(["merge", str(tmp_path / "parts")]) == 0
    parts = Corpus.open(tmp_path / "parts")
    pd.testing.assert_frame_equal(parts.scans, whole.scans)
    capsys.readouterr()
    name = whole.scans["scan_id"][0]
    assert main(["locate", "nifti", str(raw), str(tmp_path / "whole"), name]) == 0
    assert "case_" in capsys.readouterr().out


def test_references_of_the_registry_need_no_options(tmp_path: Path) -> None:
    people(tmp_path, 2)
    assert [ref.subject for ref in sources.references("nifti", tmp_path)] == ["sub-0", "sub-1"]


@pytest.mark.parametrize("masks", ["", "labels"])
def test_masks_that_take_all_images_are_told_from_a_folder_without_any(
    tmp_path: Path, masks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "raw/labels/a.nii.gz", head())
    save(tmp_path / "raw/labels/b.nii.gz", head())
    words = ["nifti", tmp_path / "raw", "--out", tmp_path / "corpus", "--masks", tmp_path / "raw" / masks]
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr().err
    assert "2 files" in said
    assert "taken for masks" in said


def test_a_folder_of_something_else_says_what_it_looks_like(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(UserError, match="looks like DICOM: try harmonize"):
        list(nifti.discover(tmp_path))
    with pytest.raises(UserError, match="expected is a folder of NIfTI images"):
        list(nifti.discover(tmp_path / "nowhere"))


def test_real_images_with_a_table_of_contrasts(tmp_path: Path, real_data: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        "file,subject,modality\nstroke_T1,s,T1w\nstroke_T2,s,T2w\nstroke_FLAIR,s,FLAIR\n"
        "torchio_fernando_t2flairlike_0.75x0.75x5.5,f,FLAIR\n"
    )
    corpus = harmonize(real_data / "nifti_mit", tmp_path / "out", "--table", table)
    assert sorted(corpus.scans["modality"]) == ["FLAIR", "FLAIR", "T1w", "T2w"]
    assert corpus.scans["subject"].nunique() == 2
