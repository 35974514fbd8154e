"""Whose a folder is, is known before anything in it is written or removed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonize import engine
from harmonize.cli import main
from harmonize.corpus import claim, target
from harmonize.errors import UserError
from harmonize.settings import Settings

SETTINGS = Settings(spacing=(4.0, 4.0, 4.0))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "raw/OpenMind/ds000001/sub-01/anat"
    folder.mkdir(parents=True)
    voxels = np.full((16, 16, 12), 5, dtype=np.float32)
    voxels[4:12, 4:12, 3:9] = np.random.default_rng(0).normal(200, 30, (8, 8, 6))
    nib.save(nib.Nifti1Image(voxels, np.diag([4.0, 4, 4, 1])), folder / "sub-01_T1w.nii.gz")
    return tmp_path / "raw"


def snapshot(folder: Path) -> dict[str, object]:
    """Everything in a folder: content, kind and time."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[path.relative_to(folder).as_posix()] = (about.st_mode, about.st_mtime_ns, content)
    return found


def run(root: Path, out: Path, **options) -> engine.Summary:
    return engine.run("openmind", root, out, SETTINGS, **({"workers": 0} | options))


def refuse(root: Path, out: Path, match: str, **options) -> None:
    with pytest.raises(UserError, match=match) as caught:
        run(root, out, **options)
    assert caught.value.exit_code == 2


FOREIGN = {
    "files": {".tmp-notes.txt": b"precious", ".tmp-1-metadata.parquet": b"", "a/.tmp-2-x.nii.gz": b""},
    "a lock": {".lock": b"12345"},
    "records": {"records/music.mp3": b"", ".lock": b""},
    "records with text": {"records/1999.jsonl": b"{}"},
    "another corpus.json": {"corpus.json": b'{"name": "corpus of letters"}', "images/.tmp-1-a.nii.gz": b"x"},
    "a list": {"corpus.json": b"[1]"},
    "another schema": {"corpus.json": b'{"schema_version": 1, "settings": {"theme": "dark"}, "sources": {}}'},
    "no json": {"corpus.json": b"\xff\xfe"},
    "a folder": {"corpus.json/a": b""},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("shard", [None, (0, 2)], ids=["whole", "shard"])
def test_a_folder_of_somebody_else_is_refused_and_left_as_it_was(
    root: Path, tmp_path: Path, files: dict[str, bytes], shard: tuple[int, int] | None
) -> None:
    home = tmp_path / "home"
    for name, content in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content)
    before = snapshot(home)
    with pytest.raises(UserError, match="home"):
        run(root, home, shard=shard)
    with pytest.raises(UserError, match="home"):
        engine.merge(home)
    is_damaged = files.get("corpus.json") == FOREIGN["no json"]["corpus.json"]
    assert main(["report", str(home)]) == (1 if is_damaged else 2)
    assert snapshot(home) == before


