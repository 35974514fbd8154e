"""Fetching DeepLesion: NIH's own list of archives, resumed downloads, slices where the source expects them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import standin_files

from harmonize.cli import main
from harmonize.errors import UserError
from harmonize.fetch.deeplesion import addresses, fetch

SLICES = {
    "/a1.zip": {"Images_png/000001_01_01/103.png": b"p" * 5000, "Images_png/000001_01_01/104.png": b"q"},
    "/b2.zip": {"deep/Images_png/000002_01_01/007.png": b"r", "readme.txt": b"text"},
}


def archive(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return stream.getvalue()


def damaged() -> bytes:
    """An archive whose first file cannot be inflated: a fault of zlib, not of the zip."""
    content = bytearray(archive(SLICES["/a1.zip"], zipfile.ZIP_DEFLATED))
    content[30 + len(next(iter(SLICES["/a1.zip"])))] = 0xFF
    return bytes(content)


@pytest.fixture
def nih(monkeypatch: pytest.MonkeyPatch) -> Iterator[standin_files.Files]:
    monkeypatch.setattr("harmonize.fetch.download.BACKOFF_S", 0.01)
    with standin_files.serving() as served:
        served.routes |= {path: archive(files) for path, files in SLICES.items()}
        yield served


@pytest.fixture
def listed(nih: standin_files.Files, tmp_path: Path) -> Path:
    """As NIH's script writes them."""
    path = tmp_path / "batch_download_zips.py"
    path.write_text(f"import urllib\nlinks = [\n\t'{nih.url}/a1.zip',\n\t'{nih.url}/b2.zip'\n]\n")
    return path


def pictures(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*.png")}


ALL = {f"Images_png/{name}" for name in ("000001_01_01/103.png", "000001_01_01/104.png", "000002_01_01/007.png")}


def test_the_command_unpacks_what_the_list_names(listed: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "raw"
    out.mkdir()
    (out / "DL_info.csv").write_text("File_name\n")
    assert main(["fetch", "deeplesion", "--list", str(listed), "--out", str(out)]) == 0
    assert pictures(out) == ALL
    assert not list((out / ".fetched/archives").iterdir())
    assert "2 archives" in capsys.readouterr().out


def test_a_missing_table_is_said_with_where_it_is(listed: Path, tmp_path: Path, capsys) -> None:
    assert main(["fetch", "deeplesion", "--list", str(listed), "--limit", "1", "--out", str(tmp_path / "raw")]) == 1
    assert "DL_info.csv: missing; download it from https://nihcc.box.com/v/DeepLesion" in capsys.readouterr().out
    assert pictures(tmp_path / "raw") == {name for name in ALL if "000001" in name}


def test_an_archive_that_is_unpacked_is_not_asked_for_again(
    nih: standin_files.Files, listed: Path, tmp_path: Path
) -> None:
    fetch(addresses(listed, None), tmp_path / "raw")
    nih.asked.clear()
    fetch(addresses(listed, None), tmp_path / "raw")
    assert nih.asked == []


def test_a_broken_download_goes_on_where_it_was(nih: standin_files.Files, listed: Path, tmp_path: Path) -> None:
    nih.faults["/a1.zip"] = ["cut"]
    fetch(addresses(listed, None)[:1], tmp_path / "raw")
    assert nih.asked[0] == "/a1.zip"
    assert nih.asked[1].startswith("/a1.zip bytes=")
    assert len(pictures(tmp_path / "raw")) == 2


def test_a_download_left_by_a_killed_run_is_continued(nih: standin_files.Files, listed: Path, tmp_path: Path) -> None:
    part = tmp_path / "raw/.fetched/archives/.part-a1.zip"
    part.parent.mkdir(parents=True)
    part.write_bytes(archive(SLICES["/a1.zip"])[:100])
    fetch(addresses(listed, None)[:1], tmp_path / "raw")
    assert nih.asked == ["/a1.zip bytes=100-"]
    assert len(pictures(tmp_path / "raw")) == 2


def test_a_partial_file_longer_than_what_is_offered_is_thrown_away(
    nih: standin_files.Files, listed: Path, tmp_path: Path
) -> None:
    part = tmp_path / "raw/.fetched/archives/.part-a1.zip"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 100_000)
    fetch(addresses(listed, None)[:1], tmp_path / "raw")
    assert len(pictures(tmp_path / "raw")) == 2


def test_a_mirror_gives_the_archives_by_their_names_and_the_table(
    nih: standin_files.Files, tmp_path: Path, capsys
) -> None:
    nih.routes |= {"/m/Images_png_01.zip": archive(SLICES["/a1.zip"]), "/m/DL_info.csv": b"File_name\n"}
    words = ["--base-url", f"{nih.url}/m", "--limit", "1", "--out", str(tmp_path)]
    assert main(["fetch", "deeplesion", *words]) == 0
    assert (tmp_path / "DL_info.csv").read_bytes() == b"File_name\n"


def test_archives_that_are_gone_damaged_or_of_something_else_are_listed(
    nih: standin_files.Files, tmp_path: Path
) -> None:
    nih.routes |= {"/bad.zip": b"not a zip", "/cats.zip": archive({"cat.png": b"c"})}
    nih.routes["/evil.zip"] = archive({"../000009_01_01/001.png": b"e"})
    faults = fetch([f"{nih.url}/{name}.zip" for name in ("gone", "bad", "cats", "evil")], tmp_path / "raw")
    assert [any(word in fault for fault in faults) for word in ("404", "not a zip", "no slices", "leaves")] == [
        True
    ] * 4
    assert pictures(tmp_path) == set()


def test_an_archive_whose_data_is_damaged_is_removed_and_fetched_again(
    nih: standin_files.Files, listed: Path, tmp_path: Path
) -> None:
    answers = [damaged(), archive(SLICES["/a1.zip"])]
    nih.routes["/a1.zip"] = lambda query: answers.pop(0)
    assert not any("zip" in line for line in fetch(addresses(listed, None), tmp_path / "raw"))
    assert pictures(tmp_path / "raw") == ALL


def test_an_archive_that_stays_damaged_is_not_kept(nih: standin_files.Files, listed: Path, tmp_path: Path) -> None:
    nih.routes["/a1.zip"] = damaged()
    missing = fetch(addresses(listed, None), tmp_path / "raw")
    assert [f"{nih.url}/a1.zip" in line for line in missing if "zip" in line] == [True]
    assert nih.asked.count("/a1.zip") == 2
    assert not list((tmp_path / "raw/.fetched/archives").iterdir())
    assert pictures(tmp_path / "raw") == {name for name in ALL if "000002" in name}


def test_without_a_list_the_command_says_where_it_is(capsys, tmp_path: Path) -> None:
    assert main(["fetch", "deeplesion", "--out", str(tmp_path)]) == 2
    assert "batch_download_zips.py" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds no address"):
        (tmp_path / "list").write_text("ftp://x/y.zip")
        addresses(tmp_path / "list", None)


@pytest.mark.parametrize("name", ["nowhere.py", "."])
def test_a_list_that_is_not_there_is_wrong_use(tmp_path: Path, name: str, capsys) -> None:
    given = ("fetch", "deeplesion", "--out", str(tmp_path / "raw"), "--list", str(tmp_path / name))
    assert main(given) == 2
    assert f"--list {tmp_path / name}: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [("http://[bad/a.zip", "not an address"), ("http://a.org:port/a.zip", "port"), ("http://a.org/?a=.zip", "no .zip")],
)
def test_a_list_with_what_is_no_address_is_refused_before_the_first_download(
    nih: standin_files.Files, tmp_path: Path, line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list").write_text(f"{nih.url}/a1.zip\n{line}\n")
    assert main(["fetch", "deeplesion", "--list", str(tmp_path / "list"), "--out", str(tmp_path / "raw")]) == 2
    assert said in capsys.readouterr().err
    assert nih.asked == []


@pytest.mark.parametrize("base", ["http://[bad", "ftp://a.org", "http://a.org:x", "a.org"])
def test_a_mirror_that_is_no_address_is_wrong_use(
    tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "deeplesion", "--base-url", base, "--out", str(tmp_path)]) == 2
    assert base in capsys.readouterr().err


