"""Whose a card is, before its folder is replaced: as we wrote it, with words of somebody's own, or of fine-tuning."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from harmonize.errors import WrongUse

FINE_TUNED = "Fine-tuned by headspark"
"""On the card of every encoder of `finetune export`, and of no pretrained one."""

_SEAL = "<!-- as headspark wrote it: {} -->"
_FOUND = re.compile(_SEAL.format("([0-9a-f]{64})"))


def sealed(text: str) -> str:
    """A card with a comment at its end by which it is known whether somebody has changed it.

    Args:
        text: The card, in Markdown.
    """
    return f"{text.rstrip()}\n\n{_SEAL.format(_sha256(text))}\n"


def refuse_own_words(card: Path) -> None:
    """Refuse to replace a card that was changed since it was written; one of an older version does not say.

    Args:
        card: README.md; there may be none.

    Raises:
        WrongUse: It was changed.
    """
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    seal = _FOUND.search(text)
    if seal is not None and seal[1] != _sha256(text[: seal.start()] + text[seal.end() :]):
        raise WrongUse(
            f"{card}: was changed by hand, and what was written there would be lost; move that folder elsewhere, or "
            "give a new one"
        )


def is_fine_tuned(card: Path) -> bool:
    """Whether a card is that of an encoder that `finetune export` wrote.

    Args:
        card: README.md; there may be none.
    """
    return card.is_file() and FINE_TUNED in card.read_text(encoding="utf-8", errors="replace")


def _sha256(text: str) -> str:
    """Of the words, however editors end lines and files."""
    lines = (line.strip() for line in text.splitlines())
    return hashlib.sha256("\n".join(line for line in lines if line).encode()).hexdigest()
