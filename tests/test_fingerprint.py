"""The fingerprint of a raw scan: any change shows, nothing can be read back, and a moved root is the same."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harmonize.corpus import fingerprint
from harmonize.errors import Reason, Rejection
from harmonize.scan import ScanRef

NAMES = st.lists(st.sampled_from([f"{letter}.dcm" for letter in "abcdef"]), min_size=1, max_size=6, unique=True)
META = st.dictionaries(
    st.sampled_from(["age", "labels", "localizers", "mask"]),
    st.none() | st.integers(0, 9) | st.text(max_size=3) | st.tuples(st.text(max_size=2), st.text(max_size=2)),
)


def reference(root: Path, names: list[str], **changes: object) -> ScanRef:
    given = {"source": "tcia", "key": "1.2.3/0", "subject": "DOE^JANE"} | changes
    return ScanRef(root=root, paths=tuple(root / name for name in names), **given)  # type: ignore[arg-type]


def write(root: Path, names: list[str], size: int = 3) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for path in root.iterdir():
        path.unlink()
    for name in names:
        (root / name).write_bytes(bytes(size))
        os.utime(root / name, (1000, 1000))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=NAMES, others=NAMES, meta=META, other_meta=META)
def test_other_names_or_table_values_give_another_fingerprint_and_the_same_the_same(
    tmp_path: Path, names: list[str], others: list[str], meta: dict[str, object], other_meta: dict[str, object]
) -> None:
    write(tmp_path, sorted({*names, *others}))
    said = {key: value for key, value in meta.items() if value not in (None, "")}
    other_said = {key: value for key, value in other_meta.items() if value not in (None, "")}
    one = fingerprint.look_at_each(reference(tmp_path, names, meta=meta), "salt")
    other = fingerprint.look_at_each(reference(tmp_path, others, meta=other_meta), "salt")
    assert (one.files == other.files) == (names == others)
    assert (one.said == other.said) == (said == other_said)
    assert (one.file_hashes() <= other.file_hashes()) == (set(names) <= set(others))
    assert one == fingerprint.look_at_each(reference(tmp_path, names, meta=meta), "salt")


@pytest.mark.parametrize("change", ["size", "time", "content", "gone", "salt", "subject", "nothing"])
def test_each_kind_of_change_shows_where_it_should(tmp_path: Path, change: str) -> None:
    write(tmp_path, ["a.dcm", "b.dcm"])
    ref, salt = reference(tmp_path, ["a.dcm", "b.dcm"]), "salt"
    before = fingerprint.look_and_read(ref, salt=salt)
    path = tmp_path / "b.dcm"
    if change == "size":
        path.write_bytes(b"longer")
        os.utime(path, (1000, 1000))
    elif change == "time":
        os.utime(path, (2000, 2000))
    elif change == "content":
        path.write_bytes(b"abc")
        os.utime(path, (2000, 2000))
    elif change == "gone":
        path.unlink()
    elif change == "salt":
        salt = "other"
    elif change == "subject":
        ref = dataclasses.replace(ref, subject="DOE^JOHN")
    after = fingerprint.look_and_read(ref, salt=salt)
    names = {field.name for field in dataclasses.fields(before)}
    same = {name for name in names if getattr(before, name) == getattr(after, name)}
    changed = {
        "size": {"files", "each", "content"},
        "time": {"times"},
        "content": {"times", "content"},
        "gone": {"files", "each", "times", "content"},
        "salt": {"files", "each", "said", "times", "root", "content"},
        "subject": {"said"},
        "nothing": set(),
    }
    assert names - same == changed[change]


def test_a_moved_root_differs_in_its_place_alone(tmp_path: Path) -> None:
    def found(root: Path) -> fingerprint.Fingerprint:
        return fingerprint.look_and_read(reference(root, ["a.dcm"], meta={"mask": root / "a.dcm"}), salt="")

    write(tmp_path / "one", ["a.dcm"])
    before = found(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    after = found(tmp_path / "two")
    assert dataclasses.replace(after, root=before.root) == before
    assert after.root != before.root


def test_this_programs_own_words_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, ["a.dcm"])
    one = reference(
        tmp_path, ["a.dcm"], meta={"decisions": ["two volumes"]}, rejection=Rejection(Reason.EMPTY, "no bytes")
    )
    other = reference(
        tmp_path, ["a.dcm"], meta={"decisions": ["2 volumes"]}, rejection=Rejection(Reason.EMPTY, "nothing")
    )
    third = reference(tmp_path, ["a.dcm"], rejection=Rejection(Reason.TRUNCATED, "no bytes"))
    assert fingerprint.look(one, "") == fingerprint.look(other, "")
    assert fingerprint.look(one, "").files != fingerprint.look(third, "").files
    assert fingerprint.look(one, "").said == fingerprint.look(third, "").said


def test_a_file_that_comes_while_the_others_are_looked_at_is_left_to_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, ["a.dcm", "mask.nii"])
    ref = reference(tmp_path, ["a.dcm"])
    sums = fingerprint.sums_of_each(ref, salt="salt")
    looks = iter([ref.paths])
    monkeypatch.setattr(fingerprint.sources, "inputs", lambda ref: next(looks, (*ref.paths, tmp_path / "mask.nii")))
    assert sums is not None
    assert fingerprint.sums_of_each(ref, salt="salt") == sums


def test_nothing_of_the_raw_data_can_be_read_in_it(tmp_path: Path) -> None:
    write(tmp_path / "DOE^JANE", ["a.dcm"])
    ref = reference(tmp_path / "DOE^JANE", ["a.dcm"], meta={"age": 37, "note": "DOE"})
    text = str(dataclasses.astuple(fingerprint.look_and_read(ref, salt="salt")))
    assert not any(word in text for word in ("DOE", "JANE", "a.dcm", "1.2.3", str(tmp_path)))


def test_a_file_that_cannot_be_read_makes_it_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ["a.dcm"])

    def locked(path: Path) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(fingerprint, "_checksum", locked)
    found = fingerprint.look_and_read(reference(tmp_path, ["a.dcm"]), salt="")
    assert (found.partial, found.content) == (True, None)
