"""What each series of the phantom of RSNA 2025 is: its modality, its aneurysms, its files; no voxel is drawn for it.

Whether there is an aneurysm, and where, says nothing about the modality, the layout of the files or the masks, and the
other way round: each is drawn for itself. It is drawn in strata among the series of one modality, so that few series
already have the shares that are asked for: of each pair of one modality one is ill, of each four one is multi-frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harmonize.errors import WrongUse
from harmonize.labels import LOCATIONS
from harmonize.phantom.randomness import rng_of, uid_of
from harmonize.phantom.vessels import LOCATION_WEIGHTS, draw_locations
from harmonize.sources.tables import number_of, read_table

PAIRS = ("CTA", "MRA", "MRI T2", "MRI T1post", "CTA", "MRA", "CTA", "MRI T2")
"""Modality of each two series in turn, by the competition's names, in about its proportions (1804, 1252, 982 and 310 of
4348)."""

MODALITIES = tuple(dict.fromkeys(PAIRS))
PREVALENCE = 0.5
SEGMENTED_SHARE = 1 / 2
"""Real masks are rarer (178 of 4348); a small phantom would have none."""
MULTIFRAME_SHARE = 1 / 4
SITE_STRATA = 16
"""Of so many pairs of one modality, the first aneurysms are spread over the sites as their weights say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prevalence:
    """How common aneurysms are in each modality.

    Attributes:
        ill: Share of the series that have an aneurysm, by modality; 0 to 1.
        sites: How often each of `LOCATIONS` has an aneurysm, relative to each other, by modality.
    """

    ill: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(MODALITIES, PREVALENCE))
    sites: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: dict.fromkeys(MODALITIES, LOCATION_WEIGHTS))


EVEN = Prevalence()
"""Half of the series of each modality, at the same sites."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesPlan:
    """One series, before it is drawn.

    Attributes:
        uid: SeriesInstanceUID.
        modality: As ``train.csv`` says it.
        multiframe: Whether one file holds all pictures.
        segmented: Whether it has a vessel mask.
        ill: Whether it has an aneurysm.
        sites: Where its aneurysms are, or would be; out of `LOCATIONS`.
        names: What its randomness is named by.
    """

    uid: str
    modality: str
    multiframe: bool
    segmented: bool
    ill: bool
    sites: tuple[str, ...]
    names: tuple[object, ...]

    @property
    def locations(self) -> tuple[str, ...]:
        """Where it has an aneurysm."""
        return self.sites if self.ill else ()


def plan_series(index: int, *, seed: int, prevalence: Prevalence = EVEN) -> SeriesPlan:
    """What series `index` is; a pure function of its arguments.

    Args:
        index: From 0.
        seed: Of the tree.
        prevalence: How common aneurysms are.
    """
    names = (seed, "rsna", index)
    modality = PAIRS[index // 2 % len(PAIRS)]
    rounds, pair = divmod(index // 2, len(PAIRS))
    number = 2 * (rounds * PAIRS.count(modality) + PAIRS[:pair].count(modality)) + index % 2

    def drawn(what: str, strata: int, place: int = number) -> float:
        return _stratified(place, strata, seed, "rsna", modality, what)

    illness = drawn("ill", 2)
    # The two of a pair are opposite in where their first aneurysm is or would be.
    site = (drawn("site", SITE_STRATA, number // 2) + (illness >= 0.5) / 2) % 1
    return SeriesPlan(
        uid=uid_of(*names, "series"),
        modality=modality,
        multiframe=drawn("multiframe", round(1 / MULTIFRAME_SHARE)) < MULTIFRAME_SHARE,
        segmented=drawn("segmented", round(1 / SEGMENTED_SHARE)) < SEGMENTED_SHARE,
        ill=illness < prevalence.ill[modality],
        sites=draw_locations(rng_of(*names, "locations"), site, prevalence.sites[modality]),
        names=names,
    )


def _stratified(number: int, strata: int, *names: object) -> float:
    """A number in [0, 1) for the `number`-th of a row, of which each `strata` successive ones lie in different strata.

    Example:
        >>> sorted(int(4 * _stratified(number, 4, 0, "a")) for number in range(8, 12))
        [0, 1, 2, 3]
    """
    block, place = divmod(number, strata)
    rng = rng_of(*names, block)
    return float((rng.permutation(strata)[place] + rng.random(strata)[place]) / strata)


def read_prevalence(path: Path) -> Prevalence:
    """Read how common aneurysms are from a CSV table: ``modality``, ``prevalence``, and a weight a site if it likes.

    Modalities that it does not name keep one half, and the sites of the default.

    Raises:
        WrongUse: It is no such table; names what is wrong.
    """
    try:
        table = read_table(path, ("modality", "prevalence"), LOCATIONS)
    except OSError as error:
        raise WrongUse(f"--prevalence {path}: cannot be read ({error.strerror})") from error

    def wrong(what: str) -> WrongUse:
        return WrongUse(f"--prevalence {path}: {what}")

    if table.damaged:
        raise wrong(f"{table.damaged} damaged rows; save it as CSV again")
    strange = [name for name in table.columns if name not in ("modality", "prevalence", *LOCATIONS)]
    if strange:
        raise wrong(f"its column {strange[0]!r} is no site; use modality, prevalence and sites as train.csv names them")
    lacking = [name for name in LOCATIONS if name not in table.columns]
    if 0 < len(lacking) < len(LOCATIONS):
        raise wrong(f"names some sites and not {lacking[0]!r}; give a column to all {len(LOCATIONS)} or to none")
    ill, sites = dict(EVEN.ill), dict(EVEN.sites)
    named: set[str] = set()
    for row in table.rows:
        modality = row["modality"].strip()
        if modality not in MODALITIES:
            raise wrong(f"{modality!r} is no modality; use {', '.join(MODALITIES)}")
        if modality in named:
            raise wrong(f"{modality} has several rows; keep one")
        named.add(modality)
        share = number_of(row["prevalence"])
        if share is None or not 0 <= share <= 1:
            raise wrong(f"the prevalence of {modality} is {row['prevalence']!r}; give a number from 0 to 1")
        ill[modality] = share
        if lacking:
            continue
        weights = [number_of(row[name]) for name in LOCATIONS]
        if any(weight is None or weight < 0 for weight in weights) or not any(weights):
            raise wrong(f"the sites of {modality} need weights of 0 or more, and not all 0")
        sites[modality] = tuple(weight or 0.0 for weight in weights)
    return Prevalence(ill=ill, sites=sites)
