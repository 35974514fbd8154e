"""The secret that is mixed into the hashes of ids: where it comes from, and how a corpus knows it again."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import string
from functools import lru_cache
from pathlib import Path

from harmonize.errors import WrongUse
from harmonize.terminal import warn

VARIABLE, FILE_OPTION = "HARMONIZE_SALT", "--salt-file"
SHORT = 12
"""Fewer letters can be tried one after the other: the hashes of known ids are public where a corpus is."""

_UNSEEN = f"{string.whitespace}\ufeff"
"""What nobody sees at the ends of a salt: Windows adds some of it, and a shell takes some away."""

MAX_BYTES = 1024
SLOW = "scrypt:"
_CONTEXT = b"headspark corpus salt"
_SCRYPT = {"n": 1 << 14, "r": 8, "p": 1, "maxmem": 1 << 26, "dklen": 16}
"""16 MiB and about 50 ms a guess."""


def given_salt(option: str | None, file: Path | None) -> str:
    """The salt that a command is to use: of a file, of the environment, or of the option, which others can see.

    Args:
        option: Value of ``--salt``.
        file: Value of ``--salt-file``.

    Raises:
        UserError: Two are given, or the file holds none (exit code 2).
    """
    if option is not None and file is not None:
        raise WrongUse(f"--salt and {FILE_OPTION}: give one of them")
    if option == "":
        raise WrongUse("--salt: is empty, as of a variable that is not set; leave it out to hash ids without a secret")
    if option:
        warn(
            f"warning: --salt is seen by every user of this machine in the list of processes; set {VARIABLE}, or give "
            f"{FILE_OPTION} FILE"
        )
    salt = option if option is not None else _read(file) if file is not None else os.environ.get(VARIABLE, "")
    if 0 < len(salt) < SHORT:
        warn(f"warning: a salt of {len(salt)} letters can be guessed; `openssl rand -hex 16` makes one that cannot")
    if salt.strip(_UNSEEN) != salt:
        warn(
            "warning: the salt begins or ends with a space, a line end or a byte order mark, which counts: a file or "
            "variable without it holds another salt"
        )
    return salt


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            mode, content = os.fstat(stream.fileno()).st_mode, stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise WrongUse(f"{FILE_OPTION} {file}: cannot be read ({error.strerror})") from error
    text = content.decode("utf-8", "surrogateescape")
    lines = text.splitlines()
    if len(content) > MAX_BYTES or len(lines) != 1 or not lines[0].strip():
        raise WrongUse(f"{FILE_OPTION} {file}: holds no salt; one line of text is wanted")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        warn(f"warning: {FILE_OPTION} {file}: other users may open it; `chmod 600` keeps them out")
    return lines[0]


def fingerprint(salt: str) -> str:
    """What corpus.json says of a salt, so that another one is noticed; whoever reads it learns little by guessing.

    That of no salt is the one of version 0.1.0, and tells that there is none.
    """
    return _slow(salt) if salt else _of_version_0_1_0(salt)


def is_known_by(salt: str, there: object) -> bool:
    """Whether a salt is the one that corpus.json knows by this fingerprint, of whichever version."""
    if not isinstance(there, str):
        return False
    mine = fingerprint(salt) if there.startswith(SLOW) else _of_version_0_1_0(salt)
    return hmac.compare_digest(mine.encode(), there.encode())


def is_unsalted(there: object) -> bool:
    """Whether a corpus with this fingerprint was made without a salt."""
    return there == fingerprint("")


def is_quickly_guessed(there: object) -> bool:
    """Whether it is a fingerprint of version 0.1.0: a million guesses a second can be tested against it."""
    return not is_unsalted(there) and not (isinstance(there, str) and there.startswith(SLOW))


@lru_cache(maxsize=8)
def _slow(salt: str) -> str:
    return SLOW + hashlib.scrypt(salt.encode("utf-8", "surrogateescape"), salt=_CONTEXT, **_SCRYPT).hex()


def _of_version_0_1_0(salt: str) -> str:
    return hashlib.sha256(b"headspark salt " + salt.encode("utf-8", "surrogateescape")).hexdigest()[:12]
