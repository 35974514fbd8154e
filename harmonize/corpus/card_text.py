"""Text of strangers in a card."""

from __future__ import annotations

import re

from harmonize.terminal import printable

LONGEST_TEXT = 200
_MARKUP = re.compile(r"[\\`*_\[\]<>|~&$@#!]|:(?=//)|(?<=www)\.", re.IGNORECASE)


def plain_text(text: object, *, longest: int = LONGEST_TEXT) -> str:
    """Text from a raw tree for Markdown, where it shows as it is: no markup, no link, no end of a cell or a line.

    Example:
        >>> plain_text("T1w"), plain_text("a|b <img>")
        ('T1w', 'a\\\\|b \\\\<img\\\\>')
    """
    shown = printable(str(text))
    return _MARKUP.sub(r"\\\g<0>", shown if len(shown) <= longest else f"{shown[:longest]}...")