def test_an_archive_that_changed_between_two_runs_is_no_mixture(
    nih: standin_files.Files, listed: Path, tmp_path: Path
) -> None:
    """Neither where the server names the state of its files, nor where only their checksums tell."""
    changed = {name: content.upper() for name, content in SLICES["/a1.zip"].items()}
    for number, tags in enumerate(({"ETag": '"1"'}, {})):
        out = tmp_path / f"raw{number}"
        part = out / ".fetched/archives/.part-a1.zip"
        part.parent.mkdir(parents=True)
        part.write_bytes(archive(SLICES["/a1.zip"])[:2500])
        part.with_name(f"{part.name}.json").write_text('{"etag": "\\"0\\""}' if tags else "{}")
        nih.routes["/a1.zip"], nih.headers["/a1.zip"] = archive(changed), tags
        assert not any("a1.zip" in line for line in fetch(addresses(listed, None)[:1], out))
        assert {(out / name).read_bytes() for name in ALL if "000001" in name} == {b"P" * 5000, b"Q"}


@pytest.mark.parametrize("answer", [b"<html>maintenance</html>", b"", b"\x00\xff"])
def test_a_page_in_the_tables_place_is_not_kept(nih: standin_files.Files, tmp_path: Path, answer: bytes) -> None:
    nih.routes["/DL_info.csv"] = answer
    missing = fetch([], tmp_path, table_url=f"{nih.url}/DL_info.csv")
    assert missing[0] == f"{nih.url}/DL_info.csv: gave no table of DeepLesion"
    assert not (tmp_path / "DL_info.csv").exists()
    nih.routes["/DL_info.csv"] = b"File_name\n"
    assert fetch([], tmp_path, table_url=f"{nih.url}/DL_info.csv") == []
    assert {path.name for path in tmp_path.iterdir()} == {"DL_info.csv", ".fetched"}
