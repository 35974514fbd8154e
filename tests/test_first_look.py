"""The mistakes of the first hour: what was given is named, and what was expected."""

from __future__ import annotations

import os
import shutil
from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from harmonize import phantom
from harmonize.cli import main

SOURCES = ("openmind", "tcia", "deeplesion", "rsna")
EXPECTED = {
    "openmind": "a tree of NIfTI files",
    "tcia": "a folder of DICOM files",
    "deeplesion": "DL_info.csv and Images_png/",
    "rsna": "the competition's train.csv",
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    phantom.write("all", folder, scans=1, size=24, seed=0)
    return folder


def said(capsys: pytest.CaptureFixture[str], tmp_path: Path, source: str, folder: Path) -> str:
    """The one line of error; nothing may have been written."""
    out = tmp_path / "out"
    assert main([source, str(folder), "--out", str(out), "--workers", "0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (out / "corpus.json").exists()
    assert f"expected is {EXPECTED[source]}" in error or "; give " in error
    return error


@pytest.mark.parametrize(("source", "given"), list(permutations(SOURCES, 2)))
def test_the_tree_of_another_source_is_recognised(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, given: str
) -> None:
    error = said(capsys, tmp_path, source, raw / given)
    assert f"harmonize {given}" in error
    assert str(raw / given) in error


def test_dicom_files_without_a_suffix_are_recognised(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, path in enumerate((raw / "tcia").rglob("*.dcm")):
        (tmp_path / "bare").mkdir(exist_ok=True)
        (tmp_path / f"bare/{number}").write_bytes(path.read_bytes()[:2000])
    assert "DICOM without suffix and looks like DICOM: try harmonize dicom" in said(
        capsys, tmp_path, "openmind", tmp_path / "bare"
    )


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", ["nothing", "empty", "zip", "text", "zips", "notes", "corpus", "pipe"])
def test_what_no_source_can_use_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, kind: str
) -> None:
    given = tmp_path / "given"
    words = {
        "nothing": "no such folder", "empty": "empty", "zip": "archive: unpack it", "text": "a file", "zips": "2 .zip",
        "notes": "1 .txt", "corpus": "is a corpus that harmonize wrote", "pipe": "1 named pipes",
    }  # fmt: skip
    if kind in ("zip", "text"):
        given = given.with_suffix(f".{kind}")
        given.write_bytes(b"PK\x03\x04")
    elif kind != "nothing":
        given.mkdir()
    if kind == "zips":
        for name in ("a.zip", "b.ZIP"):
            (given / name).touch()
    elif kind == "notes":
        (given / "notes.txt").touch()
    elif kind == "pipe":
        os.mkfifo(given / "a.nii.gz")
    elif kind == "corpus":
        (given / "records").mkdir()
        (given / "corpus.json").touch()
    assert words[kind] in said(capsys, tmp_path, source, given)


def test_flat_pictures_of_deeplesion_are_named(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = tmp_path / "flat"
    (flat / "Images_png").mkdir(parents=True)
    (flat / "DL_info.csv").write_bytes((raw / "deeplesion/DL_info.csv").read_bytes())
    for path in (raw / "deeplesion").rglob("*.png"):
        (flat / "Images_png" / f"{path.parent.name}_{path.name}").write_bytes(path.read_bytes())
    error = said(capsys, tmp_path, "deeplesion", flat)
    assert ".png, but none in a folder of its series" in error
    assert "000001_01_01/103.png" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["openmind", "RAW", "--ot", "X"], "--ot: unknown option; did you mean --out?"),
        (["openmind", "RAW", "-out", "X"], "-out: unknown option; did you mean --out?"),
        (["openmind", "RAW", "--out", "X", "--mri_norm=none"], "--mri_norm: unknown option; did you mean --mri-norm?"),
        (["openmind", "RAW", "--out", "X", "--WORKERS", "2"], "did you mean --workers?"),
        (["fetch", "tcia", "--colection", "C"], "--colection: unknown option; did you mean --collection?"),
        (["fetch", "opnmind", "--out", "X"], "did you mean openmind?"),
        (["locate", "opnmind", "RAW", "X"], "did you mean openmind?"),
        (["openmind", "RAW", "--out", "X", "--mri-norm", "nyull"], "did you mean nyul?"),
    ],
)
def test_what_is_misspelt_is_named_before_what_is_missing(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_names_that_are_no_utf8_are_read_and_located(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/raw/M\xfcller\n/anat"))
    folder.mkdir(parents=True)
    voxels = np.full((16, 16, 12), 5, dtype=np.float32)
    voxels[4:12, 4:12, 3:9] = np.random.default_rng(0).normal(200, 30, (8, 8, 6))
    for name in ("sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz"):
        nib.save(nib.Nifti1Image(voxels, np.diag([4.0, 4, 4, 1])), folder / name)
    (folder / "sub-01_T2w.nii.gz").write_bytes(b"")
    arguments = ["--out", str(tmp_path / "out"), "--spacing", "4", "--workers", "0", "--mri-norm", "none"]
    assert main(["openmind", str(tmp_path / "raw"), *arguments]) == 0
    capsys.readouterr()
    assert main(["locate", "openmind", str(tmp_path / "raw"), str(tmp_path / "out")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(r"M\xfcller\n/anat/sub-01_T2w.nii.gz")


def test_a_missing_table_of_deeplesion_is_not_blamed_on_the_pictures(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(raw / "deeplesion/Images_png", tmp_path / "bare/Images_png")
    error = said(capsys, tmp_path, "deeplesion", tmp_path / "bare")
    assert "no DL_info.csv" in error
    assert "none in a folder" not in error
