"""What reaches a terminal or a log: one line stays one line, and nothing in it is a secret or an order to the terminal.

Names of a raw tree, texts of its tables and addresses come from strangers. Everything that a command prints goes
through here at the edge, so that the code below may put such text into its messages as it is.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

from harmonize.errors import Rejection, UserError

_USER_INFO = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^\s/?#]*@", re.IGNORECASE)
_QUERY = re.compile(r"(?P<address>\bhttps?://[^\s?#'\"<>]*)[?#][^\s'\"<>]*", re.IGNORECASE)


def printable(text: str) -> str:
    """Text for one line of a terminal: bytes that are no UTF-8, control characters and turns of writing are escaped.

    Example:
        >>> printable("a" + chr(0xDCE9) + chr(10) + chr(0x202E))
        'a\\\\xe9\\\\n\\\\u202e'
    """
    return text if text.isprintable() else "".join(_escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    if letter.isprintable():
        return letter
    if 0xDC80 <= ord(letter) <= 0xDCFF:  # how Python holds a byte of a file name that is no UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")


def without_secrets(text: str) -> str:
    """The same without what may be secret in its addresses: ``user:password@``, and queries, which may be signed.

    Example:
        >>> without_secrets("https://me:pass@a.org/b.zip?X-Amz-Signature=1: gone")
        'https://a.org/b.zip: gone'
        >>> without_secrets("nothing?here")
        'nothing?here'
    """
    if "://" not in text:
        return text
    return _QUERY.sub(_cut, _USER_INFO.sub(r"\g<scheme>", text))


def _cut(found: re.Match[str]) -> str:
    """The address alone, and what ends a sentence behind it."""
    end = found[0][len(found[0].rstrip(":;,.)")) :]
    return found["address"] + end


def line(text: str) -> str:
    """Text as it may be shown: see `printable` and `without_secrets`."""
    return printable(without_secrets(text))


def say(*lines: object, stream: TextIO | None = None) -> None:
    """Print lines; one that would break out of its line is escaped.

    Args:
        lines: Whatever has a text.
        stream: Where; None: standard output.
    """
    out = sys.stdout if stream is None else stream
    # In one piece each, because other processes may say something at the same time.
    out.write("".join(f"{line(str(one))}\n" for one in lines))
    out.flush()


def warn(*lines: object) -> None:
    """Print lines on standard error."""
    say(*lines, stream=sys.stderr)


def emit(value: object) -> None:
    """Print a value as indented JSON on standard output, for programs: all ASCII, so that no terminal obeys it."""
    text = json.dumps(value, indent=2, ensure_ascii=True).replace("\x7f", "\\u007f")  # the one control it leaves
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def show_frames(error: BaseException) -> None:
    """Print a traceback without the texts of its errors: those of a library may quote a header or a row of a table."""
    warn(*_frames(error, _our_text))


def _frames(
    error: BaseException, text_of: Callable[[BaseException], str], seen: frozenset[int] = frozenset()
) -> Iterator[str]:
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _frames(before, text_of, seen | {id(error)})
        yield "which led to:" if error.__cause__ is None else "which was the cause of:"
    yield "Traceback (most recent call last):"
    for frame in traceback.format_tb(error.__traceback__):
        yield from frame.rstrip("\n").split("\n")
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    first, *more = text_of(error).split("\n")
    yield f"{name}: {first}" if first else name
    yield from (f"  {text}" for text in more)


def _our_text(error: BaseException) -> str:
    """Our own messages quote nothing that is not to be seen; what a library's quote, nobody knows."""
    return str(error) if isinstance(error, UserError | Rejection) else ""


def hide_texts_of_errors() -> None:
    """Let what ends this process show its traceback as `show_frames` does; a hook that is not Python's own stays."""
    _install(show_frames)


def escape_texts_of_errors() -> None:
    """The same for what opens no raw file: texts of libraries, which tell what a GPU lacks, are shown, but escaped."""
    _install(lambda error: warn(*_frames(error, str)))


def _install(show: Callable[[BaseException], object]) -> None:
    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        show(error)

    def hook_of_threads(what: threading.ExceptHookArgs) -> None:
        if what.exc_value is not None:
            show(what.exc_value)

    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = hook
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = hook_of_threads


class _WithoutSecrets(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = line(record.getMessage()), None
        return True


@contextmanager
def careful_log(name: str) -> Iterator[None]:
    """Let no secret of an address into what a library logs meanwhile: it may name the addresses that it asks.

    Args:
        name: Of the library's logger.
    """
    filters = _WithoutSecrets()
    known = [name, *(one for one in logging.root.manager.loggerDict if one.startswith(f"{name}."))]
    loggers = [logging.getLogger(one) for one in known]
    for logger in loggers:
        logger.addFilter(filters)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(filters)
