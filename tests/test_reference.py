"""docs/api.md and docs/keys.md say what the code says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from command_lines import load
from pages import PAGES, ROOT

REFERENCE = load(ROOT / ".ci" / "reference.py")


@pytest.mark.parametrize("name", REFERENCE.PAGES)
def test_a_written_page_is_current(name: str) -> None:
    assert REFERENCE.PAGES[name]() == PAGES[name.removeprefix("docs/")], f"{name} is out of date: give `make reference`"


def test_a_key_without_its_meaning_is_named() -> None:
    @dataclass
    class Config:
        """A section.

        Attributes:
            told: What it is.
        """

        told: int = 1
        untold: int = 2

    with pytest.raises(SystemExit, match=r"Config: Attributes do not explain untold"):
        REFERENCE.explained(Config)


def test_types_and_defaults_are_written_as_recipes_have_them() -> None:
    assert REFERENCE.kind(float | tuple[float, float]) == "number or 2 x number"
    assert REFERENCE.kind(Literal["a", "b"] | None) == "`a`, `b` or null"
    assert [REFERENCE.written(value) for value in (True, None, (1, 2), "no")] == [
        "`true`",
        "`null`",
        "`[1, 2]`",
        "`'no'`",
    ]
