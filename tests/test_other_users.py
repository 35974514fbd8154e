"""What another user of the machine can do to a run's cache and its temporary files: nothing."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from standin_users import FIRST, SECOND, as_user, two_users

from harmonize import files
from harmonize.corpus import Corpus
from harmonize.errors import UserError
from headspark.data import cache, private, shared_store
from headspark.data.cohort import Cohort, read_cohort
from headspark.data.config import DataConfig
from headspark.data.decoders import Decoded, decode
from headspark.data.private import claim, folder_name, open_own, own_part
from headspark.data.stores import MappedStore


@pytest.fixture(scope="module")
def public(tiny_corpus: Path) -> Iterator[Path]:
    """A folder like the system's temporary one, with a corpus that all may read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(tiny_corpus, folder / "corpus")
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield folder


@pytest.fixture(scope="module")
def cohort(public: Path) -> Cohort:
    return read_cohort(Corpus.open(public / "corpus"), DataConfig(val_share=0.3))


@pytest.fixture(scope="module")
def originals(cohort: Cohort) -> list[Decoded]:
    return [decode(scan) for scan in cohort.scans]


@pytest.fixture
def temporary(public: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The system's temporary folder and its shared memory, where everybody may write."""
    with tempfile.TemporaryDirectory(dir=public) as name:
        folder = Path(name)
        folder.chmod(0o1777)
        monkeypatch.setattr(tempfile, "tempdir", name)
        monkeypatch.setattr(cache, "SHARED_MEMORY", folder)
        yield folder


def train(cohort: Cohort, originals: list[Decoded], **config: str) -> str:
    """Fill a cache and look at what would be trained; gives the line of a refusal, or nothing."""
    said: list[str] = []
    try:
        with cache.cached(
            cohort.scans, DataConfig(**config), run_name="run", local_rank=0, local_ranks=1,  # type: ignore[arg-type]
            agree=lambda choice: choice, wait=lambda: None, say=said.append,
        ) as store:  # fmt: skip
            for number, wanted in enumerate(originals):
                found = store[number]
                assert np.array_equal(found.voxels.stored_XYZ, wanted.voxels.stored_XYZ)
                assert (found.voxels.slope, found.voxels.inter) == (wanted.voxels.slope, wanted.voxels.inter)
                assert wanted.scored_XYZ is None or np.array_equal(found.scored_XYZ, wanted.scored_XYZ)
    except UserError as error:
        return str(error)
    return ""


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def plant(folder: Path, cohort: Cohort) -> None:
    """Made-up arrays under the names, and of the shapes, of the true ones."""
    for scan in cohort.scans:
        place = folder / scan.sha256[:2]
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{scan.sha256}.npy", np.full(scan.shape, 666, np.int16))
        np.save(place / f"{scan.sha256}.scale.npy", np.array([1.0, 0.0]))
        if scan.mask is not None:
            np.save(place / f"{scan.sha256}.{scan.mask_sha256}.npy", np.ones(scan.shape, bool))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)


@two_users
@pytest.mark.parametrize("mode", ["disk", "shared"])
def test_two_users_with_the_same_defaults_train_beside_each_other_unseen(
    cohort: Cohort, originals: list[Decoded], temporary: Path, mode: str
) -> None:
    run = partial(train, cohort, originals, cache=mode)
    assert [as_user(user, run) for user in (FIRST, SECOND, FIRST)] == ["", "", ""]
    left = sorted(path.name for path in temporary.iterdir())
    assert left == ([f"headspark-cache-{user}" for user in (SECOND, FIRST)] if mode == "disk" else [])
    for user in (FIRST, SECOND) if mode == "disk" else ():
        folder = temporary / f"headspark-cache-{user}"
        found = [(path, path.lstat()) for path in (folder, *folder.rglob("*"))]
        assert len(found) > len(originals)
        for path, status in found:
            assert status.st_uid == user, path
            assert stat.S_IMODE(status.st_mode) == (0o700 if path.is_dir() else 0o600), path
    if mode == "disk":
        assert not as_user(SECOND, lambda: os.access(temporary / f"headspark-cache-{FIRST}", os.R_OK | os.X_OK))


