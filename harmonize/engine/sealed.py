"""Bytes that only who has the key can read, or could have written.

SHAKE-256 of key, nonce and counter gives the key stream, and a keyed BLAKE2b of what was written proves that it is
whole and nobody else's: encrypt, then sign. A stream is a nonce and frames; the last frame is empty, so that a cut one
is noticed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

MAX_PART_BYTES = 1 << 30
"""More is believed of no part, whatever its length says before the tag is looked at."""

_NONCE_BYTES = 16
_TAG_BYTES = 32
_LENGTH = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class _Frames:
    key: bytes
    nonce: bytes

    def stream(self, index: int, length: int) -> bytes:
        return hashlib.shake_256(self._of(b"read", index)).digest(length)

    def tag(self, index: int, content: bytes) -> bytes:
        signing = hashlib.blake2b(self._of(b"sign", index), digest_size=64).digest()
        return hashlib.blake2b(content, key=signing, digest_size=_TAG_BYTES).digest()

    def _of(self, use: bytes, index: int) -> bytes:
        return self.key + use + self.nonce + _LENGTH.pack(index)


def seal(parts: Iterable[bytes], key: bytes) -> Iterator[bytes]:
    """Yield the bytes that stand for `parts` in a file.

    Args:
        parts: Any number of parts, none of them empty.
        key: 32 bytes, used for nothing else.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES)
    frames = _Frames(key, nonce)
    yield nonce
    index = -1
    for index, part in enumerate(parts):
        content = _xor(part, frames.stream(index, len(part)))
        yield _LENGTH.pack(len(content)) + frames.tag(index, content) + content
    yield _LENGTH.pack(0) + frames.tag(index + 1, b"")


def unseal(file: BinaryIO, key: bytes) -> Iterator[bytes]:
    """Yield the parts of what `seal` gave, each as soon as it is known to be whole.

    Raises:
        ValueError: Another key, or not all of it as it was written.
    """
    frames = _Frames(key, file.read(_NONCE_BYTES))
    index = 0
    while True:
        head = file.read(_LENGTH.size + _TAG_BYTES)
        if len(head) < _LENGTH.size + _TAG_BYTES:
            raise ValueError("cut")
        (length,) = _LENGTH.unpack(head[: _LENGTH.size])
        content = file.read(length) if length <= MAX_PART_BYTES else b""
        if len(content) != length or not hmac.compare_digest(frames.tag(index, content), head[_LENGTH.size :]):
            raise ValueError("another key, or not as it was written")
        if length == 0:
            return
        yield _xor(content, frames.stream(index, length))
        index += 1


def _xor(a: bytes, b: bytes) -> bytes:
    return (np.frombuffer(a, dtype=np.uint8) ^ np.frombuffer(b, dtype=np.uint8)).tobytes()
