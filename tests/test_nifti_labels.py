"""Label maps and maps of statistics among a lab's own NIfTI: never images, and masks where it is known of what."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from test_source_nifti import AFFINE, found, harmonize, head, labels, save

from harmonize.cli import main
from harmonize.errors import Rejection
from harmonize.raw_tree import RawTree
from harmonize.sources.nifti_image import images_in, is_image_name, load_image

PAIRS = [
    ("images/a.nii.gz", "labels/a.nii.gz"),
    ("Images/a.nii.gz", "Labels/a.nii.gz"),
    ("imagestr/a_0000.nii.gz", "labelstr/a.nii.gz"),
    ("imagesTr/a_0000.nii.gz", "Labels/a.nii.gz"),
    ("train/img/a.nii.gz", "train/Segmentations/a.nii.gz"),
    ("images/deep/a.nii.gz", "masks/deep/a.nii.gz"),
    ("Segmentation/imagesTr/a_0000.nii.gz", "Segmentation/labelsTr/a.nii.gz"),
    ("p01/T1.nii.gz", "p01/masks/T1_seg.nii.gz"),
    ("p01/T1.nii.gz", "p01/MASKS/T1.nii.gz"),
    ("p01/T1.nii.gz", "p01/T1_seg-final.nii.gz"),
    ("p01/T1.nii.gz", "p01/T1_mask_v2.nii.gz"),
    ("p01/T1.nii.gz", "p01/T1 Mask (1).nii.gz"),
]


@pytest.mark.parametrize(("image", "mask"), PAIRS)
def test_labels_in_folders_of_their_own_and_of_several_versions_are_masks(
    tmp_path: Path, image: str, mask: str
) -> None:
    save(tmp_path / image, head())
    path = save(tmp_path / mask, labels(1))
    refs, left = found(tmp_path, modality="T1w")
    assert {key: ref.meta.get("mask") for key, ref in refs.items()} == {image: path}
    assert left == {}


def test_cases_of_one_name_in_several_parts_of_a_data_set_have_their_own_masks(tmp_path: Path) -> None:
    wanted = {}
    for part in ("train", "val"):
        save(tmp_path / f"{part}/images/a.nii.gz", head())
        wanted[f"{part}/images/a.nii.gz"] = save(tmp_path / f"{part}/labels/a.nii.gz", labels(1))
    refs, left = found(tmp_path, modality="CT")
    assert {key: ref.meta["mask"] for key, ref in refs.items()} == wanted
    assert left == {}


def test_masks_of_something_else_are_neither_images_nor_the_images_labels(tmp_path: Path) -> None:
    for name in ("T1", "aseg", "brainmask", "T1_probseg", "T1_masked"):
        save(tmp_path / f"p01/{name}.nii.gz", head())
    save(tmp_path / "p01/masks/other.nii.gz", labels(1))
    refs, left = found(tmp_path, modality="T1w")
    assert {key: ref.meta.get("mask") for key, ref in refs.items()} == {
        "p01/T1.nii.gz": None,
        "p01/T1_masked.nii.gz": None,
    }
    assert left == {
        ("masks", "no names that pair them with images; --masks takes any"): 3,
        ("masks", "no image of their name"): 1,
    }


def test_people_whose_initials_are_words_for_masks_keep_their_images(tmp_path: Path) -> None:
    keys = ["GT_01.nii.gz", "ROI-7.nii.gz", "sub-seg/sub-seg_T1w.nii.gz"]
    for key in keys:
        save(tmp_path / key, head())
    assert sorted(found(tmp_path, modality="T1w")[0]) == sorted(keys)


COHORTS = [
    ["MASK/q01/T1.nii.gz", "ADNI/p01/T1.nii.gz"],
    ["Label/q01/anat/T1.nii.gz", "Label/dataset_description.json", "ADNI/q01/anat/T1.nii.gz"],
    ["MASK_012.nii.gz", "MASK_013.nii.gz", "MASK_014_T1.nii.gz"],
]


@pytest.mark.parametrize("keys", COHORTS)
def test_a_study_whose_name_is_a_word_for_masks_keeps_its_images(tmp_path: Path, keys: list[str]) -> None:
    for key in keys:
        save(tmp_path / key, head()) if key.endswith(".gz") else (tmp_path / key).write_text("{}")
    images = sorted(key for key in keys if key.endswith(".gz"))
    refs, left = found(tmp_path, modality="T1w")
    assert (sorted(refs), left) == (images, {})
    assert answered(tmp_path) == images


LABELS = [
    ("ct/p01/a.nii.gz", "mask/p01/a.nii.gz"),
    ("ct/p01/a.nii.gz", "mask/p01_mask/lesion.nii.gz"),
    ("ct/a.nii.gz", "label/b.nii.gz"),
    ("p01/anat/T1.nii.gz", "p01/mask/lesion.nii.gz"),
    ("p01/anat/T1.nii.gz", "p01/seg/lesions/1.nii.gz"),
    ("images/p01/a.nii.gz", "label/q01/a.nii.gz"),
    ("IMG_012.nii.gz", "MASK_012.nii.gz"),
    ("p01/T1.nii.gz", "p01/MASK_001.nii.gz"),
    ("p01/T1.nii.gz", "p01/MASK_01.nii.gz"),
    ("p01.nii.gz", "p01_label_1.nii.gz"),
]


@pytest.mark.parametrize(("image", "mask"), LABELS)
def test_labels_that_may_be_labels_are_never_images(tmp_path: Path, image: str, mask: str) -> None:
    save(tmp_path / image, head())
    save(tmp_path / mask, labels(1))
    assert list(found(tmp_path, modality="T1w")[0]) == [image]
    assert answered(tmp_path) == [image]


def answered(root: Path) -> list[str]:
    """What prediction takes of a tree."""
    folders = RawTree(root).folders()
    return sorted(paths[0].relative_to(root).as_posix() for folder in folders for paths in images_in(folder))


def test_a_folder_of_labels_alone_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "raw/labels/a.nii.gz", labels(1))
    assert main(["nifti", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]) == 2
    assert "no nifti scans found; it holds 1 masks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("intent", "what"), [(1002, "labels"), (5, "a map of a statistic"), (22, "a map of a statistic"), (0, None)]
)
def test_a_header_that_says_labels_or_a_statistic_is_no_image(tmp_path: Path, intent: int, what: str | None) -> None:
    (tmp_path / "raw").mkdir()
    # A mask may say of itself that it is labels.
    for name, array in (("a_T1w", head()), ("b_seg", labels(1))):
        image = nib.Nifti1Image(array.astype(np.float32), AFFINE)
        image.header["intent_code"] = intent
        nib.save(image, tmp_path / f"raw/{name}.nii.gz")
    save(tmp_path / "raw/b.nii.gz", head(seed=1))
    corpus = harmonize(tmp_path / "raw", tmp_path / "out", "--modality", "T1w")
    assert len(corpus.scans) == (2 if what is None else 1)
    assert corpus.scans["mask_kind"].notna().any()
    assert corpus.rejected["reason"].tolist() == ([] if what is None else ["derived"])
    if what is not None:
        message = f"{what} by the header's intent_code, {intent}"
        assert corpus.rejected["message"][0].startswith(message)
        with pytest.raises(Rejection, match=message):
            load_image((tmp_path / "raw/a_T1w.nii.gz",))


def test_prediction_asks_no_model_about_masks() -> None:
    names = ("T1.nii.gz", "T1_seg-final.nii.gz", "brainmask.nii.gz", "T1_masked.nii.gz")
    assert [name for name in names if is_image_name(name)] == ["T1.nii.gz", "T1_masked.nii.gz"]
