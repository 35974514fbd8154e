"""Caches that vanish, are cut short, do not fit, or outlive their run: the corpus is whole, so the run goes on."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from standin_disk import file_size_limit

from harmonize.corpus import Corpus, write_volume
from harmonize.errors import UserError, WrongUse
from harmonize.voxels.stored import StoredVolume
from headspark.data.cache import cached
from headspark.data.cohort import Cohort, read_cohort
from headspark.data.config import DataConfig
from headspark.data.decoders import Decoded, decode
from headspark.data.shared_store import SUFFIX, SharedStore, sweep
from headspark.data.stores import MappedStore, Store

SHARED = "headspark-0123456789abcdef"


@pytest.fixture(scope="module")
def cohort(tiny_corpus: Path) -> Cohort:
    return read_cohort(Corpus.open(tiny_corpus), DataConfig(val_share=0.3))


@pytest.fixture(scope="module")
def originals(cohort: Cohort) -> list[Decoded]:
    return [decode(scan) for scan in cohort.scans]


def assert_same(store: Store, originals: list[Decoded]) -> None:
    for number, wanted in enumerate(originals):
        found = store[number]
        assert np.array_equal(found.voxels.stored_XYZ, wanted.voxels.stored_XYZ)
        assert (found.voxels.slope, found.voxels.inter) == (wanted.voxels.slope, wanted.voxels.inter)
        assert (found.scored_XYZ is None) == (wanted.scored_XYZ is None)
        assert wanted.scored_XYZ is None or np.array_equal(found.scored_XYZ, wanted.scored_XYZ)


def filled(cohort: Cohort, folder: Path, say: Callable[[str], object] = print) -> MappedStore:
    store = MappedStore(cohort.scans, folder, say)
    store.fill(0, 1)
    return store


# The disk cache


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    share=st.floats(0, 1, exclude_max=True),
    number=st.integers(0, 12),
    kind=st.sampled_from(["cut", "zeros", "text", "gone"]),
)
def test_a_file_that_was_damaged_anyhow_is_made_again_with_the_same_voxels(
    cohort: Cohort,
    originals: list[Decoded],
    tmp_path_factory: pytest.TempPathFactory,
    share: float,
    number: int,
    kind: str,
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    said: list[str] = []
    store = filled(cohort, folder, said.append)
    files = sorted(folder.rglob("*.npy"))
    assert len(files) == 13
    content = files[number].read_bytes()
    damaged = {"cut": content[: int(share * len(content))], "zeros": bytes(len(content)), "text": b"mine", "gone": b""}
    files[number].write_bytes(damaged[kind])
    if kind == "gone":
        files[number].unlink()
    assert_same(store, originals)
    assert said == [f"cache {folder}: files vanished or were cut short; they are made again from the corpus"]
    assert files[number].read_bytes() == content
    assert_same(store, originals)
    assert len(said) == 1


def test_a_cache_that_was_cut_short_before_the_run_is_made_again(
    cohort: Cohort, originals: list[Decoded], tmp_path: Path
) -> None:
    filled(cohort, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.npy")}
    for path in before:
        with path.open("r+b") as stream:
            stream.truncate(path.stat().st_size // 2)
    said: list[str] = []
    assert_same(filled(cohort, tmp_path, said.append), originals)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.npy")}
    assert said == [f"cache {tmp_path}: files are damaged; they are made again from the corpus"]


def test_a_cache_of_another_scan_is_not_believed(cohort: Cohort, originals: list[Decoded], tmp_path: Path) -> None:
    store = filled(cohort, tmp_path)
    for path in tmp_path.rglob("*.npy"):
        np.save(path, np.zeros((3, 4), np.float32))
    assert_same(store, originals)


def test_a_folder_that_cannot_come_back_slows_the_run_and_no_more(
    cohort: Cohort, originals: list[Decoded], tmp_path: Path
) -> None:
    said: list[str] = []
    store = filled(cohort, tmp_path / "cache", said.append)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("somebody's")
    assert_same(store, originals)
    assert_same(store, originals)
    assert len(said) == 2
    assert "going on without it" in said[1]
    assert (tmp_path / "cache").read_text() == "somebody's"


def test_threads_that_find_it_gone_at_once_make_it_again_once(
    cohort: Cohort, originals: list[Decoded], tmp_path: Path
) -> None:
    said: list[str] = []
    store = filled(cohort, tmp_path / "cache", said.append)
    shutil.rmtree(tmp_path / "cache")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: assert_same(store, originals), range(8)))
    assert len(said) == 1
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_disk_that_fills_up_is_one_line(cohort: Cohort, tmp_path: Path) -> None:
    with file_size_limit(20_000), pytest.raises(UserError, match=rf"cache {tmp_path}: .*; make room, or set") as error:
        filled(cohort, tmp_path)
    assert error.value.exit_code == 1
    assert "None" not in str(error.value)
    assert not list(tmp_path.rglob(".tmp-*"))


def test_only_old_halves_of_ours_are_swept(cohort: Cohort, tmp_path: Path) -> None:
    kept = [tmp_path / "mine" / ".tmp-1-a.npy", tmp_path / "ab" / "mine.npy", tmp_path / "ab" / ".tmp-2-young.npy"]
    old = tmp_path / "ab" / ".tmp-3-old.npy"
    for path in (*kept, old):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    for path in (*kept[:2], old):
        os.utime(path, (1, 1))
    filled(cohort, tmp_path)
    assert not old.exists()
    assert all(path.exists() for path in kept)


# The corpus


def test_a_file_of_the_corpus_that_is_gone_damaged_or_another_is_named(cohort: Cohort, tmp_path: Path) -> None:
    scan = next(scan for scan in cohort.scans if scan.mask is not None)
    content = scan.image.read_bytes()
    file = tmp_path / "broken.nii.gz"
    for name, said in {
        "gone": "is gone",
        "cut": "damaged gzip",
        "text": "damaged gzip",
        "folder": "Is a directory",
        "other": r"\(5, 5, 5\) voxels, the manifest says \(40, 36, 44\)",
        "dtype": "uint8 voxels, int16 expected",
    }.items():
        if name == "cut":
            file.write_bytes(content[: len(content) // 2])
        elif name == "text":
            file.write_text("not a volume")
        elif name == "folder":
            file.unlink()
            file.mkdir()
        elif name == "other":
            file.rmdir()
            write_volume(file, StoredVolume(stored_XYZ=np.zeros((5, 5, 5), np.int16), affine=np.eye(4)))
        elif name == "dtype":
            write_volume(file, StoredVolume(stored_XYZ=np.zeros((40, 36, 44), np.uint8), affine=np.eye(4)))
        with pytest.raises(
            UserError, match=rf"^scan scan-0: .*{said}.*; run `harmonize verify` on the corpus$"
        ) as error:
            decode(replace(scan, image=file))
        assert str(file) in str(error.value)
    with pytest.raises(UserError, match=r"mask\.nii\.gz is gone"):
        decode(replace(scan, mask=tmp_path / "mask.nii.gz"))


def test_without_a_cache_a_vanished_file_is_named_too(cohort: Cohort, tmp_path: Path) -> None:
    broken = Cohort(
        scans=(replace(cohort.scans[0], image=tmp_path / "gone.nii.gz"),), train=(0,), val=(), weights=(1.0,)
    )
    for mode in ("ram", "none", "disk", "shared"):
        config = DataConfig(cache=mode, cache_dir=str(tmp_path / "cache"))
        with pytest.raises(UserError, match=r"gone\.nii\.gz is gone"), open_cache(broken, config, tmp_path) as store:
            store[0]


def open_cache(cohort: Cohort, config: DataConfig, folder: Path, say: Callable[[str], object] = print):
    return cached(
        cohort.scans, config, run_name=str(folder), local_rank=0, local_ranks=1, agree=lambda choice: choice,
        wait=lambda: None, say=say,
    )  # fmt: skip


# Shared memory


def test_ranks_share_one_copy_that_has_no_name(cohort: Cohort, originals: list[Decoded], tmp_path: Path) -> None:
    barrier = threading.Barrier(3)

    def rank(number: int) -> SharedStore:
        store = SharedStore(
            cohort.scans, tmp_path / f"{SHARED}{SUFFIX}", local_rank=number, wait=barrier.wait, say=print
        )
        assert number != 0 or not list(tmp_path.iterdir())
        store.fill(number, 3)
        barrier.wait()
        return store

    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(rank, range(3)))
    for store in stores:
        assert_same(store, originals)
    assert list(tmp_path.iterdir()) == []


def test_shared_memory_that_does_not_suffice_is_one_line_and_leaves_nothing(cohort: Cohort, tmp_path: Path) -> None:
    path = tmp_path / f"{SHARED}{SUFFIX}"
    with file_size_limit(50_000), pytest.raises(UserError, match=r"GiB are wanted; set data\.cache disk or ram"):
        SharedStore(cohort.scans, path, local_rank=0, wait=lambda: None, say=print)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="No such file"):
        SharedStore(cohort.scans, tmp_path / "nowhere" / path.name, local_rank=0, wait=lambda: None, say=print)


KILLED = """
import os, signal, sys
from pathlib import Path
from harmonize.corpus import Corpus
from headspark.data import shared_store
from headspark.data.cohort import read_cohort
from headspark.data.config import DataConfig
cohort = read_cohort(Corpus.open(Path(sys.argv[1])), DataConfig())
wait = (lambda: os.kill(os.getpid(), signal.SIGKILL)) if sys.argv[3] == "early" else (lambda: None)
store = shared_store.SharedStore(cohort.scans, Path(sys.argv[2]), local_rank=0, wait=wait, say=print)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["early", "late"])
def test_kill_9_leaves_nothing_that_the_next_start_does_not_sweep(
    cohort: Cohort, originals: list[Decoded], tiny_corpus: Path, tmp_path: Path, moment: str
) -> None:
    path = tmp_path / f"{SHARED}{SUFFIX}"
    done = subprocess.run([sys.executable, "-c", KILLED, tiny_corpus, path, moment], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.exists() == (moment == "early")
    said: list[str] = []
    store = SharedStore(cohort.scans, path, local_rank=0, wait=lambda: None, say=said.append)
    store.fill(0, 1)
    assert_same(store, originals)
    assert list(tmp_path.iterdir()) == []
    assert len(said) == (moment == "early")


def test_only_what_nobody_holds_and_we_wrote_is_swept(cohort: Cohort, tmp_path: Path) -> None:
    path = tmp_path / f"{SHARED}{SUFFIX}"
    left = tmp_path / f"headspark-{'a' * 16}{SUFFIX}"
    own_of_0_1, other_of_0_1 = tmp_path / SHARED, tmp_path / f"headspark-{'b' * 16}"
    entry = f"ab/{'a' * 64}"
    for folder in (own_of_0_1, other_of_0_1):
        (folder / "ab").mkdir(parents=True)
        for name in (f"{entry}.npy", f"{entry}.scale.npy", f"{entry}.{'c' * 64}.npy", f"ab/.tmp-77-{'a' * 64}.npy"):
            (folder / name).write_text("x")
    kept = [
        tmp_path / f"headspark-{'c' * 16}{SUFFIX}",
        tmp_path / f"headspark-notes{SUFFIX}",
        tmp_path / f"headspark-{'e' * 16}",
        tmp_path / f"other-{'a' * 16}{SUFFIX}",
        other_of_0_1 / f"{entry}.npy",
    ]
    for file in (left, *kept[:4]):
        file.write_text("x")
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / f"headspark-{'d' * 16}{SUFFIX}").symlink_to(target)
    said: list[str] = []
    with kept[0].open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        sweep(path, said.append)
    assert not left.exists()
    assert not own_of_0_1.exists()
    assert all(file.exists() for file in kept)
    assert (tmp_path / f"headspark-{'d' * 16}{SUFFIX}").is_symlink()
    assert target.read_text() == "mine"
    assert [line.split(": ")[0] for line in said] == [str(left), str(own_of_0_1), str(other_of_0_1)]
    (own_of_0_1 / "ab").mkdir(parents=True)
    (own_of_0_1 / "ab" / "thesis.tex").write_text("mine")
    sweep(path, said.append)
    assert (own_of_0_1 / "ab" / "thesis.tex").read_text() == "mine"


def test_a_cache_dir_is_read_as_a_shell_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.delenv("NOWHERE", raising=False)
    places = {"~/cache": tmp_path / "home" / "cache", "$SCRATCH/x": tmp_path / "x", "a~/${SCRATCH}": None}
    for written, place in places.items():
        assert DataConfig(cache_dir=written).cache_folder == (place or Path(f"a~/{tmp_path}"))
    with pytest.raises(WrongUse, match=r"^data\.cache_dir \$NOWHERE/cache: NOWHERE is not set here$"):
        _ = DataConfig(cache_dir="$NOWHERE/cache").cache_folder


def test_another_users_memory_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left = tmp_path / f"headspark-{'a' * 16}{SUFFIX}"
    left.write_text("x")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    sweep(tmp_path / f"{SHARED}{SUFFIX}", print)
    assert left.exists()
