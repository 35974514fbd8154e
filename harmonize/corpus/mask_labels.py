"""What the values of a corpus's masks stand for."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from harmonize.errors import UserError
from harmonize.labels import LOCATIONS, MASK_VALUES

if TYPE_CHECKING:
    from harmonize.corpus.reading import Corpus

OF_KIND = {
    "vessels": dict(zip(LOCATIONS, MASK_VALUES, strict=True)),
    "anatomy": {"head": 1, "defaced": 2},
}
"""Value by name, of the kinds of masks whose values are the same wherever they come from."""


def mask_labels(corpus: Corpus, sources: Collection[str], kind: str) -> dict[str, int]:
    """The value of each structure in the masks of some sources, by its name, in the order of the values.

    Args:
        corpus: With the sources.
        sources: Of the scans.
        kind: Of the masks, as `mask_kind` in the manifest has it.

    Returns:
        Empty where nothing is named.

    Raises:
        UserError: Two scans name a value, or a structure, otherwise.
    """
    if kind in OF_KIND:
        return dict(sorted(OF_KIND[kind].items(), key=lambda item: item[1]))
    scans = corpus.scans
    rows = scans.loc[scans["source"].isin(sources) & (scans["mask_kind"] == kind), "mask_labels"]
    pairs = sorted({(int(one["value"]), str(one["name"])) for row in rows if row is not None for one in row})
    named = {name: value for value, name in pairs if value > 0}
    if len(named) < len({pair for pair in pairs if pair[0] > 0}) or len(set(named.values())) < len(named):
        raise UserError(
            f"{corpus.path}: scans of {', '.join(sources)} do not agree on what the values of their masks stand for"
        )
    return named
