"""What words say that an image shows, alone and together: T2 FLAIR, T1 post contrast, CT angio, DWI ADC."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

_SPELLINGS = {
    "CT": "ct ncct nect", "CTA": "cta", "PT": "pt pet",
    "T1w": "t1 t1w t1n mprage inplanet1", "T1post": "t1c t1ce t1gd t1post", "T2w": "t2 t2w inplanet2",
    "FLAIR": "flair t2f t2flair", "PDw": "pd pdw", "T2starw": "t2star t2starw", "MRA": "mra tof angio",
    "SWI": "swi", "minIP": "minip", "UNIT1": "unit1", "MP2RAGE": "mp2rage", "FLASH": "flash", "T1map": "t1map",
    "T2map": "t2map", "T2starmap": "t2starmap", "sbref": "sbref", "DWI": "dwi", "ADC": "adc", "FA": "fa", "MD": "md",
    "TRACE": "trace", "MR": "mr mri",
}  # fmt: skip
_CONTRASTS = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()}
CONTRASTS = tuple(_SPELLINGS)
"""What is known that an image shows."""

_ONLY_LAST = frozenset({"pt", "md", "fa", "pd"})
"""Abbreviations of much else too (patient, initials, Parkinson's disease): contrasts where they come last."""

_PAIRS = {("t1", "map"): "T1map", ("t2", "map"): "T2map", ("t2star", "map"): "T2starmap", ("t2", "star"): "T2starw"}
_ANGIO = frozenset({"angio", "angiography", "angiogram"})

_GIVES_WAY = {
    "CT": {"CTA"},
    "T1w": {"T1post", "T1map"},
    "T2w": {"FLAIR", "T2map", "T2starw", "T2starmap"},
    "T2starw": {"T2starmap"},
    "DWI": {"ADC", "FA", "MD", "TRACE", "sbref"},
    "SWI": {"minIP"},
    "FLASH": {"T1w", "T1post", "PDw", "T2starw", "MRA"},
    "MP2RAGE": {"UNIT1", "T1map"},
    "MR": set(CONTRASTS) - {"CT", "CTA", "PT", "MR"},
}
"""Contrasts that say less than these do, beside which they say nothing."""

_AGENT = frozenset({"gd", "gad", "gado", "gadolinium", "ce", "contrast", "postcontrast"})
_POST = "post"
_WITHOUT = frozenset({"pre", "no", "non", "without", "wo", "native"})
_HOW = frozenset(
    {"ax", "axial", "sag", "sagittal", "cor", "coronal", "tra", "2d", "3d", "se", "tse", "fse", "w", "weighted"}
)
"""How an image was taken, which says nothing of what else its name says."""

BETWEEN = re.compile(r"[_\-. ]+")
"""What stands between the words of a name."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the words of a name say together.

    Attributes:
        contrast: Of `CONTRASTS`, or None where they say none, or several.
        several: The contrasts, where they contradict each other.
        used: Places of the words that say it.
    """

    contrast: str | None
    several: tuple[str, ...]
    used: frozenset[int]


def contrast_of(text: str) -> str | None:
    """The contrast that a word means, or several words that all speak of it; else None.

    Example:
        >>> [contrast_of(text) for text in ("T1w", "angio", "CTA", "Waldorf")]
        ['T1w', 'MRA', 'CTA', None]
        >>> [contrast_of(text) for text in ("t2_flair", "T1 post contrast", "CT angio", "T1 of Waldorf", "T1 T2")]
        ['FLAIR', 'T1post', 'CTA', None, None]
    """
    words = BETWEEN.split(text.strip())
    found = read_words(words)
    others = (word.casefold() for place, word in enumerate(words) if place not in found.used)
    return found.contrast if _HOW.issuperset(others) else None


def contrast_of_folder(name: str) -> str | None:
    """The contrast of the images in a folder, which may bear somebody's initials instead.

    Example:
        >>> [contrast_of_folder(name) for name in ("CTA", "T2_FLAIR", "PT", "md")]
        ['CTA', 'FLAIR', None, None]
    """
    return None if name.strip().casefold() in _ONLY_LAST else contrast_of(name)


def read_words(words: Sequence[str]) -> Reading:
    """What the words of a name say together.

    Example:
        >>> [read_words(name.split("_")).contrast for name in ("pt_01_T1", "01_pt", "s_DWI_ADC", "s_T1_post_op")]
        ['T1w', 'PT', 'ADC', 'T1w']
        >>> read_words(["T1", "SE", "PD"]).several
        ('T1w', 'PDw')
    """
    low = [word.casefold() for word in words]
    last = max(_but_how(low), default=-1)
    said = {
        place: _CONTRASTS[word]
        for place, word in enumerate(low)
        if word in _CONTRASTS and (word not in _ONLY_LAST or place == last)
    }
    for place, pair in enumerate(pairwise(low)):
        if pair in _PAIRS:
            said[place] = said[place + 1] = _PAIRS[pair]
    of_vessels = [place for place, word in enumerate(low) if word in _ANGIO]
    if not {"CT", "CTA", "MR"}.isdisjoint(said.values()):
        said |= dict.fromkeys(of_vessels, "MRA" if "MR" in said.values() else "CTA")
    with_agent, without = list(_with_agent(low, said)), list(_without_agent(low, said))
    said |= dict.fromkeys(with_agent, "T1post") | dict.fromkeys(without, "T1w")
    names = set(said.values())
    left = [name for name in CONTRASTS if name in names and names.isdisjoint(_GIVES_WAY.get(name, ()))]
    return Reading(left[0] if len(left) == 1 else None, tuple(left) if len(left) > 1 else (), frozenset(said))


def _with_agent(low: Sequence[str], said: dict[int, str]) -> Iterator[int]:
    """Places of the words beside that of a T1 which say that a contrast agent was given."""

    runs = _runs(low, said)
    for number, (what, places) in enumerate(runs):
        if what != "agent":
            continue
        before = runs[number - 1][0] if number else ""
        after = runs[number + 1][0] if number + 1 < len(runs) else ""
        if before in _WITHOUT:
            continue
        # Alone, "post" may mean after an operation, or the later of two visits.
        named = any(low[place] in _AGENT for place in places)
        if (named and "T1w" in (before, after)) or (before == "T1w" and not after[:1].isalpha()):
            yield from places


def _without_agent(low: Sequence[str], said: dict[int, str]) -> Iterator[int]:
    """Places of the words behind that of a T1 which say that none was given yet: they name nobody."""
    runs = _runs(low, said)
    for number, (what, places) in enumerate(runs):
        if what not in _WITHOUT or not number or runs[number - 1][0] != "T1w":
            continue
        behind = runs[number + 1 :]
        of_agent = behind[0][1] if behind and behind[0][0] == "agent" else []
        rest = behind[1:] if of_agent else behind
        if (of_agent or what == "pre") and not (rest and rest[0][0][:1].isalpha()):
            yield from (*places, *of_agent)


def _runs(low: Sequence[str], said: dict[int, str]) -> list[tuple[str, list[int]]]:
    """The words one after the other, those that mean the same together: a T1, an agent, or a word of its own."""

    def kind(place: int) -> str:
        if said.get(place) == "T1w":
            return "T1w"
        return "agent" if low[place] in _AGENT or low[place] == _POST else low[place]

    return [(what, list(places)) for what, places in groupby(_but_how(low), key=kind)]


def _but_how(low: Sequence[str]) -> list[int]:
    return [place for place, word in enumerate(low) if word not in _HOW]
