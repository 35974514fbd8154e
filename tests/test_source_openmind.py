"""OpenMind's tree: what is an image, what it shows, and which mask is whose."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from harmonize.errors import Reason, Rejection, UserError
from harmonize.identity import scan_id, subject_id
from harmonize.scan import LeftOut, ScanRef
from harmonize.sources import openmind, references

VOXELS = np.random.default_rng(0).normal(100, 9, (8, 9, 10)).astype(np.float32)


def image(path: Path, voxels: np.ndarray = VOXELS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1, 2, 1])), path)
    return path


def table(root: Path, *lines: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / openmind.TABLE).write_text("\n".join(lines) + "\n")


def test_the_table_says_what_an_image_shows(tmp_path: Path) -> None:
    image(tmp_path / "OpenMind/ds000001/sub-01/ses-T1/anat/sub-01_ses-T1_T1w.nii.gz")
    table(
        tmp_path,
        "sex,image_path,junk,modality,age",
        "female,ds000001/sub-01/ses-T1/anat/sub-01_ses-T1_T1w.nii.gz,?,MP2RAGE,31.5",
    )
    (ref,) = references("openmind", tmp_path)
    scan = openmind.load(ref)
    assert (scan.modality, scan.annotations.age, scan.annotations.sex) == ("MP2RAGE", 31.5, "F")
    assert np.array_equal(scan.voxels_XYZ, VOXELS)
    assert ref.session == "ses-T1"
    assert scan_id(ref, "") == "ds000001__sub-01_ses-T1_T1w"
    assert subject_id(ref, "") == "ds000001_sub-01"


@pytest.mark.parametrize(
    ("said", "taken", "told"),
    [
        ("t2W", "T2w", False), ("angio", "angio", False), ("PET", "PET", False), ("inplaneT1", "inplaneT1", False),
        ("UNIT1_denoised", "UNIT1_denoised", False), ("MRA", "MRA", False), ("mprage", "T1w", False),
        ("n/a", "FLAIR", False), ("nan", "FLAIR", False), ("Unknown", "FLAIR", False), ("DOE Jane", "FLAIR", True),
    ],
)  # fmt: skip
def test_only_contrasts_that_are_known_are_taken_from_the_table(
    tmp_path: Path, said: str, taken: str, told: bool
) -> None:
    image(tmp_path / "OpenMind/ds000001/sub-01/anat/sub-01_FLAIR.nii.gz")
    table(tmp_path, "image_path,modality", f"ds000001/sub-01/anat/sub-01_FLAIR.nii.gz,{said}")
    (ref,) = references("openmind", tmp_path)
    scan = openmind.load(ref)
    assert ref.modality == scan.modality == taken
    assert ("the table names no known contrast: that of the file's name is taken" in scan.decisions) == told


@pytest.mark.parametrize("said", ["CT", "ct", " Ct"])
def test_a_ct_is_one_however_it_is_written_and_no_mri_passes_for_one(tmp_path: Path, said: str) -> None:
    body = np.where(np.indices((40, 40, 20))[0] > 20, 40, -1000) + np.random.default_rng(0).normal(0, 9, (40, 40, 20))
    image(tmp_path / "OpenMind/ds000001/sub-01/ct/sub-01_x.nii.gz", body.astype(np.float32))
    image(tmp_path / "OpenMind/ds000001/sub-02/ct/sub-02_x.nii.gz")
    table(tmp_path, "image_path,modality", *(f"ds000001/sub-0{n}/ct/sub-0{n}_x.nii.gz,{said}" for n in (1, 2)))
    ct, mri = references("openmind", tmp_path)
    scan = openmind.load(ct)
    assert (scan.modality, scan.unit) == ("CT", "HU")
    with pytest.raises(Rejection) as caught:
        openmind.load(mri)
    assert caught.value.reason == Reason.UNSUPPORTED_UNIT


def test_without_a_table_the_bids_suffix_says_it(tmp_path: Path) -> None:
    image(tmp_path / "OpenMind/ds000001/sub-01/anat/sub-01_T2w.nii")
    image(tmp_path / "OpenMind/ds000001/sub-01/anat/sub-01_FLAIR.nii.gz")
    assert [ref.modality for ref in references("openmind", tmp_path)] == ["FLAIR", "T2w"]


def test_the_tree_itself_may_be_given(tmp_path: Path) -> None:
    image(tmp_path / "OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz")
    table(tmp_path, "image_path,modality", "ds000001/sub-01/anat/sub-01_T1w.nii.gz,PDw")
    inner = list(references("openmind", tmp_path / "OpenMind"))
    assert inner == list(references("openmind", tmp_path))
    assert inner[0].modality == "PDw"


def test_an_image_that_the_table_does_not_list_is_not_lost(tmp_path: Path) -> None:
    image(tmp_path / "OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz")
    image(tmp_path / "OpenMind/ds000001/sub-02/anat/sub-02_T1w.nii.gz")
    table(tmp_path, "image_path,modality", "ds000001/sub-01/anat/sub-01_T1w.nii.gz,T1w")
    assert len(list(references("openmind", tmp_path))) == 2


def test_an_unknown_contrast_is_refused_and_not_dropped(tmp_path: Path) -> None:
    image(tmp_path / "OpenMind/ds000001/sub-01/func/sub-01_boldref.nii.gz")
    (ref,) = references("openmind", tmp_path)
    with pytest.raises(Rejection) as caught:
        openmind.load(ref)
    assert caught.value.reason == Reason.UNSUPPORTED_MODALITY


def test_apple_doubles_hidden_files_and_masks_are_no_images(tmp_path: Path) -> None:
    anat = tmp_path / "OpenMind/ds000001/sub-01/anat"
    image(anat / "sub-01_T1w.nii.gz")
    image(anat / "sub-01_T1w__Data/deface_mask.nii.gz")
    image(anat / "sub-01_T1w__Data/fb_mask.nii.gz")
    image(anat / "elsewhere/head.nii.gz")
    (anat / "._sub-01_T1w.nii.gz").write_bytes(b"\0")
    (anat / ".hidden_T1w.nii.gz").write_bytes(b"\0")
    table(
        tmp_path,
        "image_path,modality,anat_mask_path",
        "ds000001/sub-01/anat/sub-01_T1w.nii.gz,T1w,ds000001/sub-01/anat/elsewhere/head.nii.gz",
    )
    assert [ref.paths[0].name for ref in references("openmind", tmp_path)] == ["sub-01_T1w.nii.gz"]


def test_images_derived_from_diffusion_are_scans_of_their_own(tmp_path: Path) -> None:
    image(tmp_path / "OpenMind/ds000001/sub-01/dwi/sub-01_dwi__Data/sub-01_ADC.nii.gz")
    (ref,) = references("openmind", tmp_path)
    assert ref.modality == "ADC"
    assert scan_id(ref, "") == "ds000001__dwi__sub-01_dwi__Data__sub-01_ADC"


def test_the_anatomy_mask_is_turned_round_and_the_deface_mask_is_not(tmp_path: Path) -> None:
    anat = tmp_path / "OpenMind/ds000001/sub-01/anat"
    image(anat / "sub-01_T1w.nii.gz")
    background = np.ones((8, 9, 10), dtype=np.uint8)
    background[2:6, 2:6, 2:6] = 0
    defaced = np.zeros((8, 9, 10), dtype=np.uint8)
    defaced[:, 7:] = 1
    image(anat / "sub-01_T1w__Data/fb_mask.nii.gz", background)
    image(anat / "sub-01_T1w__Data/deface_mask.nii.gz", defaced)
    (ref,) = references("openmind", tmp_path)
    scan = openmind.load(ref)
    assert np.array_equal(scan.masks["anatomy"].labels_XYZ, 1 - background)
    assert np.array_equal(scan.masks["deface"].labels_XYZ, defaced)


def test_scans_of_a_session_may_share_the_masks_that_the_table_names(tmp_path: Path) -> None:
    anat = tmp_path / "OpenMind/ds000001/sub-01/anat"
    image(anat / "sub-01_T1w.nii.gz")
    image(anat / "sub-01_T2w.nii.gz")
    image(anat / "sub-01_T1w__Data/fb_mask.nii.gz", np.zeros((8, 9, 10), dtype=np.uint8))
    shared = "OpenMind/ds000001/sub-01/anat/sub-01_T1w__Data/fb_mask.nii.gz"
    table(
        tmp_path,
        "image_path,modality,anat_mask_path",
        f"./OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz,T1w,{shared}",
        f"ds000001/sub-01/anat/sub-01_T2w.nii.gz,T2w,{shared}",
    )
    assert all("anatomy" in openmind.load(ref).masks for ref in references("openmind", tmp_path))


def test_a_mask_that_is_missing_or_damaged_is_said(tmp_path: Path) -> None:
    anat = tmp_path / "OpenMind/ds000001/sub-01/anat"
    image(anat / "sub-01_T1w.nii.gz")
    (anat / "sub-01_T1w__Data").mkdir()
    (anat / "sub-01_T1w__Data/fb_mask.nii.gz").write_bytes(b"")
    table(
        tmp_path,
        "image_path,modality,anon_mask_path",
        "ds000001/sub-01/anat/sub-01_T1w.nii.gz,T1w,ds000001/nowhere.nii.gz",
    )
    (ref,) = references("openmind", tmp_path)
    scan = openmind.load(ref)
    assert scan.masks == {}
    assert list(scan.decisions[-2:]) == [
        "the anatomy mask was left out: the file is empty",
        "the deface mask is listed but missing",
    ]


def test_a_mask_path_that_leaves_the_tree_is_refused(tmp_path: Path) -> None:
    image(tmp_path / "OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz")
    table(
        tmp_path,
        "image_path,modality,anat_mask_path",
        "ds000001/sub-01/anat/sub-01_T1w.nii.gz,T1w,../../../etc/passwd",
    )
    (ref,) = references("openmind", tmp_path)
    with pytest.raises(Rejection) as caught:
        openmind.load(ref)
    assert caught.value.reason == Reason.UNSAFE_NAME


def test_a_table_without_a_needed_column_is_named(tmp_path: Path) -> None:
    image(tmp_path / "OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz")
    table(tmp_path, "path,modality", "a,b")
    with pytest.raises(UserError, match="image_path"):
        list(references("openmind", tmp_path))


def test_what_the_table_lacks_and_what_has_no_file_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image(tmp_path / "OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz")
    table(tmp_path, "image_path,modality", "ds000001/sub-01/anat/sub-01_T1w.nii.gz,T1w", "ds000009/x_T1w.nii.gz,T1w")
    with caplog.at_level(logging.WARNING):
        assert len(list(references("openmind", tmp_path))) == 1
    assert "anat_mask_path" in caplog.text
    assert "1 of 2 rows" in caplog.text


def test_names_outside_the_public_data_sets_are_hashed(tmp_path: Path) -> None:
    image(tmp_path / "private/DOE_JANE_T1w.nii.gz")
    (ref,) = references("openmind", tmp_path / "private")
    assert ref.public_id is None
    assert "DOE" not in scan_id(ref, "") + subject_id(ref, "")


def test_every_format_that_nibabel_reads_is_a_scan_and_the_plain_one_keeps_the_name(tmp_path: Path) -> None:
    anat = tmp_path / "OpenMind/ds000001/sub-01/anat"
    image(anat / "sub-01_T1w.nii.gz")
    image(anat / "sub-01_T2w.nii.gz").rename(anat / "sub-01_T2w.NII.GZ")
    image(anat / "sub-01_PDw.nii.bz2")
    nib.save(nib.Nifti1Pair(VOXELS, np.eye(4)), anat / "sub-01_SWI.img")
    nib.save(nib.MGHImage(VOXELS, np.eye(4)), anat / "sub-01_T1w.mgz")
    found = list(references("openmind", tmp_path))
    assert [ref.paths[0].name for ref in found] == [
        "sub-01_T1w.nii.gz", "sub-01_PDw.nii.bz2", "sub-01_SWI.img", "sub-01_T1w.mgz", "sub-01_T2w.NII.GZ",
    ]  # fmt: skip
    assert scan_id(found[0], "") == scan_id(found[3], "") == "ds000001__sub-01_T1w"
    assert [ref.modality for ref in found] == ["T1w", "PDw", "SWI", "T1w", "T2w"]
    for ref in found:
        assert np.array_equal(openmind.load(ref).voxels_XYZ, VOXELS)


def test_what_is_no_image_is_refused_or_counted(tmp_path: Path) -> None:
    anat = tmp_path / "OpenMind/ds000001/sub-01/anat"
    image(anat / "sub-01_T1w.nii.gz")
    image(anat / "sub-02_T1w__Data/fb_mask.nii.gz")
    for name in ("a.hdr", "b.nrrd", "c.dcm", "d.json", "../../participants.tsv", "../../../../README.md"):
        (anat / name).touch()
    found = list(openmind.discover(tmp_path))
    refused = {ref.key: ref.rejection.reason for ref in found if isinstance(ref, ScanRef) and ref.rejection}
    prefix = "ds000001/sub-01/anat"
    assert refused == {
        f"{prefix}/a.hdr": "missing_file",
        f"{prefix}/b.nrrd": "unsupported_encoding",
        f"{prefix}/c.dcm": "unsupported_encoding",
    }
    assert {(left.what, left.why) for left in found if isinstance(left, LeftOut)} == {
        (".json", "no image"), (".tsv", "no image"), (".md", "outside OpenMind/"), ("masks", "no image beside them"),
    }  # fmt: skip


def test_a_linked_data_set_is_read(tmp_path: Path) -> None:
    image(tmp_path / "disk/ds000002/sub-01/anat/sub-01_T1w.nii.gz")
    (tmp_path / "raw/OpenMind").mkdir(parents=True)
    (tmp_path / "raw/OpenMind/ds000002").symlink_to(tmp_path / "disk/ds000002")
    (ref,) = references("openmind", tmp_path / "raw")
    assert scan_id(ref, "") == "ds000002__sub-01_T1w"
    assert np.array_equal(openmind.load(ref).voxels_XYZ, VOXELS)


@pytest.mark.parametrize("above", ["OpenMind/OpenMind", "OpenMind/disk1", "downloads/OpenMind"])
def test_data_sets_that_lie_deeper_are_known_by_the_table_and_their_patients_stay_apart(
    tmp_path: Path, above: str
) -> None:
    for data_set in ("ds000001", "ds000002"):
        anat = tmp_path / above / data_set / "sub-01/anat"
        image(anat / "sub-01_T1w.nii.gz")
        image(anat / "sub-01_FLAIR.nii.gz")
        image(anat / "sub-01_T1w__Data/fb_mask.nii.gz", np.zeros((8, 9, 10), np.float32))
    table(
        tmp_path,
        "image_path,modality,age,anat_mask_path",
        *(
            f"OpenMind/{data_set}/sub-01/anat/sub-01_{kind}.nii.gz,{kind},{age},"
            f"OpenMind/{data_set}/sub-01/anat/sub-01_T1w__Data/fb_mask.nii.gz"
            for data_set, age in (("ds000001", 31), ("ds000002", 62))
            for kind in ("FLAIR", "T1w")
        ),
    )
    found = list(references("openmind", tmp_path))
    assert [scan_id(ref, "") for ref in found] == [
        "ds000001__sub-01_FLAIR", "ds000001__sub-01_T1w", "ds000002__sub-01_FLAIR", "ds000002__sub-01_T1w"
    ]  # fmt: skip
    assert [ref.subject for ref in found] == ["ds000001_sub-01"] * 2 + ["ds000002_sub-01"] * 2
    assert [ref.meta["age"] for ref in found] == [31, 31, 62, 62]
    assert all("anatomy" in openmind.load(ref).masks for ref in found)


def test_numbers_of_subjects_are_those_of_their_own_data_set(tmp_path: Path) -> None:
    for place in ("lab/a", "lab/b", "lab/a/derivatives/x", "own"):
        image(tmp_path / "OpenMind" / place / "sub-01/anat/sub-01_T1w.nii.gz")
    subjects = {ref.key.split("/sub-")[0]: ref.subject for ref in references("openmind", tmp_path)}
    assert subjects == {
        "lab/a": "lab/a_sub-01", "lab/a/derivatives/x": "lab/a_sub-01", "lab/b": "lab/b_sub-01", "own": "own_sub-01"
    }  # fmt: skip


def test_the_table_may_lie_in_the_tree(tmp_path: Path) -> None:
    image(tmp_path / "OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz")
    table(tmp_path / "OpenMind", "image_path,modality,age", "ds000001/sub-01/anat/sub-01_T1w.nii.gz,T1w,31")
    (ref,) = references("openmind", tmp_path)
    assert ref.meta["age"] == 31


def test_rows_that_contradict_each_other_say_nothing_of_what_they_differ_in(tmp_path: Path) -> None:
    image(tmp_path / "OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz")
    name = "ds000001/sub-01/anat/sub-01_T1w.nii.gz"
    table(tmp_path, "image_path,modality,age,sex", f"{name},T1w,30,F", f"OpenMind/{name},T2w,30.0,unclear")
    (ref,) = references("openmind", tmp_path)
    scan = openmind.load(ref)
    assert (scan.modality, scan.annotations.age, scan.annotations.sex) == ("T1w", 30.0, None)
    assert list(scan.decisions[:2]) == [
        "the table contradicts itself about the modality: left out",
        "the table contradicts itself about the sex: left out",
    ]


def test_an_age_that_makes_no_sense_is_a_decision_that_does_not_quote_it(tmp_path: Path) -> None:
    image(tmp_path / "OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz")
    table(tmp_path, "image_path;modality;age", "ds000001/sub-01/anat/sub-01_T1w.nii.gz;PDw;born 1950")
    (ref,) = references("openmind", tmp_path)
    scan = openmind.load(ref)
    assert (scan.modality, scan.annotations.age) == ("PDw", None)
    assert "the table's age makes no sense: left out" in scan.decisions


def test_hounsfield_units_beyond_float32_are_refused_by_name(tmp_path: Path) -> None:
    image(tmp_path / "OpenMind/ds000001/sub-01/anat/sub-01_CT.nii.gz", VOXELS.astype(np.float64) * 1e60)
    image(tmp_path / "OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz", VOXELS.astype(np.float64) * 1e60)
    ct, mri = references("openmind", tmp_path)
    with pytest.raises(Rejection, match="beyond float32") as caught:
        openmind.load(ct)
    assert caught.value.reason == Reason.BAD_INTENSITY
    scan = openmind.load(mri)
    assert np.corrcoef(scan.voxels_XYZ.ravel(), VOXELS.ravel())[0, 1] == pytest.approx(1)
