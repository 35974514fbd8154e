"""Tables of the sources: whoever wrote them, they are read right or named; never a traceback, never a lost row."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmonize.errors import UserError
from harmonize.labels import LABELS, LOCATIONS, PRESENT, read_labels
from harmonize.sources.tables import age_of, number_of, read_table, sex_of

CELLS = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f\x85"), max_size=8)
ROWS = st.lists(st.tuples(CELLS, CELLS, CELLS).filter(any), max_size=8)


def write(rows: list[tuple[str, str, str]], *, delimiter: str = ",", lineterminator: str = "\r\n") -> str:
    stream = io.StringIO(newline="")
    table = csv.writer(stream, delimiter=delimiter, lineterminator=lineterminator)
    table.writerow(("id", "age", "note"))
    table.writerows(rows)
    return stream.getvalue()


def read(content: bytes) -> list[tuple[str, ...]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_bytes(content)
        return [tuple(row.values()) for row in read_table(path, ("id", "age"), ("note",)).rows]


@settings(max_examples=150, deadline=None)
@given(
    rows=ROWS,
    delimiter=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]),
    lineterminator=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_a_table_is_read_back_in_any_encoding_and_with_any_delimiter(
    rows: list[tuple[str, str, str]], delimiter: str, encoding: str, lineterminator: str
) -> None:
    text = write(rows, delimiter=delimiter, lineterminator=lineterminator)
    assert read(text.encode(encoding)) == rows


@settings(max_examples=50, deadline=None)
@given(rows=ROWS)
def test_a_latin_1_table_is_read_back_where_it_is_no_utf8(rows: list[tuple[str, str, str]]) -> None:
    assert read(write([*rows, ("ÄÖ", "\xe9 ", "x")]).encode("latin-1")) == [*rows, ("ÄÖ", "\xe9 ", "x")]


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(*[st.text("ab1 ", min_size=1, max_size=5)] * 3), min_size=1, max_size=6), data=st.data())
def test_a_quote_that_is_not_closed_costs_its_own_row_alone(
    rows: list[tuple[str, str, str]], data: st.DataObject
) -> None:
    lines = write(rows, lineterminator="\n").splitlines()
    broken = data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1, max_size=3))
    for number in broken:
        cells = lines[number + 1].split(",")
        place = data.draw(st.integers(0, 2))
        cells[place] = f'"{cells[place]}'
        lines[number + 1] = ",".join(cells)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_text("\n".join(lines))
        table = read_table(path, ("id", "age"), ("note",))
    assert [tuple(row.values()) for row in table.rows] == [row for n, row in enumerate(rows) if n not in broken]
    assert table.damaged == len(broken)


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", "\r\r\n"])
def test_a_line_ends_with_whatever_a_program_writes_and_a_quoted_field_may_hold_it(end: str) -> None:
    for within in ("\r", "\n", "\r\n"):
        lines = ("sep=,", "id,age,note", f'a,1,"two{within}lines"', "b,2,x", "")
        assert read(end.join(lines).encode()) == [("a", "1", f"two{within}lines"), ("b", "2", "x")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04" + bytes(60), "is an Excel workbook; save it as CSV"),
        (bytes.fromhex("d0cf11e0a1b11ae1") + bytes(60), "is an Excel workbook; save it as CSV"),
        (b"\x1f\x8b\x08" + bytes(60), "is packed by gzip; unpack it"),
    ],
)
def test_a_workbook_is_no_table_and_is_called_so(content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=f"table.csv: {said}$"):
        read(content)


def test_a_field_of_any_length_is_read() -> None:
    assert read(write([("a", "1", "x" * 500_000)]).encode()) == [("a", "1", "x" * 500_000)]


def test_a_quote_that_would_swallow_the_next_row_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('id,range,note\na,"1, 2",x\nb,"3, 4,y\nc,"5, 6",z\nd,"7, 8","two\nlines"\n')
    table = read_table(path, ("id", "range"))
    assert [row["id"] for row in table.rows] == ["a", "c", "d"]
    assert table.damaged == 1


def test_rows_that_a_full_disk_left_empty_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"id,range,note\na,1,x\n" + bytes(400))
    table = read_table(path, ("id", "range"))
    assert [row["id"] for row in table.rows] == ["a"]
    assert table.damaged == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"\n \n", bytes(600), b"i\0d,age\n1,2\n", b"\xff\xfei\0d\0,", b"name,x\n1,2\n", b'id,"age\n1,2\n'],
    ids=["nothing", "blank", "a full disk", "a NUL", "half a letter", "other columns", "an open quote"],
)
def test_a_table_that_is_none_is_one_line_that_names_it(content: bytes) -> None:
    with pytest.raises(UserError, match=r"table\.csv: ") as caught:
        read(content)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_table_or_an_error_of_one_line(content: bytes) -> None:
    said = ""
    try:
        read(b"id,age,note\n" + content)
    except UserError as error:
        said = str(error)
    assert "\n" not in said


def test_a_column_that_stands_twice_is_refused() -> None:
    with pytest.raises(UserError, match="age stands twice"):
        read(b"id,age,age\n1,2,3\n")


@pytest.mark.parametrize(
    ("text", "age", "noted"),
    [("60", 60.0, False), ("31.5 ", 31.5, False), ("", None, False), ("n/a", None, False), ("NaN", None, False),
     ("-1", None, True), ("300", None, True), ("old", None, True), ("20-30", None, True), ("1e999", None, True),
     ("63,5", 63.5, False), ("063Y", 63.0, False), ("018M", 1.5, False), ("003W", 0.06, False), ("010d", 0.03, False),
     ("63 years", 63.0, False), ("89+", 89.0, True), ("> 89", 89.0, True), ("090Y+", None, True), ("300Y", None, True),
     ("<1", None, True), ("6,3,5", None, True), ("٦٣Y", None, True),
     ("63M", None, True), ("63 M", None, True), ("63m", None, True), ("63,5M", None, True), ("45 d", None, True),
     ("7W", None, True), ("063 M", None, True), (">063M", None, True), ("63 F", None, True), ("63y", 63.0, False)],
)  # fmt: skip
def test_an_age_is_years_or_absent_or_noted(text: str, age: float | None, noted: bool) -> None:
    found, notes = age_of(text)
    assert (found, bool(notes)) == (age, noted)
    assert not any(text in note for note in notes if len(text) > 2)


@pytest.mark.parametrize(
    ("text", "sex", "noted"),
    [("Female", "F", False), ("m", "M", False), ("", None, False), ("other", None, False), ("2", None, True)],
)
def test_a_sex_is_known_or_absent_or_noted(text: str, sex: str | None, noted: bool) -> None:
    found, notes = sex_of(text)
    assert (found, bool(notes)) == (sex, noted)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_read_back(value: float) -> None:
    assert number_of(repr(value)) == value


POSITIVE, NEGATIVE = st.sampled_from(["1", "1.0", " 1", "True", "true"]), st.sampled_from(["0", "0.0", "False", "0 "])


@given(st.data())
def test_labels_are_read_however_a_table_writes_them(data: st.DataObject) -> None:
    sites = data.draw(st.lists(st.booleans(), min_size=len(LOCATIONS), max_size=len(LOCATIONS)))
    truth = dict(zip(LABELS, (*sites, any(sites) or data.draw(st.booleans())), strict=True))
    row = {name: data.draw(POSITIVE if value else NEGATIVE) for name, value in truth.items()}
    assert read_labels(row) == ({name: int(value) for name, value in truth.items()}, "")


@given(
    st.sampled_from(LABELS),
    st.sampled_from(["", " ", "2", "-1", "0.5", "yes", "nan", "inf", "1_0", "١", "0,0", "null"]),
)
def test_a_label_that_is_neither_0_nor_1_leaves_none_and_is_not_quoted(name: str, text: str) -> None:
    labels, fault = read_labels(dict.fromkeys(LABELS, "0") | {name: text})
    assert labels is None
    assert fault in ("1 of the 14 labels is empty", "1 of the 14 labels says neither yes nor no")


@given(st.sampled_from(LOCATIONS))
def test_a_location_without_an_aneurysm_is_a_contradiction(name: str) -> None:
    labels, fault = read_labels(dict.fromkeys(LABELS, "0") | {name: "1"})
    assert labels is None
    assert PRESENT in fault
