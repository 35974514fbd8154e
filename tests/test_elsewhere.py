"""A raw folder at another place: the one that a corpus was made from, moved, or another one with the same names."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from harmonize import engine
from harmonize.corpus import Corpus
from harmonize.corpus.verify import verify
from harmonize.errors import WrongUse
from harmonize.settings import Settings

SETTINGS = Settings(spacing=(6.0, 6.0, 6.0))
AFFINE = np.diag([-4.0, 4, 5, 1])
LONG_AGO = 10**9


def save(path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    voxels = random.normal(10, 4, (20, 20, 16))
    voxels[4:16, 4:16, 3:13] += 200 + 80 * random.random((12, 12, 10))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), AFFINE), path)
    os.utime(path, (LONG_AGO, LONG_AGO))


def image(root: Path, number: int, suffix: str = ".nii") -> Path:
    return root / f"sub-{number:02d}/anat/sub-{number:02d}_T1w{suffix}"


def site(root: Path, first_seed: int, count: int = 4, suffix: str = ".nii") -> Path:
    """Without a packer, so that all files have one size; and all of one time, as out of some archives."""
    for number in range(count):
        save(image(root, number, suffix), first_seed + number)
    return root


def run(root: Path, out: Path, **options) -> engine.Summary:
    return engine.run("nifti", root, out, SETTINGS, **({"workers": 0} | options))


def files(corpus: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(corpus.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_second_site_with_the_same_names_replaces_nothing(tmp_path: Path, suffix: str, workers: int) -> None:
    first, out = site(tmp_path / "first", 0, suffix=suffix), tmp_path / "corpus"
    second = site(tmp_path / "second", 50, suffix=suffix)
    run(first, out)
    before = files(out)
    for options in ({}, {"retry": True}, {"limit": 1}):
        with pytest.raises(WrongUse, match=r"second: .* another folder, but not its content.* --out of its own"):
            run(second, out, workers=workers, **options)
    assert files(out) == before
    assert run(first, out).known == 4
    with pytest.raises(WrongUse):
        run(second, out, shard=(0, 1))
    engine.merge(out)
    assert files(out) == before


def test_the_two_ways_that_the_refusal_names_keep_both_sites(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    site(raw / "first", 0), site(raw / "second", 50)
    run(raw, tmp_path / "both")
    assert Corpus.open(tmp_path / "both").scans["subject"].nunique() == 8
    run(raw / "first", tmp_path / "one")
    assert run(raw / "second", tmp_path / "other").accepted == 4


def test_a_moved_folder_goes_on_with_what_changed_in_it(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    site(tmp_path / "raw", 0)
    run(tmp_path / "raw", out)
    moved = (tmp_path / "raw").rename(tmp_path / "moved")
    save(image(moved, 3), 90)
    save(image(moved, 4), 4)
    mask = image(moved, 0).with_name("sub-00_T1w_seg.nii")
    nib.save(nib.Nifti1Image(np.ones((20, 20, 16), np.uint8), AFFINE), mask)
    os.utime(image(moved, 1), (LONG_AGO + 9, LONG_AGO + 9))
    summary = run(moved, out)
    assert (summary.known, summary.changed, summary.accepted) == (2, 2, 5)
    assert verify(out) == []
    run(moved, tmp_path / "fresh")
    assert (out / "metadata.parquet").read_bytes() == (tmp_path / "fresh/metadata.parquet").read_bytes()


def test_a_moved_folder_is_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "corpus"
    run(site(tmp_path / "raw", 0), out)
    moved = (tmp_path / "raw").rename(tmp_path / "moved")
    assert run(moved, out).known == 4
    monkeypatch.setattr("harmonize.corpus.fingerprint._checksum", lambda path: pytest.fail("a file was read"))
    assert run(moved, out).known == 4


def test_a_second_site_with_names_of_its_own_joins_the_corpus(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    run(site(tmp_path / "first", 0), out)
    save(image(tmp_path / "second", 7), 7)
    assert run(tmp_path / "second", out).accepted == 1
    assert len(Corpus.open(out).scans) == 5


def test_what_was_rejected_in_one_folder_is_read_in_another(tmp_path: Path) -> None:
    first, second, out = site(tmp_path / "first", 0), tmp_path / "second", tmp_path / "corpus"
    save(image(second, 9), 9)
    size = image(second, 9).stat().st_size
    image(first, 9).parent.mkdir(parents=True)
    image(first, 9).write_bytes(b"x" * size)
    os.utime(image(first, 9), (LONG_AGO, LONG_AGO))
    assert run(first, out).rejected.total() == 1
    assert run(second, out).accepted == 1
