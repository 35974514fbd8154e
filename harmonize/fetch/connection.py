"""One question to an http server: redirects that are safe to follow, and which faults trying again will not fix."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from email.message import Message

from harmonize import __version__
from harmonize.fetch.address import Address, redirected

TIMEOUT_S = 120.0
CHUNK_BYTES = 1 << 20
REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 10

_NO_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
_NO_TLS = {
    "WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE", "UNKNOWN_PROTOCOL",
    "TLSV1_ALERT_PROTOCOL_VERSION", "SSLV3_ALERT_HANDSHAKE_FAILURE", "UNSAFE_LEGACY_RENEGOTIATION_DISABLED",
    "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG",
}  # fmt: skip
_PROXY = "the proxy that the environment names (http_proxy, https_proxy) is not an http address; correct or unset it"
_LENGTH = re.compile(r"[0-9]{1,18}")

_answered: set[str] = set()
"""Hosts that answered in this process."""


class Unfit(Exception):
    """The server answered, and what it says cannot be used.

    Attributes:
        status: HTTP status.
        why: Goes on from "the server answered 200".
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(f"{status}, {why}")
        self.status = status
        self.why = why


class Unreachable(Exception):
    """The server cannot be asked, and will not be better the next time; the message says what to do."""


def ask(address: Address, headers: Mapping[str, str]) -> http.client.HTTPResponse:
    """Send a GET; follow redirects from http and https to either, but never from https to http.

    Raises:
        urllib.error.URLError: No answer, or one of 400 and more (HTTPError); it may pass.
        Unfit: A redirect that is not followed.
        Unreachable: See there.
    """
    for _ in range(MAX_REDIRECTS + 1):
        request = urllib.request.Request(
            address.url, headers={"User-Agent": f"headspark/{__version__}", **dict(headers)}
        )
        if address.credentials is not None:
            request.add_header("Authorization", address.credentials)
        try:
            answer = _opener().open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            answered(address)
            if error.code not in REDIRECTS:
                raise
            with error:
                address = _follow(address, error)
        except urllib.error.URLError as error:
            fault = lasting(error.reason, address)
            if fault is not None:
                raise Unreachable(fault) from error
            raise
        except (ValueError, http.client.InvalidURL) as error:
            # The address itself was looked at before.
            raise Unreachable(_PROXY) from error
        else:
            answered(address)
            assert isinstance(answer, http.client.HTTPResponse)
            return answer
    raise Unfit(302, f"and leads on after {MAX_REDIRECTS} redirects; is the address right?")


def answered(address: Address) -> None:
    """Remember that its server was there: if its name is not found later, it is the network that is away."""
    _answered.add(address.host)


def lasting(reason: object, address: Address) -> str | None:
    """What to do about a fault that trying again does not fix; None for one that may pass."""
    if isinstance(reason, str):
        # A text is what urllib itself has to say, of an unknown scheme or no host; the address has both.
        return _PROXY
    if isinstance(reason, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {address.host} is not accepted ({reason.verify_message.rstrip('.')}); check the "
            "address and the clock, and where a proxy opens TLS, name its certificate in SSL_CERT_FILE"
        )
    if isinstance(reason, ssl.SSLError) and reason.reason in _NO_TLS:
        return f"{address.host} does not speak the TLS of this machine there; check the address, and its port"
    if isinstance(reason, socket.gaierror) and reason.errno in _NO_NAME and address.host not in _answered:
        # A resolver that is away for a moment says EAI_AGAIN, and that is tried again.
        return f"there is no server {address.host}; check how the address is spelt, and the network of this machine"
    return None


def chunks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body, piece by piece.

    Raises:
        ConnectionError: It broke off, whatever `http.client`, `ssl` and the system call that.
    """
    while True:
        try:
            chunk = answer.read(CHUNK_BYTES)
        except (OSError, ValueError, http.client.HTTPException) as error:
            # A ValueError is a chunk of less than no bytes. Not the text: it may quote what the server sent.
            raise ConnectionError(f"broke off ({type(error).__name__})") from error
        if not chunk:
            return
        yield chunk


def body_length(answer: http.client.HTTPResponse) -> int | None:
    """Bytes of the body; None if the server does not say so beforehand.

    Raises:
        Unfit: It says something that is no length, or two of them.
    """
    if is_chunked(answer):
        return None
    said = {part.strip() for value in answer.headers.get_all("Content-Length", []) for part in value.split(",")}
    if not said:
        return None
    if len(said) > 1:
        raise Unfit(answer.status, "with two different lengths (Content-Length)")
    value = said.pop()
    if not _LENGTH.fullmatch(value):
        raise Unfit(answer.status, "with a length that is no number (Content-Length)")
    return int(value)


def is_chunked(answer: http.client.HTTPResponse) -> bool:
    """Whether the body says itself where it ends; `http.client` raises if such a body is cut."""
    return bool(answer.chunked)


def _opener() -> urllib.request.OpenerDirector:
    # Those of urllib without files, ftp, data and its redirects. Made again: proxies and certificates of the
    # environment count as they are now.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _follow(address: Address, answer: urllib.error.HTTPError) -> Address:
    headers: Message = answer.headers
    location = headers.get("Location")
    if not location:
        raise Unfit(answer.code, "and does not say where it leads")
    try:
        return redirected(address, location)
    except ValueError as error:
        raise Unfit(answer.code, f"and {error}; it is not followed") from error
