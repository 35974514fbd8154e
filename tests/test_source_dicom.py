"""A lab's own DICOM: read as TCIA's is, but no table in it makes an id public."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest

from harmonize import phantom, sources
from harmonize.cli import main
from harmonize.corpus import Corpus
from harmonize.identity import salted_hash

SALT = "a long secret of this house"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TCIA's phantom, with its table that says which subjects are public."""
    (root,) = phantom.write("tcia", tmp_path_factory.mktemp("raw"), scans=3, size=24, seed=0)
    return root


def call(*words: object) -> int:
    return main([str(word) for word in words])


def test_it_gives_the_voxels_of_tcia_and_hashes_every_id(raw: Path, tmp_path: Path) -> None:
    for source in ("dicom", "tcia"):
        out = ("--out", tmp_path / source, "--spacing", "8", "--workers", "0", "--salt", SALT)
        assert call(source, raw, *out) == 0
        assert call("verify", tmp_path / source) == 0
    ours, theirs = (Corpus.open(tmp_path / source) for source in ("dicom", "tcia"))
    assert sorted(ours.scans["sha256"]) == sorted(theirs.scans["sha256"])
    assert ours.rejected["reason"].value_counts().to_dict() == theirs.rejected["reason"].value_counts().to_dict()
    assert set(ours.scans["source"]) == {"dicom"}
    for column in ("scan_id", "subject", "session"):
        assert ours.scans[column].str.fullmatch("[0-9a-f]{20}").all()
    with (raw / "metadata.csv").open(newline="") as stream:
        public = {row["Subject ID"] for row in csv.DictReader(stream)}
    assert set(theirs.scans["subject"]) <= public
    assert not set(ours.scans["subject"]) & public
    assert "| dicom | the owner's own |" in (tmp_path / "dicom/README.md").read_text()


def test_whoever_has_the_salt_finds_subjects_and_files_again(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "corpus"
    assert call("dicom", raw, "--out", out, "--spacing", "8", "--workers", "0", "--salt", SALT) == 0
    corpus = Corpus.open(out)
    expected = {salted_hash(SALT, "dicom", "subject", ref.subject) for ref in sources.references("dicom", raw)}
    assert set(corpus.scans["subject"]) <= expected
    capsys.readouterr()
    assert call("locate", "dicom", raw, out, corpus.scans["scan_id"][0], "--salt", SALT) == 0
    assert ": accepted: " in capsys.readouterr().out


def test_shards_share_one_look_and_merge_to_the_same(raw: Path, tmp_path: Path) -> None:
    words = ("--spacing", "8", "--workers", "0", "--salt", SALT)
    assert call("dicom", raw, "--out", tmp_path / "whole", *words) == 0
    for part in range(2):
        assert call("dicom", raw, "--out", tmp_path / "parts", *words, "--shard", f"{part}/2") == 0
    assert call("merge", tmp_path / "parts") == 0
    pd.testing.assert_frame_equal(Corpus.open(tmp_path / "parts").scans, Corpus.open(tmp_path / "whole").scans)
