"""The source of docs/your-data.md that is one file of a user's own, as it stands there; and files that are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pages import blocks

from harmonize import sources
from harmonize.cli import main
from harmonize.corpus import Corpus, read_volume
from harmonize.errors import UserError

ARRAYS = next(block.code for block in blocks("python") if block.page == "your-data.md" and "SOURCE =" in block.code)
SALT = "a long secret of this house"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two heads of one person, a slice of another's, and a note."""
    folder = tmp_path / "RAW"
    folder.mkdir()
    for number in range(2):
        voxels = np.full((24, 32, 20), -1000, np.int16)
        voxels[4:20, 4:28, 2:18] = np.random.default_rng(number).normal(40, 10, (16, 24, 16))
        voxels[4:6, 4:28, 2:18] = 900  # the bone of one side: the first index runs to the left
        np.save(folder / f"ada_{number}.npy", voxels)
    np.save(folder / "bob_0.npy", voxels[0])
    (folder / "notes.txt").write_text("of ada")
    return folder


def test_the_page_s_file_is_a_source_in_every_process(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "arrays.py").write_text(ARRAYS)
    environment = {**os.environ, "HARMONIZE_SOURCES": str(tmp_path / "arrays.py"), "HARMONIZE_SALT": SALT}

    def harmonize(*words: str) -> str:
        command = [sys.executable, "-m", "harmonize", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = harmonize("arrays", "RAW", "--out", "CORPUS", "--workers", "2")
    assert "arrays of NumPy in HU" in harmonize("--help")
    harmonize("verify", "CORPUS", "--workers", "1")
    assert "bob_0.npy" in harmonize("locate", "arrays", "RAW", "CORPUS")
    counts = {line.split()[0]: line.split()[1] for line in said.splitlines() if len(line.split()) > 1}
    assert (counts["accepted"], counts["rejected"], counts["not_3d"]) == ("2", "1", "1")
    corpus = Corpus.open(tmp_path / "CORPUS")
    assert list(corpus.scans["source"]) == ["arrays"] * 2
    assert list(corpus.scans["unit"]) == ["HU"] * 2
    assert corpus.scans["subject"].nunique() == 1
    assert not corpus.scans["subject"].str.contains("ada").any()
    bone_XYZ = read_volume(corpus.path / corpus.scans["image_file_name"][0]).values() > 500
    assert bone_XYZ.any()
    assert np.argwhere(bone_XYZ)[:, 0].min() > bone_XYZ.shape[0] / 2  # it was on the right: index 0 runs leftwards


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("gone.py", None, "gone.py: no such file"),
        ("My-Data.py", "", "give it a name such as mydata.py"),
        ("tcia.py", "", "there is a source tcia already; rename the file"),
        ("verify.py", ARRAYS, "verify.py: there is a command verify; rename the file"),
        ("wrong.py", "import nowhere_at_all", "cannot be loaded: ModuleNotFoundError"),
        ("empty.py", "x = 1", "has no SOURCE"),
        ("half.py", ARRAYS.replace("def load", "def loads"), "has no function load"),
    ],
)
def test_a_file_that_is_no_source_is_named_in_one_line(
    name: str, text: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if text is not None:
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sources, "SOURCES", dict(sources.SOURCES))
    monkeypatch.setenv("HARMONIZE_SOURCES", str(tmp_path / name))
    assert main(["verify", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: HARMONIZE_SOURCES: ")
    assert says in said
    assert len(said.splitlines()) == 1


def test_of_two_files_of_one_name_none_is_silently_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / folder / "arrays.py" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(ARRAYS)
    monkeypatch.setattr(sources, "SOURCES", dict(sources.SOURCES))
    monkeypatch.setenv("HARMONIZE_SOURCES", os.pathsep.join(map(str, paths)))
    assert main(["verify", str(tmp_path)]) == 2
    assert f"{paths[1]}: {paths[0]} has the same name; rename one of the two files" in capsys.readouterr().err


def test_a_name_that_no_file_has_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARMONIZE_SOURCES", raising=False)
    with pytest.raises(UserError, match="source 'arrays': unknown; use one of openmind"):
        sources.entry("arrays")
