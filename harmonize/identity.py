"""Names that may be written to disk: salted hashes of private ids, safe file names of public ones."""

from __future__ import annotations

import hashlib
import re

from harmonize.scan import ScanRef

HASH_LENGTH = 20
MAX_NAME_LENGTH = 150
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def salted_hash(salt: str, *parts: str) -> str:
    """Hex digits that stand for `parts`; without the salt nobody can test a guess.

    Example:
        >>> salted_hash("", "tcia", "HN-001") == salted_hash("", "tcia", "HN-001")
        True
        >>> salted_hash("a", "tcia", "HN-001") == salted_hash("b", "tcia", "HN-001")
        False
    """
    text = "\0".join((salt, *parts))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:HASH_LENGTH]


def safe_name(text: str) -> str:
    """Turn public text into a file name that is portable, never hidden and never leaves its folder.

    A changed or shortened name gets a few hash digits, so that different texts keep different names.

    Example:
        >>> safe_name("sub-01_T1w")
        'sub-01_T1w'
        >>> safe_name("../etc")
        'x_etc-f7f9121f'
    """
    name = _UNSAFE.sub("_", text)
    name = re.sub(r"^[.-]+", "x", name) or "x"
    name = name[:MAX_NAME_LENGTH]
    if name == text:
        return name
    return f"{name}-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def raw_hash(ref: ScanRef, salt: str) -> str:
    """The stable, unreadable name of a raw scan: what the manifest says instead of its path."""
    return salted_hash(salt, ref.source, ref.key)


def scan_id(ref: ScanRef, salt: str) -> str:
    """The scan's file name stem in the corpus."""
    return safe_name(ref.public_id) if ref.public_id is not None else raw_hash(ref, salt)


def subject_id(ref: ScanRef, salt: str) -> str:
    """The subject's folder name in the corpus."""
    if ref.public_id is not None:
        return safe_name(ref.subject)
    return salted_hash(salt, ref.source, "subject", ref.subject)


def session_id(ref: ScanRef, salt: str) -> str | None:
    """The session's name in the manifest, or None."""
    if ref.session is None:
        return None
    if ref.public_id is not None:
        return safe_name(ref.session)
    return salted_hash(salt, ref.source, "session", ref.subject, ref.session)