@two_users
@pytest.mark.parametrize("what", ["folder", "link", "file"])
def test_what_another_user_put_in_the_place_of_the_cache_is_refused_in_one_line(
    cohort: Cohort, originals: list[Decoded], temporary: Path, what: str
) -> None:
    victim = temporary / "home"
    as_user(SECOND, lambda: (victim.mkdir(), (victim / "thesis.tex").write_text("mine")))
    place = temporary / f"headspark-cache-{SECOND}"

    def prepare() -> None:
        if what == "folder":
            plant(place, cohort)
        elif what == "link":
            place.symlink_to(victim)
        else:
            place.write_text("x")

    as_user(FIRST, prepare)
    before = content(temporary)
    line = as_user(SECOND, lambda: train(cohort, originals, cache="disk"))
    assert line.startswith(f"cache {place}: ")
    assert line.endswith("set data.cache_dir to a folder of your own")
    assert "\n" not in line
    assert content(temporary) == before


@two_users
def test_made_up_arrays_in_a_folder_that_all_may_write_to_are_not_trained_and_links_in_it_not_followed(
    cohort: Cohort, originals: list[Decoded], temporary: Path
) -> None:
    shared, precious = temporary / "shared", temporary / "precious"
    as_user(SECOND, lambda: precious.write_text("mine"))

    def prepare() -> None:
        plant(shared, cohort)
        entry = shared / cohort.scans[0].sha256[:2] / f"{cohort.scans[0].sha256}.npy"
        entry.unlink()
        entry.symlink_to(precious)

    as_user(FIRST, prepare)
    before = content(temporary)
    run = partial(train, cohort, originals, cache="disk", cache_dir=str(shared))
    assert as_user(SECOND, run) == ""
    assert before.items() <= content(temporary).items()
    assert (shared / f"headspark-cache-{SECOND}").lstat().st_uid == SECOND


@two_users
def test_an_array_of_another_user_in_our_own_folder_is_made_again(
    cohort: Cohort, originals: list[Decoded], temporary: Path
) -> None:
    folder = temporary / f"headspark-cache-{SECOND}"
    plant(folder, cohort)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, SECOND if path.is_dir() else FIRST, 0)
        path.chmod(0o700 if path.is_dir() else 0o644)
    assert as_user(SECOND, lambda: train(cohort, originals, cache="disk")) == ""
    assert {path.lstat().st_uid for path in folder.rglob("*")} == {SECOND}


@two_users
def test_a_cache_that_another_user_puts_his_own_in_the_place_of_while_it_is_used_gives_the_same_voxels(
    cohort: Cohort, originals: list[Decoded], temporary: Path
) -> None:
    folder = temporary / "cache"
    store = MappedStore(cohort.scans, folder, lambda line: None)

    def read() -> None:
        for number, wanted in enumerate(originals):
            assert np.array_equal(store[number].voxels.stored_XYZ, wanted.voxels.stored_XYZ)

    as_user(SECOND, lambda: store.fill(0, 1))
    as_user(SECOND, read)
    shutil.rmtree(folder)  # as a cleaner of old temporary files does
    as_user(FIRST, lambda: plant(folder, cohort))
    before = content(folder)
    as_user(SECOND, read)
    assert content(folder) == before


@two_users
def test_a_cache_dir_behind_another_users_folder_is_refused_in_one_line(
    cohort: Cohort, originals: list[Decoded], temporary: Path
) -> None:
    as_user(FIRST, lambda: (temporary / "closed").mkdir(mode=0o700))
    choose = partial(cache.choose_cache, "auto", needed=1, local_ranks=1, run_name="run", memory=0)
    for place in (temporary / "closed", temporary / "closed" / "cache"):
        line = as_user(SECOND, partial(train, cohort, originals, cache="disk", cache_dir=str(place)))
        assert line.startswith("cache ")
        assert line.endswith("set data.cache or data.cache_dir")
        assert "\n" not in line
        assert as_user(SECOND, partial(choose, cache_dir=place)).mode == "disk"


@two_users
def test_a_closed_folder_and_shared_memory_of_another_user_are_refused(temporary: Path) -> None:
    place, memory = temporary / f"headspark-cache-{SECOND}", temporary / "x.voxels"
    as_user(FIRST, lambda: (place.mkdir(mode=0o755), memory.write_bytes(bytes(64)), memory.chmod(0o666)))
    assert as_user(SECOND, partial(refused, place)) == f"belongs to another user (number {FIRST})"

    def map_it(size: int) -> str:
        try:
            shared_store._map(memory, size)
        except OSError as error:
            return str(error)
        return "taken"

    assert "another run's" in as_user(SECOND, partial(map_it, 64))
    assert "another run's" in as_user(FIRST, partial(map_it, 128))
    assert as_user(FIRST, partial(map_it, 64)) == "taken"


# Without a second user


