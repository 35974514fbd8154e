"""Words of a user's table that say one thing: spellings that differ in letter case, and words for yes and no."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

NO = frozenset({"0", "no", "n", "false", "negative", "absent"})
YES = frozenset({"1", "yes", "y", "true", "positive", "present"})


def one_spelling(values: Mapping[str, str]) -> dict[str, str]:
    """The same values with one spelling of each: the most frequent one, of two as frequent the first in their order.

    Words for yes and no count as one each where there is nothing else, and where they would be more than two values.

    Args:
        values: Of a column, by scan.

    Example:
        >>> one_spelling({"a": "AD", "b": "ad", "c": "CN", "d": "AD"})
        {'a': 'AD', 'b': 'AD', 'c': 'CN', 'd': 'AD'}
        >>> one_spelling({"a": "yes", "b": "1", "c": "No", "d": "YES", "e": "yes"})
        {'a': 'yes', 'b': 'yes', 'c': 'No', 'd': 'yes', 'e': 'yes'}
    """
    words = {text.casefold() for text in values.values()}
    both = len(words) > 2 and words <= NO | YES and bool(words & NO) and bool(words & YES)

    def meaning(text: str) -> str:
        word = text.casefold()
        return ("yes" if word in YES else "no") if both else word

    counts = Counter(values.values())
    chosen: dict[str, str] = {}
    for text in sorted(counts, key=lambda text: (-counts[text], text)):
        chosen.setdefault(meaning(text), text)
    return {scan_id: chosen[meaning(text)] for scan_id, text in values.items()}
