"""Phantoms of TopCoW and AMOS: their layouts, values and places, and that `harmonize nifti` reads them as published."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from harmonize import phantom
from harmonize.phantom import amos, topcow
from harmonize.phantom import nifti as bids
from harmonize.scan import ScanRef
from harmonize.sources import nifti


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("raw")
    phantom.write("topcow", out, scans=2, size=72, seed=2)
    phantom.write("amos", out, scans=3, size=40, seed=2)
    phantom.write("nifti", out, scans=2, size=40, seed=2)
    return out


def read(path: Path) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def middle(labels: NDArray[np.generic], affine: NDArray[np.float64], value: int) -> NDArray[np.float64]:
    """Of the voxels with a value, in RAS+ mm."""
    return nib.affines.apply_affine(affine, np.argwhere(labels == value).mean(0))


def test_topcow_has_a_cta_and_an_mra_of_each_person_whose_arteries_lie_where_they_shine(raw: Path) -> None:
    value = {name: number for number, name in topcow.LABELS.items()}
    places: dict[str, dict[str, NDArray[np.float64]]] = {}
    for kind in ("ct", "mr"):
        image, affine = read(raw / f"topcow/imagesTr/topcow_{kind}_001_0000.nii.gz")
        labels, of_labels = read(raw / f"topcow/cow_seg_labelsTr/topcow_{kind}_001.nii.gz")
        assert np.array_equal(affine, of_labels)
        found = set(np.unique(labels).tolist()) - {0}
        assert found <= set(topcow.LABELS)
        assert len(found) >= 11
        assert image[labels > 0].mean() > np.percentile(image[labels == 0], 85)
        places[kind] = {name: middle(labels, affine, number) for name, number in value.items() if number in found}
        for artery in ("ICA", "MCA", "PCA"):
            assert places[kind][f"R-{artery}"][0] > places[kind][f"L-{artery}"][0] + 8
        assert places[kind]["R-MCA"][0] > places[kind]["R-ICA"][0]
    for artery in ("R-MCA", "L-MCA", "R-ICA", "L-PCA"):
        assert np.linalg.norm(places["ct"][artery] - places["mr"][artery]) < 8


def test_one_of_five_people_has_a_third_a2_and_no_label_lies_beyond_the_circle(raw: Path) -> None:
    labels, affine = read(raw / "topcow/cow_seg_labelsTr/topcow_ct_001.nii.gz")
    assert 15 in labels  # the first person is one of them
    places = nib.affines.apply_affine(affine, np.argwhere(labels > 0))
    assert (np.ptp(places, axis=0) < np.array(topcow.ROI_MM) * 1.2).all()


def test_amos_tells_ct_from_mri_by_the_number_alone_and_organs_have_their_own_brightness(raw: Path) -> None:
    names = sorted(path.name for path in (raw / "amos/imagesTr").iterdir())
    assert names == ["amos_0001.nii.gz", "amos_0002.nii.gz", "amos_0501.nii.gz"]
    said = json.loads((raw / "amos/dataset.json").read_text())
    assert said["modality"] == {"0": "CT"}
    assert len(said["labels"]) == len(amos.LABELS) + 1
    image, affine = read(raw / "amos/imagesTr/amos_0001.nii.gz")
    labels, _ = read(raw / "amos/labelsTr/amos_0001.nii.gz")
    values = {name: image[labels == value].mean() for value, name in amos.LABELS.items() if (labels == value).any()}
    assert len(values) >= 12
    assert values["liver"] == pytest.approx(105, abs=6)
    assert values["aorta"] == pytest.approx(210, abs=6)
    assert image.min() < -900
    sides = [middle(labels, affine, value)[0] for value in (2, 3)]
    assert sides[0] > sides[1]
    assert read(raw / "amos/imagesTr/amos_0501.nii.gz")[0].min() >= 0


def test_both_are_read_as_published(raw: Path) -> None:
    found = {
        name: {ref.key.rpartition("/")[2]: ref for ref in nifti.discover(raw / name) if isinstance(ref, ScanRef)}
        for name in ("topcow", "amos")
    }
    said = {key: (ref.modality, ref.subject, ref.meta["mask"]) for key, ref in found["topcow"].items()}
    labels = raw / "topcow/cow_seg_labelsTr"
    assert said == {
        "topcow_ct_001_0000.nii.gz": ("CT", "topcow_001", labels / "topcow_ct_001.nii.gz"),
        "topcow_mr_001_0000.nii.gz": ("MR", "topcow_001", labels / "topcow_mr_001.nii.gz"),
    }
    assert [(key, ref.modality) for key, ref in found["amos"].items()] == [
        ("amos_0001.nii.gz", "CT"),
        ("amos_0002.nii.gz", "CT"),
        ("amos_0501.nii.gz", "MR"),
    ]
    assert all(ref.meta["mask_labels"] == amos.LABELS for ref in found["amos"].values())


def test_hemispheres_are_the_halves_of_the_brain_on_their_sides(raw: Path) -> None:
    for path in sorted((raw / "nifti" / bids.HALVES).rglob("*.nii.gz")):
        labels, affine = read(path)
        left, right = (np.count_nonzero(labels == value) for value in bids.HEMISPHERES)
        assert left == pytest.approx(right, rel=0.15)
        ml = (left + right) * abs(np.linalg.det(affine[:3, :3])) / 1000
        assert 700 < ml < 1900
        assert middle(labels, affine, 2)[0] - middle(labels, affine, 1)[0] > 40
