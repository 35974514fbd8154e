"""Downloads: never a mixture, never half a file, no address that nobody meant, and a line instead of a traceback."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import standin_disk
import standin_files
import standin_tls
from hypothesis import given, settings
from hypothesis import strategies as st

from harmonize.errors import UserError
from harmonize.fetch import connection
from harmonize.fetch import download as download_module
from harmonize.fetch.address import parse, place
from harmonize.fetch.download import HttpError, download, get_json
from harmonize.files import room_in

OLD, NEW = b"old" * 1000, b"new" * 1000
EARLIER, LATER = "Wed, 21 Oct 2015 07:28:00 GMT", "Thu, 22 Oct 2015 07:28:00 GMT"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "BACKOFF_S", 0.001)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[standin_files.Files]:
    with standin_files.serving() as served:
        yield served


def raw(*headers: str, body: bytes = b"", status: str = "200 OK") -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status}", *headers, "", "")).encode("latin-1") + body


def cut(server: standin_files.Files, target: Path, headers: dict[str, str]) -> None:
    """Leave a part of `OLD`, as a process that was killed does."""
    server.routes["/f"], server.headers["/f"] = OLD, headers
    server.faults["/f"] = ["cut"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download_module, "ATTEMPTS", 1)
        with pytest.raises(UserError, match="broke off"):
            download(f"{server.url}/f", target, checked=True)
    server.asked.clear()
    server.received.clear()


@pytest.mark.parametrize(
    "headers", [{"ETag": '"1"'}, {"Last-Modified": EARLIER}, {"ETag": 'W/"1"', "Last-Modified": EARLIER}]
)
def test_a_part_is_continued_with_what_names_its_state(
    server: standin_files.Files, tmp_path: Path, headers: dict[str, str]
) -> None:
    cut(server, tmp_path / "f", headers)
    download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == OLD
    assert server.asked == ["/f bytes=1500-"]
    strong = [value for value in headers.values() if not value.startswith("W/")]
    assert server.received[0]["if-range"] == strong[0]
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"ETag": '"1"'}, {"ETag": '"2"'}),
        ({"Last-Modified": EARLIER}, {"Last-Modified": LATER}),
        ({"ETag": 'W/"1"'}, {"ETag": 'W/"2"'}),
        ({"ETag": 'W/"1"'}, {"ETag": 'W/"1"'}),
        ({}, {}),
    ],
)
def test_a_file_that_changed_meanwhile_is_fetched_whole(
    server: standin_files.Files, tmp_path: Path, before: dict[str, str], after: dict[str, str]
) -> None:
    cut(server, tmp_path / "f", before)
    server.routes["/f"], server.headers["/f"] = NEW, after
    download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == NEW


@pytest.mark.parametrize(
    "headers",
    [
        ["ETag: \"1\"", "Content-Range: bytes 1499-2999/3000"],
        ["ETag: \"1\"", "Content-Range: bytes 1500-2999/2999"],
        ["ETag: \"1\"", "Content-Range: bytes 1500-2999/4000"],
        ["ETag: \"1\"", "Content-Range: bytes 1500-1400/3000"],
        ["ETag: \"1\"", "Content-Range: bytes */3000"],
        ["ETag: \"1\"", "Content-Range: bytes 1500-2999/3000", "Content-Range: bytes 0-1499/3000"],
        ["ETag: \"1\""],
        ["ETag: \"2\"", "Content-Range: bytes 1500-2999/3000"],
        ["Content-Range: bytes 1500-2999/3000"],
        ["ETag: \"1\"", "Content-Range: bytes 1500-2999/3000", "Content-Length: 1400"],
    ],
)  # fmt: skip
def test_a_rest_that_does_not_fit_its_beginning_is_not_appended(
    server: standin_files.Files, tmp_path: Path, headers: list[str]
) -> None:
    """Also where the server does not know If-Range."""
    cut(server, tmp_path / "f", {"ETag": '"1"'})
    whole = raw(f"Content-Length: {len(NEW)}", body=NEW)
    server.raw["/f"] = [raw(*headers, body=NEW[1500:], status="206 Partial Content"), whole]
    download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == NEW
    assert server.asked == ["/f bytes=1500-", "/f"]


def test_a_part_without_a_state_is_continued_only_where_the_file_is_checked(
    server: standin_files.Files, tmp_path: Path
) -> None:
    for checked, asked in ((True, "/f bytes=1500-"), (False, "/f")):
        cut(server, tmp_path / "f", {})
        download(f"{server.url}/f", tmp_path / "f", checked=checked)
        assert server.asked == [asked]
        assert (tmp_path / "f").read_bytes() == OLD


@pytest.mark.parametrize(
    "note", [b"", b"[1]", b'{"etag": 5, "total": "x"}', b'{"etag": "a\\r\\nX: y"}', b"\xff", b"[" * 9999]
)
def test_a_damaged_note_beside_a_part_counts_as_none(server: standin_files.Files, tmp_path: Path, note: bytes) -> None:
    cut(server, tmp_path / "f", {"ETag": '"1"'})
    (tmp_path / ".part-f.json").write_bytes(note)
    download(f"{server.url}/f", tmp_path / "f")
    assert server.asked == ["/f"]
    assert (tmp_path / "f").read_bytes() == OLD


def test_a_finished_part_only_needs_its_name(server: standin_files.Files, tmp_path: Path) -> None:
    cut(server, tmp_path / "f", {"ETag": '"1"'})
    (tmp_path / ".part-f").write_bytes(OLD)
    (tmp_path / ".tmp-4711-.part-f.json").touch()
    download(f"{server.url}/f", tmp_path / "f")
    assert server.asked == []
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".tmp")] == ["f"]


def test_a_date_that_is_younger_than_a_second_names_no_state(server: standin_files.Files, tmp_path: Path) -> None:
    now = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    cut(server, tmp_path / "f", {"Last-Modified": now})
    download(f"{server.url}/f", tmp_path / "f")
    assert server.asked == ["/f"]


@pytest.mark.parametrize("body", [OLD, OLD[:1000], b""])
def test_a_body_without_an_end_is_taken_only_where_the_file_is_checked(
    server: standin_files.Files, tmp_path: Path, body: bytes
) -> None:
    server.raw["/f"] = [raw(body=body)]
    with pytest.raises(HttpError, match="without a length"):
        download(f"{server.url}/f", tmp_path / "f")
    assert not (tmp_path / "f").exists()
    download(f"{server.url}/f", tmp_path / "f", checked=True)
    assert (tmp_path / "f").read_bytes() == body


def test_chunks_that_end_too_early_are_asked_for_again(server: standin_files.Files, tmp_path: Path) -> None:
    chunked = "Transfer-Encoding: chunked"
    server.raw["/f"] = [raw(chunked, body=b"3\r\nabc\r\n"), raw(chunked, body=b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")]
    download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"abcdef"


@pytest.mark.parametrize(
    "headers",
    [["Content-Length: abc"], ["Content-Length: -5"], ["Content-Length: +5"],
     ["Content-Length: 5", "Content-Length: 7"], ["Content-Length: 5, 7"],
     [f"Content-Length: {'9' * 5000}"], ["Content-Length:"]],
)  # fmt: skip
def test_a_length_that_is_none_is_one_refusal(server: standin_files.Files, tmp_path: Path, headers: list[str]) -> None:
    server.raw["/f"] = [raw(*headers, body=b"12345")]
    with pytest.raises(HttpError, match=r"/f: the server answered 200 with .* \(Content-Length\)"):
        download(f"{server.url}/f", tmp_path / "f")
    with pytest.raises(HttpError):
        get_json(f"{server.url}/f", {})
    assert server.asked == ["/f", "/f"]


def test_the_same_length_twice_is_one(server: standin_files.Files, tmp_path: Path) -> None:
    server.raw["/f"] = [raw("Content-Length: 3", "Content-Length: 3", body=b"abc")]
    download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"abc"


@pytest.mark.parametrize(
    "status", ["202 Accepted", "204 No Content", "206 Partial Content", "304 Not Modified", "300 X"]
)
def test_an_answer_that_is_no_file_is_refused(server: standin_files.Files, tmp_path: Path, status: str) -> None:
    server.raw["/f"] = [raw("Content-Length: 0", status=status)]
    with pytest.raises(HttpError, match=f"answered {status[:3]}"):
        download(f"{server.url}/f", tmp_path / "f")
    assert server.asked == ["/f"]


@pytest.mark.parametrize(
    "answer",
    [b"", b"\x00\x01\x02", b"HTTP/1.1 abc\r\n\r\n", b"FTP ready\r\n",
     b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
     raw("Transfer-Encoding: chunked", body=b"-5\r\nabc"), raw("Transfer-Encoding: chunked", body=b"zz\r\n\r\n"),
     raw("Content-Length: 10", body=b"\x1b[2J")],
)  # fmt: skip
def test_what_is_no_http_is_tried_again_and_then_one_line(
    server: standin_files.Files, tmp_path: Path, answer: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    server.raw["/f"] = [answer]
    for call in (lambda: download(f"{server.url}/f", tmp_path / "f"), lambda: get_json(f"{server.url}/f", {})):
        with pytest.raises(UserError, match="6 times; give the command again later") as caught:
            call()
        assert str(caught.value).isprintable()
    assert len(server.asked) == 12
    assert "\x1b" not in capsys.readouterr().err
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://a.org/f", "not an http address"),
        ("file:///etc/passwd", "not an http address"),
        ("a.org/f", "not an http address"),
        ("", "not an http address"),
        ("http://", "no name"),
        ("http:///f", "no name"),
        ("http://[::1/f", "no name"),
        ("http://[zz]/f", "no name"),
        ("http://a b.org/f", "no name"),
        ("http://a..org/f", "no name"),
        (f"http://{'a' * 70}.org/f", "no name"),
        ("http://a.org:abc/f", "port"),
        ("http://a.org:99999/f", "port"),
        ("http://a.org:0/f", "port"),
        ("http://me:secret@a.org:abc/f?key=secret", "port"),
    ],
)
def test_what_is_no_address_is_wrong_use_and_never_asked(url: str, said: str, tmp_path: Path) -> None:
    for call in (lambda: download(url, tmp_path / "f"), lambda: get_json(url, {})):
        with pytest.raises(UserError, match=said) as caught:
            call()
        assert caught.value.exit_code == 2
        assert "secret" not in str(caught.value)


@settings(deadline=None)
@given(
    st.text('aB0ßü\u2028\udce9%/:@[].?#&= \t\r\n\0\\"<>-_~', max_size=20),
    st.sampled_from(["", "http://", "https://", "http://a.org/", "http://[", "http://a:1@b:"]),
)
def test_any_text_is_an_address_or_one_line(text: str, before: str) -> None:
    try:
        address = parse(before + text)
    except UserError:
        return
    assert address.url.isascii()
    assert not set(address.url) & set(' "<>\t\r\n\0')
    assert "@" not in address.url.split("/")[2]
    assert parse(address.url).url == address.url


def test_addresses_in_any_language_are_asked_in_ascii(server: standin_files.Files, tmp_path: Path) -> None:
    server.routes["/gro%C3%9Fe%20daten/%5Ba%5D.zip"] = server.routes["/gro%C3%9Fe%20daten/a.zip"] = OLD
    download(f"{server.url}/große daten/a.zip", tmp_path / "f")
    download(f"{server.url}/gro%C3%9Fe daten/%5Ba%5D.zip", tmp_path / "g")
    assert (tmp_path / "f").read_bytes() == (tmp_path / "g").read_bytes() == OLD
    assert parse("HTTP://BÜCHER.example:8080?q=ü").url == "http://xn--bcher-kva.example:8080/?q=%C3%BC"
    assert parse("http://[::1]:80/").url == "http://[::1]:80/"


def test_what_may_be_secret_in_an_address_is_not_shown() -> None:
    assert place("https://me:p@ss@a.org:1/b.zip?signature=1#c") == "https://a.org:1/b.zip"


def test_redirects_lead_on_with_the_range(server: standin_files.Files, tmp_path: Path) -> None:
    server.routes["/f"] = OLD
    server.raw["/r"] = [raw("Location: /ä f".encode().decode("latin-1"), "Content-Length: 0", status="302 Found")]
    server.raw["/%C3%A4%20f"] = [raw("Location: f", "Content-Length: 0", status="307 Temporary Redirect")]
    download(f"{server.url}/r", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == OLD
    assert server.asked == ["/r", "/%C3%A4%20f", "/f"]


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("ftp://127.0.0.1/f", "leads to an address of ftp:"),
        ("file:///etc/passwd", "leads to an address of file:"),
        ("data:text/plain,payload", "leads to an address of data:"),
        ("javascript:1", "leads to an address of javascript:"),
        ("http://[bad/f", "no valid address"),
        ("http://a.org:abc/f", "no valid address"),
        ("", "does not say where"),
        ("/r", "after 10 redirects"),
    ],
)
def test_a_redirect_to_anything_but_http_is_not_followed(
    server: standin_files.Files, tmp_path: Path, location: str, said: str
) -> None:
    server.raw["/r"] = [raw(f"Location: {location}", "Content-Length: 0", status="302 Found")]
    with pytest.raises(HttpError, match=f"/r: the server answered 302 and .*{said}"):
        download(f"{server.url}/r", tmp_path / "f")
    assert not list(tmp_path.iterdir())
    assert len(server.asked) == (11 if location == "/r" else 1)


def test_a_redirect_without_a_location_is_refused(server: standin_files.Files, tmp_path: Path) -> None:
    server.raw["/r"] = [raw("Content-Length: 0", status="301 Moved")]
    with pytest.raises(HttpError, match="does not say where"):
        download(f"{server.url}/r", tmp_path / "f")


def test_credentials_are_told_to_their_own_server_alone(server: standin_files.Files, tmp_path: Path) -> None:
    with standin_files.serving() as other:
        own = server.url.replace("//", "//me:p%40ss@")
        server.raw["/own"] = [raw("Location: /away", "Content-Length: 0", status="302 Found")]
        server.raw["/away"] = [
            raw(f"Location: {other.url.replace('//', '//x:y@')}/f", "Content-Length: 0", status="302 Found")
        ]
        other.routes["/f"] = OLD
        download(f"{own}/own", tmp_path / "f")
    assert [one.get("authorization") for one in server.received] == ["Basic bWU6cEBzcw=="] * 2
    assert [one.get("authorization") for one in other.received] == [None]


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(
    server: standin_files.Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with standin_files.serving(standin_tls.server_side(tmp_path)) as secure:
        with pytest.raises(UserError, match=r"/f: the certificate of 127.0.0.1 is not accepted \(.*SSL_CERT_FILE"):
            download(f"{secure.url}/f", tmp_path / "f")
        assert (secure.asked, capsys.readouterr().err) == ([], "")
        monkeypatch.setenv("SSL_CERT_FILE", str(standin_tls.certificate(tmp_path)))
        secure.routes["/f"] = OLD
        server.raw["/up"] = [raw(f"Location: {secure.url}/f", "Content-Length: 0", status="302 Found")]
        download(f"{server.url}/up", tmp_path / "f")
        assert (tmp_path / "f").read_bytes() == OLD
        secure.raw["/down"] = [raw(f"Location: {server.url}/f", "Content-Length: 0", status="302 Found")]
        with pytest.raises(HttpError, match="leads from https to http"):
            download(f"{secure.url}/down", tmp_path / "g")
        assert server.asked == ["/up"]


def test_https_asked_of_a_server_without_it_is_refused_at_once(
    server: standin_files.Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="does not speak the TLS"):
        download(f"{server.url.replace('http', 'https')}/f", tmp_path / "f")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("code", "answered", "tries"),
    [(socket.EAI_NONAME, False, 1), (socket.EAI_NONAME, True, 6), (socket.EAI_AGAIN, False, 6)],
    ids=("no such name", "a name that was found before", "no resolver"),
)
def test_a_name_that_nobody_knows_is_told_from_a_network_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, answered: bool, tries: int
) -> None:
    asked = []

    def resolve(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise socket.gaierror(code, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(connection, "_answered", {"a.example"} if answered else set())
    with pytest.raises(UserError, match="there is no server a.example" if tries == 1 else "again later"):
        download("http://a.example/f", tmp_path / "f")
    assert asked == ["a.example"] * tries


def test_a_proxy_that_is_no_address_is_named(
    server: standin_files.Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for proxy in ("socks5://127.0.0.1:1", "http://", "http://a b:c"):
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(UserError, match="http_proxy"):
            download(f"{server.url}/f", tmp_path / "f")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30", 30.0),
        ("9" * 5000, 60.0),
        (lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True), 40.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 60.0),
        (EARLIER, 0.001),
        ("-5", 0.001),
        ("soon", 0.001),
        ("Fri, 99 Foo 99999 99:99:99 GMT", 0.001),
        ("inf", 0.001),
    ],
)  # fmt: skip
def test_a_pause_that_the_server_asks_for_is_kept_within_a_minute(
    server: standin_files.Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object, seconds: float
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    asked = value() if callable(value) else value
    server.raw["/f"] = [
        raw(f"Retry-After: {asked}", "Content-Length: 0", status="503 Busy"),
        raw("Content-Length: 1", body=b"x"),
    ]
    download(f"{server.url}/f", tmp_path / "f")
    assert slept == [pytest.approx(seconds, abs=2.0 if seconds == 40 else 1e-6)]


def test_a_full_disk_is_one_line_and_what_is_there_is_continued(
    server: standin_files.Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * (3 << 12)
    server.routes["/f"], server.headers["/f"] = content, {"ETag": '"1"'}
    limit = 1 << 21
    # The limit has an error of its own.
    monkeypatch.setattr("harmonize.files.NO_ROOM", {errno.EFBIG})
    with pytest.raises(UserError, match="make room"), room_in(tmp_path), standin_disk.file_size_limit(limit):
        download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / ".part-f").stat().st_size == limit
    assert server.asked == ["/f"]
    download(f"{server.url}/f", tmp_path / "f")
    assert server.asked == ["/f", f"/f bytes={limit}-"]
    assert (tmp_path / "f").read_bytes() == content


@pytest.mark.parametrize("body", [b"<html>maintenance</html>", b"[1, 2", b"\xff\xfe", b"[" * 100_000, b"1" * 5000])
def test_an_answer_that_is_no_json_is_one_line(server: standin_files.Files, body: bytes) -> None:
    server.routes["/s"] = body
    with pytest.raises(UserError, match="/s: gave no JSON"):
        get_json(f"{server.url}/s", {"key": "value"})
    assert server.asked == ["/s"]


@pytest.mark.parametrize("body", [b"", b"[1, 2"])
def test_json_without_an_end_is_asked_for_again(server: standin_files.Files, body: bytes) -> None:
    server.raw["/s"] = [raw(body=body), raw(body=b"[1, 2]")]
    assert get_json(f"{server.url}/s", {}) == [1, 2]


def test_a_list_without_end_is_not_read_to_it(server: standin_files.Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "MAX_JSON_BYTES", 1000)
    server.routes["/s"] = b"[" + b"1," * 5000 + b"1]"
    with pytest.raises(HttpError, match="no list of series"):
        get_json(f"{server.url}/s", {})
