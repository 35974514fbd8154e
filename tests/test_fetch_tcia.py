"""Fetching a TCIA collection: MD5 of every file, retries, nothing outside the folder, licences said."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import standin_files

from harmonize.cli import main
from harmonize.errors import UserError
from harmonize.fetch import tcia

SERIES, IMAGE = "/getSeries", "/getImageWithMD5Hash"
ONE, TWO = "1.2.3.1", "1.2.3.2"
FILES = {ONE: {"1-1.dcm": b"first" * 1000, "1-2.dcm": b"second"}, TWO: {"1-1.dcm": b"other"}}


def row(uid: str, **changes: object) -> dict[str, object]:
    return {
        "SeriesInstanceUID": uid,
        "Collection": "HNSCC",
        "Modality": "CT",
        "ImageCount": len(FILES.get(uid, {})) or 1,
        "LicenseName": "CC BY 4.0",
        "LicenseURI": "https://creativecommons.org/licenses/by/4.0/",
    } | changes


def archive(files: dict[str, bytes], hashes: dict[str, str] | None = None) -> bytes:
    stream = io.BytesIO()
    known = hashes or {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    with zipfile.ZipFile(stream, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
        made.writestr("LICENSE", "the licence's text")
        made.writestr("md5hashes.csv", "Filename,MD5Hash\n" + "".join(f"{n},{h}\n" for n, h in known.items()))
    return stream.getvalue()


@pytest.fixture
def nbia(monkeypatch: pytest.MonkeyPatch) -> Iterator[standin_files.Files]:
    monkeypatch.setattr("harmonize.fetch.download.BACKOFF_S", 0.01)
    with standin_files.serving() as served:
        rows = [row(TWO), row(ONE)]
        served.routes[SERIES] = lambda query: (
            json.dumps(
                [one for one in rows if query["Collection"] == "HNSCC" and query.get("Modality", "CT") == "CT"] or None
            ).encode()
            if query["Collection"] == "HNSCC"
            else b""
        )
        served.routes[IMAGE] = lambda query: archive(FILES[query["SeriesInstanceUID"]])
        yield served


def fetched(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.suffix == ".dcm"
    }


EXPECTED = {f"HNSCC/{uid}/{name}": content for uid, files in FILES.items() for name, content in files.items()}


def test_the_command_brings_every_series_and_says_its_licence(
    nbia: standin_files.Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--collection", "HNSCC", "--modality", "CT", "--base-url", nbia.url]
    assert main(["fetch", "tcia", *words, "--out", str(tmp_path)]) == 0
    assert fetched(tmp_path) == EXPECTED
    assert {path.name for path in (tmp_path / "HNSCC").iterdir()} == {ONE, TWO}
    assert "licence of 2 series: CC BY 4.0 https://creativecommons.org" in capsys.readouterr().out


def test_a_second_run_asks_for_no_series_again(nbia: standin_files.Files, tmp_path: Path) -> None:
    tcia.fetch("HNSCC", tmp_path, base_url=nbia.url)
    nbia.asked.clear()
    assert tcia.fetch("HNSCC", tmp_path, base_url=nbia.url).there == 2
    assert nbia.asked == [SERIES]


def test_busy_servers_and_broken_downloads_are_tried_again_and_it_is_said(
    nbia: standin_files.Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nbia.faults = {SERIES: [503, 429], IMAGE: [500, "cut", 502]}
    assert tcia.fetch("HNSCC", tmp_path, base_url=nbia.url, workers=1).failed == []
    assert fetched(tmp_path) == EXPECTED
    said = capsys.readouterr().err
    assert f"{nbia.url}{SERIES}: the server answered 503; trying again in 0 s, 2 of 6" in said
    assert ONE not in said


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        (archive(FILES[ONE], {"1-1.dcm": "0" * 32, "1-2.dcm": "0" * 32}), "MD5"),
        (archive({"1-1.dcm": b"alone"}), "1 of 2 files"),
        (archive(FILES[ONE], {"1-1.dcm": hashlib.md5(FILES[ONE]["1-1.dcm"]).hexdigest()}), "same files"),
        (archive({"../../escaped.dcm": b"out"}), "leaves its folder"),
        (archive({"/tmp/escaped.dcm": b"out"}), "leaves its folder"),
        (archive({"..\\escaped.dcm": b"out"}), "leaves its folder"),
        (archive(FILES[ONE])[:-200], "zip"),
        (b"<html>maintenance</html>", "zip"),
    ],
    ids=("md5", "too few", "unlisted", "dots", "absolute", "backslash", "cut", "html"),
)
def test_a_damaged_archive_leaves_nothing_and_the_others_go_on(
    nbia: standin_files.Files, tmp_path: Path, damaged: bytes, said: str
) -> None:
    good: Callable[[dict[str, str]], bytes] = nbia.routes[IMAGE]  # type: ignore[assignment]
    nbia.routes[IMAGE] = lambda query: damaged if query["SeriesInstanceUID"] == ONE else good(query)
    outcome = tcia.fetch("HNSCC", tmp_path / "raw", base_url=nbia.url)
    assert (outcome.there, len(outcome.failed)) == (1, 1)
    assert said in outcome.failed[0]
    assert set(fetched(tmp_path)) == {f"raw/HNSCC/{TWO}/1-1.dcm"}
    assert not list(tmp_path.rglob("escaped*"))


def test_an_archive_that_was_damaged_once_is_fetched_again(nbia: standin_files.Files, tmp_path: Path) -> None:
    answers = [b"damaged", archive(FILES[ONE])]
    nbia.routes[IMAGE] = lambda query: answers.pop(0) if query["SeriesInstanceUID"] == ONE else archive(FILES[TWO])
    assert tcia.fetch("HNSCC", tmp_path, base_url=nbia.url).failed == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_controlled_collection_says_so_and_links_to_its_page(
    nbia: standin_files.Files, tmp_path: Path, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    nbia.routes[IMAGE] = lambda query: status
    assert main(["fetch", "tcia", "--collection", "HNSCC", "--base-url", nbia.url, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "licence must be asked for" in error
    assert "https://www.cancerimagingarchive.net/collection/hnscc/" in error


def test_an_unknown_collection_links_to_the_list(nbia: standin_files.Files, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no public series"):
        tcia.fetch("Nothing", tmp_path, base_url=nbia.url)


def test_series_whose_uid_is_no_uid_are_never_a_folder(nbia: standin_files.Files, tmp_path: Path) -> None:
    nbia.routes[SERIES] = json.dumps([row("../../escaped"), row(ONE)]).encode()
    tcia.fetch("HNSCC", tmp_path / "raw", base_url=nbia.url)
    assert {path.name for path in (tmp_path / "raw/HNSCC").iterdir()} == {ONE}


def test_a_service_that_is_away_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harmonize.fetch.download.BACKOFF_S", 0.0)
    with pytest.raises(UserError, match="give the command again later"):
        tcia.fetch("HNSCC", tmp_path, base_url="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"error": "no"}, "gave no list of series; is --base-url"),
        ("text", "gave no list of series"),
        (5, "gave no list of series"),
        (True, "gave no list of series"),
        ([None, "text", 5, [], {}, {"SeriesInstanceUID": None}], "gave a list without a SeriesInstanceUID"),
        ([{"SeriesInstanceUID": 12}], "gave a list without a SeriesInstanceUID"),
        ([], "no public series"),
        (None, "no public series"),
    ],
)
def test_a_list_of_another_shape_is_one_line(
    nbia: standin_files.Files, tmp_path: Path, answer: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    nbia.routes[SERIES] = json.dumps(answer).encode()
    assert main(["fetch", "tcia", "--collection", "HNSCC", "--base-url", nbia.url, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert nbia.asked == [SERIES]


def test_rows_that_name_no_series_are_counted_and_the_others_fetched(
    nbia: standin_files.Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nbia.routes[SERIES] = json.dumps([None, row("../../escaped"), {}, row(ONE)]).encode()
    assert main(["fetch", "tcia", "--collection", "HNSCC", "--base-url", nbia.url, "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "missing: HNSCC: 3 rows name no valid SeriesInstanceUID" in shown.out
    assert f"{tmp_path}: 1 series" in shown.out
    assert {path.name for path in (tmp_path / "HNSCC").iterdir()} == {ONE}


@pytest.mark.parametrize("value", [None, 5, [], {}, "", "x", "-1", "1e3", "9" * 5000, True, "\x1b[2J\nnew line"])
def test_fields_of_another_type_cost_no_series(nbia: standin_files.Files, tmp_path: Path, value: object) -> None:
    names = ("LicenseName", "LicenseURI", "Collection", "Modality")
    changes = dict.fromkeys(names, value) | ({} if value == 5 else {"ImageCount": value})
    nbia.routes[SERIES] = json.dumps([row(ONE, **changes)]).encode()
    outcome = tcia.fetch("HNSCC", tmp_path, base_url=nbia.url)
    assert (outcome.there, outcome.failed) == (1, [])
    assert all("\n" not in licence for licence in outcome.licences)


def test_a_service_without_the_list_is_not_taken_for_a_matter_of_licence(
    nbia: standin_files.Files, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"answered 404; is --base-url right"):
        tcia.fetch("HNSCC", tmp_path, base_url=f"{nbia.url}/elsewhere")


def test_an_archive_without_a_length_that_was_cut_is_fetched_again(nbia: standin_files.Files, tmp_path: Path) -> None:
    whole = archive(FILES[ONE])
    nbia.routes[SERIES] = json.dumps([row(ONE)]).encode()
    nbia.raw[IMAGE] = [b"HTTP/1.1 200 OK\r\n\r\n" + content for content in (whole[:-100], whole)]
    assert tcia.fetch("HNSCC", tmp_path, base_url=nbia.url).failed == []
    assert set(fetched(tmp_path)) == {f"HNSCC/{ONE}/1-1.dcm", f"HNSCC/{ONE}/1-2.dcm"}


def test_a_table_of_hashes_that_is_no_table_makes_a_damaged_archive(nbia: standin_files.Files, tmp_path: Path) -> None:
    nbia.routes[SERIES] = json.dumps([row(ONE)]).encode()
    nbia.routes[IMAGE] = archive(FILES[ONE], {"1-1.dcm": "x" * 200_000})
    assert "is no table" in tcia.fetch("HNSCC", tmp_path, base_url=nbia.url).failed[0]


def test_what_a_killed_fetch_left_is_removed_and_nothing_else(nbia: standin_files.Files, tmp_path: Path) -> None:
    work = tmp_path / "HNSCC/.fetching"
    (work / ONE).mkdir(parents=True)
    ours = (f"{TWO}.zip", f".part-{ONE}.zip", f".part-{ONE}.zip.json", f".tmp-47-.part-{ONE}.zip.json", f"{ONE}/1.dcm")
    for name in (*ours, "notes.json", ".part-notes.zip"):
        (work / name).touch()
    tcia.fetch("HNSCC", tmp_path, base_url=nbia.url)
    assert {path.name for path in work.iterdir()} == {"notes.json", ".part-notes.zip"}
