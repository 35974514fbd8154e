"""Small files that say how others are to be read: JSON and its like, from whoever, read within bounds.

A settings file has a few kilobytes. One that is larger, deeper than a person would write, no regular file, or not the
JSON that it claims to be is refused before it costs memory or waits for ever.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from types import FunctionType
from typing import Any

LARGEST = 4 << 20
"""Bytes of a settings file; the largest that we write has some ten kilobytes."""


def read_small(path: Path, *, limit: int = LARGEST) -> bytes:
    """The content of a small regular file.

    Args:
        path: Which; links are followed.
        limit: Bytes that it may have.

    Raises:
        OSError: It is absent or unreadable, a folder, pipe or device (which is not opened), or too large.
    """
    # Without waiting: a pipe that took the file's place meanwhile would block until somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) if path.is_file() else _refuse(path)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EINVAL, f"larger than {limit} bytes", str(path))
    return content


def parse_json(content: bytes | str) -> Any:
    """What JSON says.

    Raises:
        ValueError: It is no JSON, no UTF-8, nested too deeply, or has a key twice, of which only one could count.

    Example:
        >>> parse_json(b'{"a": [1, 2]}')
        {'a': [1, 2]}
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: the key a stands twice
    """
    try:
        return json.loads(
            content.decode("utf-8-sig") if isinstance(content, bytes) else content, object_pairs_hook=_once
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (line {error.lineno})") from error
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_small_json(path: Path, *, limit: int = LARGEST) -> Any:
    """What a small JSON file says.

    Raises:
        OSError: As `read_small`.
        ValueError: As `parse_json`.
    """
    return parse_json(read_small(path, limit=limit))


def fits(value: Any, shape: Any) -> bool:
    """Whether a plain value has a shape.

    Args:
        value: As `parse_json` gives it.
        shape: A type; a dict of shapes that the value holds under these keys, and maybe more; a list with the shape of
            all items; a tuple of shapes of which one fits; a function that says so. ``float`` is a finite number,
            ``int`` one of 64 bits.

    Example:
        >>> fits({"spacing": [1, 2.5], "more": None}, {"spacing": [float]})
        True
        >>> fits({"spacing": "ab"}, {"spacing": [float]}), fits(True, int), fits(None, (int, type(None)))
        (False, False, True)
    """
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(key in value and fits(value[key], part) for key, part in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    if isinstance(shape, tuple):
        return any(fits(value, one) for one in shape)
    if isinstance(shape, FunctionType):
        return bool(shape(value))
    if shape is int:
        return type(value) is int and abs(value) < 2**63
    if shape is float:
        return fits(value, int) or (type(value) is float and math.isfinite(value))
    return isinstance(value, shape)


def _refuse(path: Path) -> int:
    mode = path.stat().st_mode  # raises if there is nothing
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "no regular file", str(path))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:40]} stands twice")
    return found
