"""The OpenMind tree: masks with the published polarity, defaced images, voxel orders of all kinds."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from harmonize import phantom


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("openmind")
    phantom.write("openmind", out, scans=10, size=28, seed=0)
    return out / "openmind"


@pytest.fixture(scope="module")
def table(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "openneuro_metadata.csv")


def load(root: Path, relative: str) -> nibabel.Nifti1Image:
    return nibabel.load(root / "OpenMind" / relative)


def test_the_foreground_mask_is_one_in_the_background(root: Path, table: pd.DataFrame) -> None:
    for row in table.itertuples():
        image, background = load(root, row.image_path), load(root, row.anat_mask_path)
        values, outside = image.get_fdata(), np.asarray(background.dataobj)
        assert set(np.unique(outside)) == {0, 1}
        assert outside[0, 0, 0] == outside[-1, -1, -1] == 1
        defaced = (
            np.asarray(load(root, row.anon_mask_path).dataobj) if isinstance(row.anon_mask_path, str) else 0 * outside
        )
        assert values[(outside == 0) & (defaced == 0)].mean() > 5 * values[(outside == 1) & (defaced == 0)].mean()


def test_the_defaced_region_is_removed_and_lies_in_front(root: Path, table: pd.DataFrame) -> None:
    cut = 0
    for row in table.itertuples():
        if not isinstance(row.anon_mask_path, str):
            continue
        image, mask = load(root, row.image_path), np.asarray(load(root, row.anon_mask_path).dataobj)
        if not mask.any():
            continue
        cut += 1
        assert np.all(image.get_fdata()[mask == 1] == 0)
        head = np.argwhere(np.asarray(load(root, row.anat_mask_path).dataobj) == 0).mean(axis=0)
        towards = image.affine[:3, :3] @ (np.argwhere(mask == 1).mean(axis=0) - head)
        assert towards[1] > 10
        assert towards[2] < 0
    assert 0 < cut < len(table)


def test_masks_share_shape_and_affine_with_their_images(root: Path, table: pd.DataFrame) -> None:
    for row in table.itertuples():
        image, mask = load(root, row.image_path), load(root, row.anat_mask_path)
        assert image.shape == mask.shape
        np.testing.assert_array_equal(image.affine, mask.affine)
    assert table["anat_mask_path"].duplicated().any(), "scans of a session may share a mask"


def test_trees_vary_in_orientation_spacing_modality_and_file_kind(root: Path, table: pd.DataFrame) -> None:
    images = [load(root, path) for path in table["image_path"]]
    assert len({nibabel.aff2axcodes(image.affine) for image in images}) >= 3
    assert len({str(np.round(image.header.get_zooms(), 2)) for image in images}) >= 3
    assert {"T1w", "T2w", "FLAIR"} <= set(table["modality"])
    assert {path.rpartition(".")[2] for path in table["image_path"]} == {"nii", "gz"}
    assert any(np.max(np.sum(np.abs(image.affine[:3, :3]) > 0.05, axis=0)) > 1 for image in images), "some are oblique"


def test_an_apple_double_lies_in_the_tree(root: Path) -> None:
    (path,) = root.rglob("._*")
    assert path.name.endswith(".nii.gz")
    assert path.read_bytes()[:2] != b"\x1f\x8b"
