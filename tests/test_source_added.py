"""A source that nobody knew before is one module and one entry of the registry; every command then knows it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harmonize import sources
from harmonize.cli import main
from harmonize.corpus import Corpus, read_volume
from harmonize.corpus.publish import check_terms
from harmonize.errors import UserError
from harmonize.sources import Download, Source, Terms

MODULE = '''
"""Volumes as NumPy writes them."""

from __future__ import annotations

import numpy as np

from harmonize.errors import Reason, Rejection
from harmonize.scan import LeftOut, Scan, ScanRef


def discover(root):
    for path in sorted(root.iterdir()):
        if path.suffix == ".npy":
            yield ScanRef(source="plain", key=path.name, root=root, paths=(path,), subject=path.stem, modality="T1w")
        else:
            yield LeftOut(what=path.suffix, why="no array")


def load(ref):
    voxels = np.load(ref.paths[0])
    if voxels.ndim != 3:
        raise Rejection(Reason.NOT_3D, f"{voxels.ndim} dimensions")
    return Scan(voxels_XYZ=voxels, affine=np.diag([4.0, 4, 4, 1]), modality=ref.modality)


def write_scan(index, *, root, scans, size, seed):
    voxels = np.full((16, 16, 12), 5, dtype=np.float32)
    voxels[4:12, 4:12, 3:9] = np.random.default_rng([seed, index]).normal(200, 30, (8, 8, 6))
    np.save(root / f"head{index}.npy", voxels if index else voxels[0])


def write_tables(root, found):
    (root / "notes.txt").write_text(f"{len(found)} scans")


def add_options(parser):
    parser.add_argument("--mirror", required=True)


def call(options):
    options.out.mkdir()
    (options.out / "from").write_text(options.mirror)
    return 0
'''


@pytest.fixture(autouse=True)
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one file, and the one entry."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/plain_source.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "plain_source", raising=False)
    entry = Source(
        title="arrays of NumPy",
        expected="a folder of .npy",
        kind="arrays",
        module="plain_source",
        terms=Terms(licence="house rules", link="https://example.org/rules", why_not="they stay in the house"),
        mri_norm="none",
        phantom="plain_source",
        download=Download(title="arrays, from a mirror", module="plain_source"),
    )
    monkeypatch.setitem(sources.SOURCES, "plain", entry)


def call(*words: object) -> int:
    return main([str(word) for word in words])


def test_it_is_harmonized_and_what_it_refuses_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, out = tmp_path / "raw/plain", tmp_path / "corpus"
    assert call("phantom", "--source", "plain", "--out", tmp_path / "raw", "--scans", "3", "--workers", "0") == 0
    assert call("plain", raw, "--out", out, "--spacing", "4", "--workers", "0") == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    assert (said["accepted"], said["rejected"], said["not_3d"]) == ("2", "1", "1")
    corpus = Corpus.open(out)
    assert corpus.info["sources"] == {"plain": {"mri_norm": "none"}}
    assert set(corpus.scans["source"]) == {"plain"}
    image = read_volume(out / corpus.scans["image_file_name"][0])
    assert image.values().max() > 200  # as it was: the entry's norm is none
    assert "| plain | house rules | https://example.org/rules |" in (out / "README.md").read_text()
    assert call("verify", out, "--workers", "1") == 0
    assert call("locate", "plain", raw, out) == 0
    assert str(raw / "head0.npy") in capsys.readouterr().out


def test_its_terms_bind_who_publishes(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw/plain", tmp_path / "corpus"
    call("phantom", "--source", "plain", "--out", tmp_path / "raw", "--scans", "2", "--workers", "0")
    call("plain", raw, "--out", out, "--spacing", "4", "--workers", "0", "--salt", "a long secret of this house")
    with pytest.raises(UserError, match=r"scans of plain, and they stay in the house \(https://example.org/rules\)"):
        check_terms(Corpus.open(out), ())
    check_terms(Corpus.open(out), ("plain",))


def test_it_is_fetched_with_options_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("fetch", "plain", "--out", tmp_path / "raw", "--mirror", "here") == 0
    assert (tmp_path / "raw/from").read_text() == "here"
    assert call("fetch", "plain", "--out", tmp_path / "raw", "--miror", "here") == 2
    assert "--miror: unknown option; did you mean --mirror?" in capsys.readouterr().err


def test_it_stands_in_the_help_and_another_folder_is_told_what_it_wants(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call("--help")
    assert "arrays of NumPy" in capsys.readouterr().out
    assert call("plain", tmp_path / "nowhere", "--out", tmp_path / "corpus") == 2
    assert "no such folder; expected is a folder of .npy" in capsys.readouterr().err
