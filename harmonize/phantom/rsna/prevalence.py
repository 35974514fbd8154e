"""How common aneurysms are in the phantom of RSNA 2025, by modality and by hospital; as a table of the user says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harmonize.errors import WrongUse
from harmonize.labels import LOCATIONS
from harmonize.phantom.rsna.hospitals import BY_NAME
from harmonize.phantom.vessels import SITE_WEIGHTS, Difficulty
from harmonize.sources.tables import number_of, read_table

MODALITIES = ("CTA", "MRA", "MRI T2", "MRI T1post")
SHARE = 0.5
_MODALITY, _SHARE, _HOSPITAL = "modality", "prevalence", "hospital"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prevalence:
    """How common aneurysms are in each modality.

    Attributes:
        ill: Share of the series that have an aneurysm, by modality; 0 to 1.
        sites: How often each of `LOCATIONS` has an aneurysm, relative to each other, by modality; where a modality is
            missing, as is usual for the difficulty.
        hospitals: The same of hospitals that differ, by their names.
    """

    ill: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(MODALITIES, SHARE))
    sites: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    hospitals: Mapping[str, Prevalence] = field(default_factory=dict)

    @property
    def states_sites(self) -> bool:
        """Whether it says how often any site has an aneurysm, and does not leave all to the difficulty."""
        return any(one.sites for one in (self, *self.hospitals.values()))

    def of(self, hospital: str | None) -> Prevalence:
        """What holds in a hospital."""
        return self.hospitals.get(hospital, self) if hospital is not None else self

    def site_weights(self, modality: str, difficulty: Difficulty) -> tuple[float, ...]:
        """How often each of `LOCATIONS` has an aneurysm in a modality."""
        return self.sites.get(modality, SITE_WEIGHTS[difficulty])


EVEN = Prevalence()
"""Half of the series of each modality, at the same sites."""


def read_prevalence(path: Path) -> Prevalence:
    """Read how common aneurysms are from a CSV table: ``modality``, ``prevalence``, and a weight a site if it likes.

    Modalities that it does not name keep one half, and the sites of the default. A column ``hospital`` names where a
    row holds; a row that leaves it empty holds everywhere else.

    Raises:
        WrongUse: It is no such table; names what is wrong.
    """
    try:
        table = read_table(path, (_MODALITY, _SHARE), (*LOCATIONS, _HOSPITAL), option="--prevalence")
    except OSError as error:
        raise WrongUse(f"--prevalence {path}: cannot be read ({error.strerror})") from error

    def wrong(what: str) -> WrongUse:
        return WrongUse(f"--prevalence {path}: {what}")

    if table.damaged:
        raise wrong(f"{table.damaged} damaged rows; save it as CSV again")
    if not table.rows:
        raise wrong("no row below its header; give it a row a modality")
    strange = [name for name in table.columns if name not in (_MODALITY, _SHARE, _HOSPITAL, *LOCATIONS)]
    if strange:
        raise wrong(f"its column {strange[0]!r} is no site; use modality, prevalence and sites as train.csv names them")
    lacking = [name for name in LOCATIONS if name not in table.columns]
    if 0 < len(lacking) < len(LOCATIONS):
        raise wrong(f"names some sites and not {lacking[0]!r}; give a column to all {len(LOCATIONS)} or to none")
    ill: dict[str, dict[str, float]] = {}
    sites: dict[str, dict[str, tuple[float, ...]]] = {}
    for row in table.rows:
        modality, hospital = row[_MODALITY].strip(), row.get(_HOSPITAL, "").strip()
        if modality not in MODALITIES:
            raise wrong(f"{modality!r} is no modality; use {', '.join(MODALITIES)}")
        if hospital and hospital not in BY_NAME:
            raise wrong(f"{hospital!r} is no hospital; use {', '.join(BY_NAME)}")
        where = f"{modality} of {hospital}" if hospital else modality
        if modality in ill.setdefault(hospital, {}):
            raise wrong(f"{where} has several rows; keep one")
        share = number_of(row[_SHARE])
        if share is None or not 0 <= share <= 1:
            raise wrong(f"the prevalence of {where} is {row[_SHARE]!r}; give a number from 0 to 1")
        ill[hospital][modality] = share
        if lacking:
            continue
        weights = [number_of(row[name]) for name in LOCATIONS]
        if any(weight is None or weight < 0 for weight in weights) or not any(weights):
            raise wrong(f"the sites of {where} need weights of 0 or more, and not all 0")
        sites.setdefault(hospital, {})[modality] = tuple(weight or 0.0 for weight in weights)
    everywhere = Prevalence(ill={**EVEN.ill, **ill.get("", {})}, sites=sites.get("", {}))
    return Prevalence(
        ill=everywhere.ill,
        sites=everywhere.sites,
        hospitals={
            hospital: Prevalence(
                ill={**everywhere.ill, **shares}, sites={**everywhere.sites, **sites.get(hospital, {})}
            )
            for hospital, shares in ill.items()
            if hospital
        },
    )
