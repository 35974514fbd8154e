"""A corpus that somebody else made: tables, settings and journals that are damaged or say what they should not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harmonize import engine
from harmonize.corpus import INFO, REJECTED, SCANS, Corpus
from harmonize.errors import UserError

OLD = Path(__file__).resolve().parent / "fixtures/v0_1_0/corpus"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return shutil.copytree(OLD, tmp_path / "corpus")


def renamed(table: pa.Table) -> pa.Table:
    return table.append_column("source", table.column("source"))


def retyped(table: pa.Table) -> pa.Table:
    return table.set_column(0, table.column_names[0], pa.array([[1]] * table.num_rows))


@pytest.mark.parametrize("name", [SCANS, REJECTED])
@pytest.mark.parametrize("damage", ["cut", "footer", "page", "twice", "type"])
def test_a_damaged_table_is_one_line_that_names_it(corpus: Path, name: str, damage: str) -> None:
    path = corpus / name
    content = path.read_bytes()
    if damage in ("twice", "type"):
        pq.write_table((renamed if damage == "twice" else retyped)(pq.read_table(path)), path)
    else:
        place = {"cut": 40, "footer": len(content) - 60, "page": 30}[damage]
        path.write_bytes(content[:place] + b"\xff" * 20 + (b"" if damage == "cut" else content[place + 20 :]))
    opened = Corpus.open(corpus)
    with pytest.raises(UserError, match=name) as caught:
        _ = opened.scans if name == SCANS else opened.rejected
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda info: info["settings"].update(spacing=[1, 1]),
        lambda info: info["settings"].update(spacing=[1, 1, 0]),
        lambda info: info["settings"].update(spacing="1x1"),
        lambda info: info["settings"].update(circle_mm=[112, 112]),
        lambda info: info["settings"].update(circle_mm="112"),
        lambda info: info["sources"]["tcia"].pop("mri_norm"),
        lambda info: info["sources"]["tcia"].update(mri_norm=["zscore"]),
    ],
)
def test_odd_settings_are_one_line(corpus: Path, change: Callable[[dict[str, Any]], object]) -> None:
    info = json.loads((corpus / INFO).read_text())
    change(info)
    (corpus / INFO).write_text(json.dumps(info))
    with pytest.raises(UserError, match=INFO):
        Corpus.open(corpus)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' * 100_000, '{"schema_version": ' + "9" * 6000 + "}"])
def test_settings_nested_without_end_are_one_line(corpus: Path, content: str) -> None:
    (corpus / INFO).write_text(content)
    with pytest.raises(UserError, match=INFO):
        Corpus.open(corpus)


def journal_with(corpus: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = corpus / "records/openmind.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    change(next(entry for entry in entries if entry.get("row")))
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))


@pytest.mark.parametrize("subject", [7, None, ["x"]])
def test_a_record_without_its_names_does_not_count(corpus: Path, subject: object) -> None:
    accepted, _ = engine.merge(corpus)
    journal_with(corpus, lambda entry: entry["row"].update(subject=subject))
    assert engine.merge(corpus)[0] == accepted - 1


def test_a_record_that_fits_no_column_is_one_line(corpus: Path) -> None:
    journal_with(corpus, lambda entry: entry["row"].update(shape="large"))
    with pytest.raises(UserError, match="records/"):
        engine.merge(corpus)


def test_a_line_nested_without_end_is_passed_over(corpus: Path) -> None:
    whole = engine.merge(corpus)
    with (corpus / "records/openmind.jsonl").open("a") as stream:
        stream.write("[" * 100_000 + "\n")
    assert engine.merge(corpus) == whole


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", '"\\ud800"'])
@pytest.mark.parametrize("part", ["row", "labels"])
def test_a_line_with_what_cannot_be_written_again_is_passed_over(corpus: Path, part: str, value: str) -> None:
    accepted, rejected = engine.merge(corpus)
    path = corpus / "records/openmind.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    odd = next(number for number, line in enumerate(lines) if json.loads(line).get("row"))
    entry = json.loads(lines[odd])
    entry[part] = (entry.get(part) or {}) | {"age": "ODD"}
    lines[odd] = json.dumps(entry).replace('"ODD"', value) + "\n"
    path.write_text("".join(lines))
    assert engine.merge(corpus) == (accepted - 1, rejected)
    assert value not in path.read_text()