def test_a_command_that_finds_no_scans_or_wrong_settings_writes_nothing(root: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no openmind scans"):
        run(empty, tmp_path / "new/corpus")
    assert not (tmp_path / "new").exists()
    corpus = tmp_path / "corpus"
    claim(corpus, "openmind", SETTINGS)
    before = snapshot(corpus)
    with pytest.raises(UserError, match="spacing"):
        engine.run("openmind", root, corpus, Settings(), workers=0)
    refuse(root, corpus, "no <modality>", nyul_folder=empty)
    with pytest.raises(UserError, match="no openmind scans"):
        run(empty, corpus)
    assert snapshot(corpus) == before


def test_a_stop_during_the_look_at_the_raw_folder_claims_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(root: Path):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("harmonize.sources.openmind.discover", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(root, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_what_is_no_place_for_a_corpus_is_one_line(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, dangling, to_raw = tmp_path / "file", tmp_path / "dangling", tmp_path / "to_raw"
    file.write_bytes(b"precious")
    dangling.symlink_to(tmp_path / "nowhere")
    to_raw.symlink_to(root)
    refuse(root, file, "a file, not a folder")
    refuse(root, file / "below", "is a file, not a folder")
    refuse(root, dangling, "leads nowhere")
    for out in (root, root / "OpenMind", to_raw, to_raw / "corpus"):
        refuse(root, out, "inside the raw folder")
    refuse(root, root.parent, "lies inside it")
    monkeypatch.chdir(root)
    refuse(root, Path(), "inside the raw folder")
    refuse(Path(), Path(), "inside the raw folder")
    assert file.read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_may_not_be_written_to_is_named_before_the_look_at_the_raw_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    monkeypatch.setattr("harmonize.sources.openmind.discover", lambda root: pytest.fail("looked"))
    refuse(root, tmp_path / "new", "may not be written to")


def test_a_link_to_an_empty_folder_is_one(root: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert run(root, tmp_path / "link").accepted == 1
    assert (tmp_path / "disk/corpus.json").is_file()


def test_a_run_killed_before_it_could_claim_its_folder_is_no_obstacle(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    (out / "records").mkdir(parents=True)
    for name in (".lock", "records/.lock", "records/openmind.shard-0-of-2.jsonl", ".tmp-7-corpus.json"):
        (out / name).write_bytes(b"")
    assert run(root, out).accepted == 1
    assert not (out / ".tmp-7-corpus.json").exists()


OURS = (
    ".tmp-12-metadata.parquet", ".tmp-3-README.md", "images/openmind/s/.tmp-4-x.nii.gz",
    "masks/openmind/s/.tmp-4-x__brain.nii.gz", "records/.tmp-5-openmind.jsonl", "nyul/.tmp-6-T1w.npy",
    "report/.tmp-6-index.html",
)  # fmt: skip
NOT_OURS = (
    ".tmp-notes.txt", ".tmp-12-thesis.md", ".tmp-12-my-README.md", "mine/.tmp-4-x.nii.gz",
    "images/openmind/s/.tmp-x.nii.gz",
    "images/openmind/s/.tmp-4-x.txt", "images/openmind/s/tmp-4-x.nii.gz", "records/.tmp-openmind.jsonl",
)  # fmt: skip


def test_only_temporaries_of_our_own_pattern_are_swept(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    run(root, out)
    for name in (*OURS, *NOT_OURS):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"half")
    (out / "images/.tmp-1-folder.nii.gz").mkdir()
    (out / "images/.tmp-1-link.nii.gz").symlink_to(out / "README.md")
    run(root, out)
    assert [name for name in OURS if (out / name).exists()] == []
    assert [name for name in NOT_OURS if not (out / name).is_file()] == []
    assert (out / "images/.tmp-1-folder.nii.gz").is_dir()
    assert (out / "images/.tmp-1-link.nii.gz").is_symlink()


KEYS = st.sampled_from(["schema_version", "settings", "sources", "spacing", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
    max_leaves=12,
)


@given(JSON)
def test_any_other_json_is_no_corpus_of_ours(value: object) -> None:
    assert target.fault_of_info(json.loads(json.dumps(value)))


def test_our_own_info_is_ours(tmp_path: Path) -> None:
    claim(tmp_path / "corpus", "tcia", Settings())
    assert target.fault_of_info(target.read_info(tmp_path / "corpus")) == ""


@pytest.mark.parametrize("command", [["phantom", "--scans", "1"], ["fetch", "tcia", "--collection", "C"]])
def test_what_is_no_folder_is_said_before_anything_is_fetched_or_made(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/below", "dangling"):
        assert main([*command, "--out", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
    assert (tmp_path / "file").read_bytes() == b"precious"


def test_a_phantom_is_never_written_over_a_link(tmp_path: Path) -> None:
    (tmp_path / "tcia").symlink_to(tmp_path / "nowhere")
    assert main(["phantom", "--source", "tcia", "--scans", "1", "--size", "24", "--out", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["tcia"]
