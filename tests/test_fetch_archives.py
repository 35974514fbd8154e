"""Archives from the network: whatever is wrong with one is one fault, and no wrong byte is ever written."""

from __future__ import annotations

import errno
import io
import random
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmonize.fetch.archives import Damaged, unpack

METHODS = {
    "stored": zipfile.ZIP_STORED,
    "deflated": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}
MEMORY = Path("/dev/shm")
FILES = {"a/first.dcm": bytes(range(256)) * 3, "second.dcm": b"second" * 40, "ä.txt": b"third"}


def zipped(method: int, files: dict[str, bytes] = FILES) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as made:
        for name, content in files.items():
            made.writestr(name or "0", content)
    return stream.getvalue()


def unpacked(content: bytes) -> dict[str, bytes] | None:
    """What an archive leaves in a folder, also if it is damaged; None if nothing at all."""
    # In memory where there is such a folder: each file is flushed to the disk.
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        archive, folder = Path(name, "x.zip"), Path(name, "out")
        archive.write_bytes(content)
        try:
            unpack(archive, folder, place=lambda path: path)
        except Damaged as damaged:
            if not str(damaged).isprintable():
                raise
        assert {path.name for path in Path(name).iterdir()} <= {"x.zip", "out"}
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def no_wrong_byte(found: dict[str, bytes] | None) -> bool:
    return not found or all(content in FILES.values() for content in found.values())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_wrong_byte_anywhere_is_damage_or_harmless(method: int) -> None:
    whole, choices = zipped(method), random.Random(method)
    assert unpacked(whole) == FILES
    # Every byte of the directory, where most kinds of fault come from, and many of the rest.
    start = whole.index(b"PK\x01\x02")
    for place in [*range(start, len(whole)), *choices.sample(range(start), min(start, 120))]:
        mutated = bytearray(whole)
        mutated[place] ^= choices.randrange(1, 256)
        assert no_wrong_byte(unpacked(bytes(mutated))), place


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(METHODS.values())), st.data())
def test_cut_doubled_or_overwritten_archives_are_damage_or_harmless(method: int, data: st.DataObject) -> None:
    whole = zipped(method)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    between = data.draw(st.one_of(st.binary(max_size=40), st.just(whole[start:end] * 2)))
    assert no_wrong_byte(unpacked(whole[:start] + between + whole[end:]))


def with_header(position: int, value: int) -> bytes:
    """An archive of one file with another byte in its directory's entry."""
    whole = bytearray(zipped(zipfile.ZIP_STORED, {"a": b"content"}))
    whole[whole.index(b"PK\x01\x02") + position] = value
    return bytes(whole)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (with_header(8, 1), "encrypted"),
        (with_header(10, 99), "compression"),
        (with_header(45, 0xFF), ""),
        (zipped(0, {"": b"no name"}).replace(b"0", b"\0"), "file and a folder"),
        (zipped(0, {"a": b"file", "a/b": b"in it"}), "file and a folder"),
        (zipped(0, {"n" * 230: b"long"}), "too long"),
        (zipped(0, {"a/" * 600 + "b": b"deep"}), "too long"),
        (zipped(0, {"a/../../b": b"out"}), "leaves its folder"),
        (zipped(0)[:-1], "zip"),
        (b"", "zip"),
    ],
    ids=("encrypted", "method", "offset", "nameless", "file and folder", "long", "deep", "dots", "cut", "empty"),
)
def test_every_kind_of_fault_is_damage(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(Damaged, match=f"x.zip: .*{said}"):
        unpack(tmp_path / "x.zip", tmp_path / "out", place=lambda path: path)
    assert not list(tmp_path.rglob("out/*"))


def test_a_file_shorter_than_its_header_says_is_damage(tmp_path: Path) -> None:
    whole = zipped(zipfile.ZIP_DEFLATED, {"a": b"content" * 9})
    place = whole.index(b"PK\x01\x02") + 24
    (tmp_path / "x.zip").write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
    with pytest.raises(Damaged, match="63 bytes instead of 255"):
        unpack(tmp_path / "x.zip", tmp_path / "out", place=lambda path: path)


def test_a_full_disk_is_no_fault_of_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    (tmp_path / "x.zip").write_bytes(zipped(0))
    monkeypatch.setattr("harmonize.files.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(tmp_path / "x.zip", tmp_path / "out", place=PurePosixPath)
