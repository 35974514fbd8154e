"""One thing that was looked at: what there is in words, the same for programs, and what is amiss."""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True, kw_only=True)
class Section:
    """What was found of one thing.

    Attributes:
        name: Of the thing.
        text: One line or more.
        facts: The same for programs.
        findings: What is amiss and what to do, one line each.
        fatal: Whether headspark cannot run because of it.
    """

    name: str
    text: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    fatal: bool = False

    def lines(self) -> Iterator[tuple[str, str]]:
        """Each line with what stands before it."""
        for number, line in enumerate(self.text):
            yield self.name if number == 0 else "", nameless(line)

    def plain(self) -> Any:
        """The facts, without names of people."""
        return _plain(self.facts)


def nameless(text: str) -> str:
    """Text with ``~`` for the home folder, and without the user's name where it is part of a path.

    Example:
        >>> nameless(f"{Path.home()}/runs")
        '~/runs'
    """
    home = str(Path.home())
    if home != "/":
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may run as a number that nobody has named
        return text
    return re.sub(rf"(?<=[/\\]){re.escape(user)}(?=[/\\]|$|[\s:;,])", "USER", text)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return nameless(str(value)) if isinstance(value, str | Path) else value
