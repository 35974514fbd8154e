"""A raw tree: every regular file once, each real folder once, and an account of everything else."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmonize.errors import UserError
from harmonize.raw_tree import RawTree, printable, suffix_of
from harmonize.scan import LeftOut, ScanRef

NAMES = st.sampled_from(["a", "b.nii.gz", "C.PNG", "d e", "ü", ".hidden", "._twin", "1.2.840"])


def account(tree: RawTree) -> dict[tuple[str, str], int]:
    return {(found.what, found.why): found.count for found in tree.rest("tcia") if isinstance(found, LeftOut)}


def refused(tree: RawTree) -> list[tuple[str, object]]:
    return [
        (ref.key, (ref.rejection.reason, ref.rejection.message))
        for ref in tree.rest("tcia")
        if isinstance(ref, ScanRef) and ref.rejection
    ]


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(st.lists(NAMES, min_size=1, max_size=4), max_size=12),
    links=st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=3), st.lists(NAMES, max_size=3)), max_size=5),
)
def test_every_file_that_is_not_hidden_is_found_once_whatever_is_linked(
    files: list[list[str]], links: list[tuple[list[str], list[str]]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for parts in files:
            path = root.joinpath(*parts)
            with suppress(OSError):  # a file where another wants a folder
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        for parts, target in links:
            link = root.joinpath(*parts)
            with suppress(OSError):
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(root.joinpath(*target))
        tree = RawTree(root)
        found = list(tree.files())
        assert len(set(found)) == len(found)
        assert list(RawTree(root).files()) == found
        # Links to folders are outside of this walk, so each real folder stands in it under its own name.
        own = {
            Path(folder, file)
            for folder, _, names in os.walk(root)
            for file in names
            if Path(folder, file).is_file()
            and not any(part[0] == "." for part in Path(folder, file).relative_to(root).parts)
        }
        assert own <= set(found)
        # Nothing else is there: what hidden folders hold is reached through links alone.
        assert {os.path.realpath(path) for path in found} <= {
            os.path.realpath(Path(folder, file)) for folder, _, names in os.walk(root) for file in names
        }
        real = [os.path.realpath(path.parent) + "/" + path.name for path in found]
        assert len(set(real)) == len(real)


def test_a_linked_folder_is_followed_and_a_loop_ends(tmp_path: Path) -> None:
    (tmp_path / "disk/deep").mkdir(parents=True)
    (tmp_path / "disk/deep/a.dcm").touch()
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "disk")
    (root / "again").symlink_to(tmp_path / "disk/deep")
    (root / "loop").symlink_to(root)
    (tmp_path / "disk/deep/up").symlink_to(root)
    tree = RawTree(root)
    assert list(tree.files()) == [root / "again/a.dcm"]
    assert account(tree) == {("linked folders", "the folder was seen already"): 3}


def test_a_folder_that_is_also_linked_keeps_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "zz").mkdir()
    (tmp_path / "zz/a").touch()
    (tmp_path / "aa").symlink_to("zz")
    assert list(RawTree(tmp_path).files()) == [tmp_path / "zz/a"]


def test_what_is_no_file_is_never_opened_and_counted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "link").symlink_to("pipe.dcm")
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "null").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        tree = RawTree(tmp_path)
        assert list(tree.files()) == []
    assert account(tree) == {
        ("broken links", "they lead nowhere"): 2,
        ("devices", "never opened"): 1,
        ("named pipes", "never opened"): 2,
        ("sockets", "never opened"): 1,
    }


def test_a_link_that_leads_nowhere_is_handed_out_if_it_claims_to_be_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").symlink_to("gone")
    assert list(RawTree(tmp_path, lambda name: name.endswith(".dcm")).files()) == [tmp_path / "a.dcm"]


def test_hidden_files_folders_and_twins_are_counted(tmp_path: Path) -> None:
    (tmp_path / ".git/objects").mkdir(parents=True)
    for name in (".git/objects/a.dcm", ".DS_Store", "._a.dcm", "a.dcm"):
        (tmp_path / name).touch()
    tree = RawTree(tmp_path)
    assert list(tree.files()) == [tmp_path / "a.dcm"]
    assert sum(account(tree).values()) == 3


def test_an_unreadable_folder_is_refused_and_told_by_its_relative_path(guarded: Path) -> None:
    (guarded / "open").mkdir()
    (guarded / "open/a.dcm").touch()
    (guarded / "locked").mkdir(mode=0)
    (guarded / "linked").symlink_to("locked")
    tree = RawTree(guarded)
    assert list(tree.files()) == [guarded / "open/a.dcm"]
    assert refused(tree) == [("locked/", ("io_error", "a folder cannot be read: Permission denied"))]


def test_an_unreadable_root_is_wrong_use(guarded: Path) -> None:
    (guarded / "raw").mkdir(mode=0)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        list(RawTree(guarded / "raw").files())


def test_a_path_too_long_for_the_system_is_refused_and_not_a_crash(tmp_path: Path) -> None:
    own, here = Path.cwd(), tmp_path
    try:
        for _ in range(20):
            os.chdir(here)
            here = Path("x" * 240)
            here.mkdir()
    finally:
        os.chdir(own)
    tree = RawTree(tmp_path)
    list(tree.files())
    ((_, fault),) = refused(tree)
    assert fault == ("io_error", "a folder cannot be read: File name too long")


def test_a_corpus_of_ours_below_the_root_is_not_raw(tmp_path: Path) -> None:
    (tmp_path / "corpus/records").mkdir(parents=True)
    (tmp_path / "corpus/images").mkdir()
    for name in ("corpus/corpus.json", "corpus/images/a.nii.gz", "b.nii.gz"):
        (tmp_path / name).touch()
    tree = RawTree(tmp_path)
    assert list(tree.files()) == [tmp_path / "b.nii.gz"]
    assert account(tree) == {("corpora of harmonize", "not raw data"): 1}


def test_a_name_that_is_no_utf8_is_found_and_can_be_printed(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller.dcm")).touch()
    (found,) = RawTree(tmp_path).files()
    printable(str(found)).encode("utf-8")
    assert printable(str(found)).endswith(r"M\xfcller.dcm")


@given(st.text())
def test_a_suffix_is_short_lower_case_and_no_number(name: str) -> None:
    suffix = suffix_of(name)
    assert name.lower().endswith(suffix)
    assert suffix == suffix.lower()
    if suffix:
        assert not suffix[1:].isdecimal()
        assert all(len(part) <= 5 for part in suffix.split("."))


@given(st.text())
def test_printable_text_is_one_line_that_any_terminal_takes(name: str) -> None:
    with suppress(UnicodeEncodeError):  # no file name on this system
        os.fsencode(name)
        assert printable(name).isprintable()