def test_shared_memory_that_a_killed_run_left_under_its_random_name_is_swept(
    cohort: Cohort, originals: list[Decoded], temporary: Path
) -> None:
    left = temporary / f"headspark-{'a' * 16}-{'b' * 16}.voxels"
    left.write_bytes(b"x")
    assert train(cohort, originals, cache="shared") == ""
    assert list(temporary.iterdir()) == []


def refused(folder: Path) -> str:
    with pytest.raises(PermissionError) as error:
        claim(folder)
    return error.value.strerror


def test_a_folder_that_others_may_write_to_or_a_link_is_no_cache(tmp_path: Path) -> None:
    for mode in (0o777, 0o770, 0o702, 0o1777):
        folder = tmp_path / f"{mode:o}"
        folder.mkdir()
        folder.chmod(mode)
        assert refused(folder) == "others may write to it"
        assert own_part(folder) == folder / folder_name()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").write_text("x")
    assert "a link" in refused(tmp_path / "link")
    assert refused(tmp_path / "file") == "no folder"
    claim(tmp_path / "own")
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o700
    named = tmp_path / folder_name()
    named.mkdir(mode=0o755)
    claim(named)
    assert stat.S_IMODE(named.stat().st_mode) == 0o700
    for own in (tmp_path / "new", tmp_path / "link"):
        assert own_part(own) == Path(os.path.realpath(own))


@pytest.mark.parametrize("kind", ["link", "pipe", "writable"])
def test_a_file_that_another_may_have_written_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "array.npy"
    (tmp_path / "target").write_text("x")
    if kind == "link":
        path.symlink_to(tmp_path / "target")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("x")
        path.chmod(0o666)
    with pytest.raises(OSError):
        open_own(path)


@pytest.mark.parametrize("kind", ["link", "file"])
def test_nothing_is_written_over_what_stands_at_a_name_that_was_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    precious, guessed = tmp_path / "precious", tmp_path / "guessed"
    precious.write_bytes(b"mine")
    if kind == "link":
        guessed.symlink_to(precious)
    else:
        guessed.hardlink_to(precious)
    monkeypatch.setattr(private, "temporary_beside", lambda path: guessed)
    with pytest.raises(FileExistsError), private.private_file(tmp_path / "array.npy") as stream:
        stream.write(b"voxels")
    with pytest.raises(FileExistsError):
        shared_store._create(guessed, 64)
    assert precious.read_bytes() == b"mine"


def test_shared_memory_is_this_users_alone_and_its_name_nobody_knows(tmp_path: Path) -> None:
    choose = partial(cache.choose_cache, "shared", needed=1, local_ranks=2, cache_dir=None, run_name="run")
    assert len({choose().folder for _ in range(20)}) == 20
    umask = os.umask(0)
    try:
        os.close(shared_store._create(tmp_path / "x.voxels", 64))
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "x.voxels").stat().st_mode) == 0o600


def of_another_type(path: Path) -> None:
    np.save(path, np.load(path).view(np.uint16))


def turned(path: Path) -> None:
    np.save(path, np.asfortranarray(np.load(path)))


def of_another_shape(path: Path) -> None:
    np.save(path, np.load(path).reshape(-1))


def larger(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"\0" * 4096)


def pickled(path: Path) -> None:
    np.save(path, np.array([print], object), allow_pickle=True)


@pytest.mark.parametrize("change", [larger, pickled, of_another_type, turned, of_another_shape])
def test_an_array_is_what_its_file_claims(
    cohort: Cohort, originals: list[Decoded], tmp_path: Path, change: Callable[[Path], None]
) -> None:
    one = replace(cohort.scans[0], mask=None)
    store = MappedStore([one], tmp_path, lambda line: None)
    store.fill(0, 1)
    path = tmp_path / one.sha256[:2] / f"{one.sha256}.npy"
    content = path.read_bytes()
    change(path)
    found = store[0].voxels.stored_XYZ
    assert found.dtype == np.int16
    assert np.array_equal(found, originals[0].voxels.stored_XYZ)
    assert path.read_bytes() == content


def test_temporary_names_of_processes_with_one_number_differ_and_are_still_known(tmp_path: Path) -> None:
    names = {files.temporary_beside(tmp_path / "metadata.parquet").name for _ in range(50)}
    assert len(names) == 50
    assert {files.target_of_temporary(name) for name in names} == {"metadata.parquet"}
    assert {files.process_of_temporary(name) for name in names} == {os.getpid()}
    assert files.target_of_temporary(".tmp-7-metadata.parquet") == "metadata.parquet"
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / f".tmp-{os.getpid()}-a.txt").symlink_to(precious)
    files.write_text(tmp_path / "a.txt", "new")
    assert precious.read_text() == "mine"
