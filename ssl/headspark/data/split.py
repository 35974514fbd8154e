"""Which subjects are held out for validation: decided by a hash, so that it stays when the corpus grows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

HASH_RANGE = 2**64


def held_out(subjects: Sequence[str], *, share: float, seed: int) -> set[str]:
    """The held-out subjects: about `share` of them, and the same ones whatever else the corpus holds.

    With two or more subjects and a share above 0, at least one is held out and at least one is not.

    Args:
        subjects: Names, unique over the sources (``openmind/sub-01``); repeats are allowed.
        share: In [0, 1).
        seed: Another seed holds out other subjects.

    Example:
        >>> held_out(["a", "b", "c"], share=0.0, seed=0)
        set()
        >>> len(held_out(["a", "b"], share=0.01, seed=0))
        1
    """
    ranked = sorted({(_hash(subject, seed), subject) for subject in subjects})
    if share <= 0 or len(ranked) < 2:
        return set()
    count = sum(place < share * HASH_RANGE for place, _ in ranked)
    return {subject for _, subject in ranked[: min(max(count, 1), len(ranked) - 1)]}


def _hash(subject: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{subject}".encode()).digest()[:8])
