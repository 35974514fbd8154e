"""What each series of the phantom of RSNA 2025 is: its modality, its aneurysms, its files; no voxel is drawn for it.

Whether there is an aneurysm, and where, says nothing about the modality, the hospital, the layout of the files or the
masks, and the other way round: each is drawn for itself. It is drawn in strata among the series of one modality, so
that few series already have the shares that are asked for: of each pair of one modality one is ill, of each four one
is multi-frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harmonize.labels import LOCATIONS
from harmonize.phantom.randomness import rng_of, uid_of
from harmonize.phantom.rsna.hospitals import BY_NAME, HOSPITALS, Protocol
from harmonize.phantom.rsna.options import USUAL, TreeOptions
from harmonize.phantom.rsna.prevalence import EVEN, Prevalence
from harmonize.phantom.vessels import Difficulty, draw_locations

PAIRS = ("CTA", "MRA", "MRI T2", "MRI T1post", "CTA", "MRA", "CTA", "MRI T2")
"""Modality of each two series in turn, by the competition's names, in about its proportions (1804, 1252, 982 and 310 of
4348)."""

SEGMENTED_SHARE = 1 / 2
"""Real masks are rarer (178 of 4348); a small phantom would have none."""
MULTIFRAME_SHARE = 1 / 4
SITE_STRATA = 16
"""Of so many pairs of one modality, the first aneurysms are spread over the sites as their weights say."""


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
        names: What its randomness is named by; the two series of a counterfactual pair share them.
        difficulty: Of its vessels and pictures.
        hospital: Name of that where it is scanned; None for an easy one.
        pair: Number of its counterfactual pair, or None.
    """

    uid: str
    modality: str
    multiframe: bool
    segmented: bool
    ill: bool
    sites: tuple[str, ...]
    names: tuple[object, ...]
    difficulty: Difficulty = "easy"
    hospital: str | None = None
    pair: int | None = None

    @property
    def locations(self) -> tuple[str, ...]:
        """Where it has an aneurysm."""
        return self.sites if self.ill else ()

    @property
    def protocol(self) -> Protocol:
        """How its hospital scans it.

        Raises:
            ValueError: It is an easy one, which no hospital scans.
        """
        if self.hospital is None:
            raise ValueError("an easy series has no hospital")
        return BY_NAME[self.hospital].protocols[self.modality]


def planned(index: int, *, seed: int, options: TreeOptions = USUAL) -> SeriesPlan:
    """What series `index` of a tree is; a pure function of its arguments."""
    if options.difficulty == "easy":
        return plan_series(index, seed=seed, prevalence=options.prevalence)
    return _plan_pair(index, seed, options) if options.counterfactuals else _plan_clinical(index, seed, options)


def plan_series(index: int, *, seed: int, prevalence: Prevalence = EVEN) -> SeriesPlan:
    """What series `index` of an easy tree is; a pure function of its arguments.

    Args:
        index: From 0.
        seed: Of the tree.
        prevalence: How common aneurysms are.
    """
    names = (seed, "rsna", index)
    modality, couple = _couple(index // 2)
    number = 2 * couple + index % 2

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
        sites=draw_locations(rng_of(*names, "locations"), site, prevalence.site_weights(modality, "easy")),
        names=names,
    )


def _plan_clinical(index: int, seed: int, options: TreeOptions) -> SeriesPlan:
    names = (*_tree(seed, options), index)
    modality, couple = _couple(index // 2)
    strata = _Strata(names[:-1], modality, 2 * couple + index % 2)
    hospital = strata.hospital(options)
    common = options.prevalence.of(hospital)
    return SeriesPlan(
        uid=uid_of(*names, "series"),
        modality=modality,
        multiframe=strata.share("multiframe", MULTIFRAME_SHARE),
        segmented=strata.share("segmented", SEGMENTED_SHARE),
        ill=strata.drawn("ill", 2) < common.ill[modality],
        sites=draw_locations(
            rng_of(*names, "locations"),
            strata.drawn("site", 2 * SITE_STRATA),
            common.site_weights(modality, options.difficulty),
        ),
        names=names,
        difficulty=options.difficulty,
        hospital=hospital,
    )


def _plan_pair(index: int, seed: int, options: TreeOptions) -> SeriesPlan:
    """One of two series of one head that differ in a single sac: the first has it."""
    pair, second = divmod(index, 2)
    names = (*_tree(seed, options), "pair", pair)
    modality, couple = _couple(pair)
    strata = _Strata(names[:-1], modality, couple)
    hospital = strata.hospital(options)
    weights = options.prevalence.of(hospital).site_weights(modality, options.difficulty)
    return SeriesPlan(
        uid=uid_of(*names, "without" if second else "series"),
        modality=modality,
        multiframe=strata.share("multiframe", MULTIFRAME_SHARE),
        segmented=strata.share("segmented", SEGMENTED_SHARE),
        ill=not second,
        sites=(_site(strata.drawn("site", SITE_STRATA), weights),),
        names=names,
        difficulty=options.difficulty,
        hospital=hospital,
        pair=pair,
    )


def _site(place: float, weights: Sequence[float]) -> str:
    """The site at a place in [0, 1) of all that are as wide as their weights."""
    reached = np.cumsum(weights)
    return LOCATIONS[int(np.searchsorted(reached, place * reached[-1], side="right"))]


def _tree(seed: int, options: TreeOptions) -> tuple[object, ...]:
    """What the randomness of a medium or hard tree is named by: trees that differ in any of it share no head.

    Trees that differ in prevalence, coverage, label noise or size alone do share them.
    """
    return (seed, "rsna", options.difficulty, options.hospital or "hospitals")


def _couple(pair: int) -> tuple[str, int]:
    """Modality of the `pair`-th two series, and how many twos of that modality come before."""
    modality = PAIRS[pair % len(PAIRS)]
    rounds, place = divmod(pair, len(PAIRS))
    return modality, rounds * PAIRS.count(modality) + PAIRS[:place].count(modality)


@dataclass(frozen=True, slots=True)
class _Strata:
    """What is drawn in strata for the `number`-th series of one modality of a tree, each thing for itself."""

    tree: tuple[object, ...]
    modality: str
    number: int

    def drawn(self, what: str, strata: int) -> float:
        return _stratified(self.number, strata, *self.tree, self.modality, what)

    def share(self, what: str, share: float) -> bool:
        return self.drawn(what, round(1 / share)) < share

    def hospital(self, options: TreeOptions) -> str:
        if options.hospital is not None:
            return options.hospital
        return HOSPITALS[int(self.drawn("hospital", len(HOSPITALS)) * len(HOSPITALS))].name


def _stratified(number: int, strata: int, *names: object) -> float:
    """A number in [0, 1) for the `number`-th of a row, of which each `strata` successive ones lie in different strata.

    Example:
        >>> sorted(int(4 * _stratified(number, 4, 0, "a")) for number in range(8, 12))
        [0, 1, 2, 3]
    """
    block, place = divmod(number, strata)
    rng = rng_of(*names, block)
    return float((rng.permutation(strata)[place] + rng.random(strata)[place]) / strata)
