"""README.md and docs/*.md as the tests read them: blocks of code, inline code, and the commands in both."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}

CONSOLE, TEXT = "", "text"
"""Languages of blocks: commands have none, drawings have ``text``."""

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page: Name of its file.
        line: Number of its first line, for messages.
        language: What stands behind its fence.
        code: Its lines.
    """

    page: str
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str | None = None) -> list[Block]:
    """The blocks of all pages, or those of a language."""
    found = [
        Block(page, text.count("\n", 0, match.start()) + 2, match[1], match[2])
        for page, text in PAGES.items()
        for match in _FENCED.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def prose(page: str) -> str:
    """A page without its blocks, with its lines where they were."""
    return _FENCED.sub(lambda match: "\n" * match[0].count("\n"), PAGES[page])


def inline_code(page: str) -> list[str]:
    """What stands between backticks, spread over lines or not."""
    return [" ".join(code.split()) for code in _INLINE.findall(prose(page))]


def commands(code: str) -> Iterator[list[str]]:
    """The commands of a block of console, as words; variables set in front of one are left out, `&&` parts them."""
    for line in code.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word == "&&":
                if words:
                    yield words
                words = []
            elif words or not re.match(r"[A-Z_]+=", word):
                words.append(word)
