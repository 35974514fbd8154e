"""Series as the competition's gateway hands them out: what it strips is estimated, and answers stay what they were."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from standin_gateway import strip_series
from standin_series import save_model

from finetune.predict import Answer, Predictor
from harmonize.dicom.estimate import estimate_stack
from harmonize.phantom import rsna
from harmonize.phantom.rsna.plan import plan_series
from harmonize.phantom.rsna.prevalence import MODALITIES
from harmonize.sources.dicom_series import load_series

MOST_CHANGED = 0.03
SEED, SIZE = 3, 64


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """Three models that answer together, and make much of small differences: their heads are drawn at random."""
    folder = tmp_path_factory.mktemp("models")
    return Predictor([save_model(folder / str(seed), seed=seed) for seed in range(3)])


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    """A phantom series of each modality, in single files and in one of all frames."""
    folder = tmp_path_factory.mktemp("series")
    found = {}
    for modality in MODALITIES:
        plan = next(one for k in range(16) if (one := plan_series(k, seed=SEED)).modality == modality)
        for multiframe in (False, True):
            root = folder / f"{modality}{multiframe}"
            rsna.write_series(root, replace(plan, multiframe=multiframe, segmented=False), SIZE, "protocol")
            found[modality, multiframe] = root / "series" / plan.uid
    return found


def change(one: Answer, other: Answer) -> float:
    return max(abs(one.probabilities[label] - other.probabilities[label]) for label in one.probabilities)


@pytest.mark.parametrize("modality", MODALITIES)
def test_what_the_gateway_strips_of_single_files_changes_nothing(
    modality: str, asked: Predictor, series: dict[tuple[str, bool], Path], tmp_path: Path
) -> None:
    stripped = asked.answer(strip_series(series[modality, False], tmp_path / "stripped"))
    assert change(asked.answer(series[modality, False]), stripped) < 1e-6
    assert not any("by the head that is seen" in line for line in stripped.warnings)


@pytest.mark.parametrize("seed", [SEED, 101])
@pytest.mark.parametrize("index", range(8))
def test_what_the_gateway_strips_of_multiframe_files_hardly_changes_an_answer(
    seed: int, index: int, asked: Predictor, tmp_path: Path
) -> None:
    plan = replace(plan_series(index, seed=seed), multiframe=True, segmented=False)
    rsna.write_series(tmp_path / "raw", plan, SIZE, "protocol")
    whole = tmp_path / "raw" / "series" / plan.uid
    stripped = asked.answer(strip_series(whole, tmp_path / "stripped"))
    assert change(asked.answer(whole), stripped) < MOST_CHANGED
    (told,) = (line for line in stripped.warnings if "by the head that is seen" in line)
    how_far_off = re.search(r"pixels .* within \d+ %, slices .* within \d+ %", told)
    assert how_far_off, "what was estimated is in the answer, with how far off it may be"


def test_frames_that_begin_at_the_vertex_are_turned_round(series: dict[tuple[str, bool], Path], tmp_path: Path) -> None:
    upward = strip_series(series["MRI T2", True], tmp_path / "up")
    (file,) = upward.iterdir()
    dataset = pydicom.dcmread(file)
    stored_ZYX = np.frombuffer(dataset.PixelData, "<u2").reshape(-1, dataset.Rows, dataset.Columns).copy()
    # The phantom's small pictures end below the vertex: here the head grows narrow above.
    z, y, x = (np.linspace(-1, 1, size) for size in stored_ZYX.shape)
    stored_ZYX[(y[:, None] ** 2 + x**2)[None] > np.sqrt(np.clip(1 - z, 0, 0.8))[:, None, None]] = 0
    (tmp_path / "down").mkdir()
    for place, frames in ((file, stored_ZYX), (tmp_path / "down" / "a.dcm", stored_ZYX[::-1])):
        dataset.PixelData = frames.tobytes()
        dataset.save_as(place)
    up, down = load_series(upward), load_series(tmp_path / "down")
    assert any("first frame first" in line for line in up.decisions)
    assert any("last frame first" in line for line in down.decisions)
    assert np.array_equal(up.voxels_XYZ, down.voxels_XYZ)
    np.testing.assert_allclose(up.affine, down.affine, rtol=0.03, atol=1e-9)


def test_what_a_file_says_of_its_geometry_is_kept(series: dict[tuple[str, bool], Path], tmp_path: Path) -> None:
    stripped = strip_series(series["CTA", True], tmp_path / "a")
    (file,) = stripped.iterdir()
    dataset = pydicom.dcmread(file)
    dataset.PixelSpacing, dataset.SliceThickness = [1.5, 1.5], 0.9
    dataset.save_as(file)
    np.testing.assert_allclose(np.abs(np.diag(load_series(stripped).affine)), [1.5, 1.5, 0.9, 1])


@pytest.mark.parametrize("pixel_mm", [0.9, 1.1, 1.4])
def test_the_size_of_pixels_is_that_of_a_head(pixel_mm: float) -> None:
    z, y, x = np.ogrid[:40, :200, :200]
    head = ((x - 99.5) * pixel_mm / 77) ** 2 + ((y - 99.5) * pixel_mm / 98) ** 2 + 0 * z < 1
    found = estimate_stack(np.where(head, 40.0, -1000.0), "HU")
    assert found is not None
    np.testing.assert_allclose(found.pixel_mm, pixel_mm, rtol=0.04)
    assert estimate_stack(np.full((40, 64, 64), -1000.0), "HU") is None, "nothing is seen"
    assert estimate_stack(np.where(head, 40.0, -1000.0)[:8], "HU") is None, "eight slices say nothing of their distance"


def head_with_nose(mm: float) -> np.ndarray:
    """A head of MRI, [x to the left, y to the back, z upwards], its voxels so many mm wide; cut below at the neck."""
    x, y, z = np.ogrid[-90:90:mm, -115:115:mm, -90:110:mm]
    skull = (x / 77) ** 2 + (y / 98) ** 2 + (z / 84) ** 2 < 1
    neck = (x / 55) ** 2 + ((y - 20) / 60) ** 2 + 0 * z < (z < 0)
    nose = (x / 2) ** 2 + (y + 96) ** 2 + (z + 30) ** 2 < 400
    # Tissue: alike on the left and the right alone.
    values = 400 + 60 * np.cos(x / 9) * np.cos(y / 13 + 1) * np.cos(z / 11 + 0.5) + 0.6 * y + 0.9 * z
    return np.where(skull | neck | nose, values, 0.0)


STACKS = {
    "axial": lambda head_XYZ: head_XYZ.transpose(2, 1, 0),
    "sagittal": lambda head_XYZ: head_XYZ.transpose(0, 2, 1)[:, ::-1],
    "coronal": lambda head_XYZ: head_XYZ.transpose(1, 2, 0)[:, ::-1],
}
"""Slices, rows and columns of each."""


@pytest.mark.parametrize("way", STACKS)
@pytest.mark.parametrize("mm", [1.5, 2.5])
def test_a_head_tells_how_its_slices_lie_and_how_far_apart(way: str, mm: float) -> None:
    found = estimate_stack(np.ascontiguousarray(STACKS[way](head_with_nose(mm))), "arbitrary")
    assert found is not None
    assert (found.way, found.direction) == (way, 1)
    np.testing.assert_allclose([found.pixel_mm, found.step_mm], mm, rtol=0.15)
