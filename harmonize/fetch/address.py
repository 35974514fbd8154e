"""Addresses: what is one, how it goes over the wire, where a redirect may lead, and what of it may be shown."""

from __future__ import annotations

import base64
import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote_to_bytes, urljoin, urlsplit, urlunsplit

from harmonize.errors import UserError, WrongUse

PORTS = {"http": 80, "https": 443}
_KEPT = "%/:=&?~+!$,;'@()*[]"
"""Stays as it is in a path or a query: it has a meaning there, or is escaped already."""

_NAME = re.compile(r"[a-z0-9._~-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An http address that can be asked.

    Attributes:
        url: In ASCII, without credentials and fragment.
        scheme: ``http`` or ``https``.
        host: In ASCII.
        port: Its own, or the scheme's.
        credentials: Value of the Authorization header that ``user:password@`` stands for; None without.
    """

    url: str
    scheme: str
    host: str
    port: int
    credentials: str | None = None


def parse(url: str) -> Address:
    """Take an address as people write it: with letters of any language, spaces, ``user:password@``.

    Raises:
        UserError: It is none, or none of http.

    Example:
        >>> parse("https://bücher.example/a b.zip").url
        'https://xn--bcher-kva.example/a%20b.zip'
    """
    url = url.strip()
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise _wrong(url, "its server is no name and no number") from error
    if parts.scheme not in PORTS:
        raise WrongUse(f"{place(url)}: not an http address")
    host, port = _host(url, parts), _port(url, parts)
    netloc = f"[{host}]" if ":" in host else host
    if parts.port is not None:
        netloc += f":{port}"
    path, query = (quote(text, safe=_KEPT, errors="surrogateescape") for text in (parts.path or "/", parts.query))
    return Address(
        url=urlunsplit((parts.scheme, netloc, path, query, "")),
        scheme=parts.scheme,
        host=host,
        port=port,
        credentials=_credentials(parts),
    )


def redirected(address: Address, location: str) -> Address:
    """Where a redirect leads, with the credentials only if it stays on the same server.

    Args:
        address: What was asked.
        location: The answer's header, as `http.client` decodes it.

    Raises:
        ValueError: It must not be followed; the message says why.
    """
    # Bytes of a header are read as Latin-1, whatever they were.
    escaped = quote(location.strip(), safe=_KEPT + "#", encoding="latin-1", errors="replace")
    try:
        target = parse(urljoin(address.url, escaped))
    except (UserError, ValueError) as error:
        scheme = re.match(r"[a-z][a-z0-9+.-]{0,20}:", escaped, re.IGNORECASE)
        where = f"an address of {scheme[0]}" if scheme and scheme[0][:-1].lower() not in PORTS else "no valid address"
        raise ValueError(f"leads to {where}") from error
    if (address.scheme, target.scheme) == ("https", "http"):
        raise ValueError("leads from https to http, where everybody on the way can read and change it")
    same = (target.scheme, target.host, target.port) == (address.scheme, address.host, address.port)
    return Address(
        url=target.url,
        scheme=target.scheme,
        host=target.host,
        port=target.port,
        credentials=address.credentials if same else None,
    )


def place(url: str) -> str:
    """An address as it may be shown and kept: without what may be secret, ``user:password@`` and a signed query.

    Example:
        >>> place("https://me:secret@a.org/b.zip?X-Amz-Signature=1#c")
        'https://a.org/b.zip'
    """
    scheme, found, rest = url.partition("://")
    host, slash, path = re.split(r"[?#]", rest if found else scheme, maxsplit=1)[0].partition("/")
    return f"{scheme + found if found else ''}{host.rpartition('@')[2]}{slash}{path}"


def _host(url: str, parts: SplitResult) -> str:
    name = parts.hostname or ""
    try:
        if ":" in name:
            return str(ipaddress.IPv6Address(name))
        # Lengths of labels are checked for ASCII, too; so does the system's resolver, with an error of another kind.
        host = name.encode("idna").decode("ascii").lower()
    except ValueError as error:
        raise _wrong(url, "its server is no name and no number") from error
    if not _NAME.fullmatch(host):
        raise _wrong(url, "its server is no name and no number")
    return host


def _port(url: str, parts: SplitResult) -> int:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise _wrong(url, "its port is no number from 1 to 65535")
    return port or PORTS[parts.scheme]


def _credentials(parts: SplitResult) -> str | None:
    user_info, found, _ = parts.netloc.rpartition("@")
    return f"Basic {base64.b64encode(unquote_to_bytes(user_info)).decode('ascii')}" if found else None


def _wrong(url: str, why: str) -> UserError:
    return WrongUse(f"{place(url)}: not an address, {why}; check how it is spelt")
