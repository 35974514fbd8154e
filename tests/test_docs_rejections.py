"""The page of reason codes lists each code once."""

from __future__ import annotations

import re
from pathlib import Path

from harmonize.errors import Reason

PAGE = Path(__file__).resolve().parents[1] / "docs/rejections.md"


def test_every_reason_code_is_explained_once() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(reason.value for reason in Reason)
