"""Outliers: the odd scan comes first and says why, equal scans stay quiet, decisions raise their flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from harmonize import engine
from harmonize.corpus import Corpus
from harmonize.report.outliers import FLAGS, find, order, robust_z
from harmonize.settings import Settings


def manifest(count: int = 20, **changes: dict[int, Any]) -> pd.DataFrame:
    """Heads that differ by a few per cent; `changes` gives a column other values in some rows."""
    random = np.random.default_rng(0)
    percentiles = np.array([-2.0, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2])
    rows = []
    for number in range(count):
        row = {
            "source": "openmind",
            "modality": "T1w",
            "shape": [200, 220, 200],
            "spacing": [1.0, 1.0, 1.0],
            "raw_spacing": [1.0, 1.0, 1.0 + 0.02 * random.normal()],
            "foreground_box": [20, 180, 20, 200, 10, 190],
            "intensity_percentiles": percentiles + 0.02 * random.normal(),
            "decisions": [],
        }
        rows.append(row | {name: values[number] for name, values in changes.items() if number in values})
    return pd.DataFrame(rows)


def test_the_odd_scan_comes_first_and_says_why() -> None:
    scans = manifest(raw_spacing={7: [0.9, 0.9, 6.0]}, intensity_percentiles={11: np.linspace(40, 60, 9)})
    findings = find(scans)
    assert order(findings)[:2] == [11, 7]
    assert "odd spacing" in findings[7].flags
    assert findings[7].why[0].startswith("slice spacing 6 mm (z +")
    assert findings[11].flags == ("odd intensity",)


def test_equal_scans_are_no_outliers() -> None:
    scans = manifest(raw_spacing={number: [1.0, 1.0, 1.0] for number in range(20)})
    assert all(finding.flags == () and not finding.why for finding in find(scans))
    assert order(find(scans)) == list(range(20))


def test_one_other_value_among_equal_ones_is_an_outlier() -> None:
    spacing = {number: [1.0, 1.0, 1.0] for number in range(20)} | {3: [1.0, 1.0, 3.0]}
    assert order(find(manifest(raw_spacing=spacing)))[0] == 3


def test_too_few_scans_are_not_compared() -> None:
    findings = find(manifest(5, raw_spacing={2: [0.9, 0.9, 3.0]}))
    assert all(finding.score == 0 for finding in findings)


def test_scans_are_compared_within_their_source_and_modality() -> None:
    mixed = pd.concat([manifest(), manifest(12).assign(modality="CT", raw_spacing=[[0.5, 0.5, 3.0]] * 12)])
    assert all(not finding.why for finding in find(mixed))


@pytest.mark.parametrize(
    ("column", "value", "flag"),
    [
        ("decisions", ["gantry tilt of 20.0 degrees kept as shear"], "tilted"),
        ("decisions", ["12 voxels beyond the int16 range were clipped"], "clipped"),
        ("decisions", ["anatomy mask used", "deface mask used"], "defaced"),
        ("decisions", ["missing slices: 3, interpolated between true positions"], "missing slices"),
        ("decisions", ["qform and sform disagree; the sform is used"], "doubtful header"),
        (
            "decisions",
            ["pictures of 256 x 256 pixels, not 512 x 512 as the table says: its spacing times 2"],
            "doubtful header",
        ),
        ("decisions", ["the anatomy mask is listed but missing"], "mask trouble"),
        ("raw_spacing", [0.5, 0.5, 5.0], "thick slices"),
        ("foreground_box", [20, 180, 20, 200, 90, 130], "short coverage"),
        ("foreground_box", [90, 110, 20, 200, 10, 190], "small foreground"),
    ],
)
def test_what_is_noteworthy_raises_its_flag(column: str, value: list[Any], flag: str) -> None:
    findings = find(manifest(3, **{column: {1: value}}))
    assert flag in findings[1].flags
    assert findings[0].flags == ()
    assert flag in FLAGS


@pytest.mark.parametrize("removed", [0, 1])
def test_a_scan_is_defaced_where_its_source_removed_something(tmp_path: Path, removed: int) -> None:
    image = tmp_path / "raw/OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz"
    mask = image.with_name("sub-01_T1w__Data") / "deface_mask.nii.gz"
    mask.parent.mkdir(parents=True)
    values = np.random.default_rng(0).normal(10, 1, (16, 18, 20)).astype(np.float32)
    values[4:12, 4:14, 4:16] += 100
    marked = np.zeros(values.shape, dtype=np.uint8)
    marked[4:6, 4:14, 4:8] = removed
    for path, voxels in ((image, values), (mask, marked)):
        nib.save(nib.Nifti1Image(voxels, np.diag([4.0, 4.0, 4.0, 1.0])), path)
    corpus = tmp_path / "corpus"
    assert engine.run("openmind", tmp_path / "raw", corpus, Settings(spacing=(4.0,) * 3), workers=0).accepted == 1
    (found,) = find(Corpus.open(corpus).scans)
    assert ("defaced" in found.flags) == bool(removed)


def test_an_empty_manifest_has_no_findings() -> None:
    assert find(manifest().iloc[:0]) == []


def test_constant_values_without_a_floor_have_no_score() -> None:
    assert robust_z(np.ones(9), floor=0.0).tolist() == [0.0] * 9
