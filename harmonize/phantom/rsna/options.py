"""What a user may ask of the phantom of RSNA 2025, checked as a whole before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from harmonize.errors import WrongUse
from harmonize.phantom.rsna.hospitals import BY_NAME, HOSPITALS
from harmonize.phantom.rsna.prevalence import EVEN, Prevalence
from harmonize.phantom.vessels import DIFFICULTIES, Difficulty

Coverage = Literal["protocol", "varied"]
COVERAGES: tuple[Coverage, ...] = get_args(Coverage)


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeOptions:
    """What a tree of the phantom of RSNA 2025 is like.

    Attributes:
        prevalence: How common aneurysms are.
        coverage: Fields of view of the protocols, or ``varied`` ones of turned heads.
        difficulty: ``hard``, ``easy``, or ``medium`` between the two; docs/phantom.md.
        hospital: The only one that scans; None for all but the odd one. Not of easy trees.
        label_noise: Share of the series whose labels are wrong. Not of easy trees.
        counterfactuals: Whether each two series are one head with and without a sac. Not of easy trees.

    Raises:
        WrongUse: For what does not go together, or a value out of range.
    """

    prevalence: Prevalence = EVEN
    coverage: Coverage = "protocol"
    difficulty: Difficulty = "hard"
    hospital: str | None = None
    label_noise: float = 0.0
    counterfactuals: bool = False

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.coverage not in COVERAGES:
            raise WrongUse(f"--coverage {self.coverage}: choose {' or '.join(COVERAGES)}")
        if self.difficulty not in DIFFICULTIES:
            *some, last = DIFFICULTIES
            raise WrongUse(f"--difficulty {self.difficulty}: choose {', '.join(some)} or {last}")
        if self.hospital is not None and self.hospital not in BY_NAME:
            raise WrongUse(f"--hospital {self.hospital}: there is no such one; choose {', '.join(BY_NAME)}")
        if not 0 <= self.label_noise <= 1:
            raise WrongUse(f"--label-noise {self.label_noise:g}: give a share of the series, from 0 to 1")
        clinical = {
            f"--hospital {self.hospital}": self.hospital is not None,
            f"--label-noise {self.label_noise:g}": self.label_noise > 0,
            "--counterfactuals": self.counterfactuals,
            "--prevalence with a column hospital": bool(self.prevalence.hospitals),
        }
        asked = [name for name, is_asked in clinical.items() if is_asked]
        if asked and self.difficulty == "easy":
            raise WrongUse(f"{asked[0]}: does nothing with --difficulty easy")
        scanning = [self.hospital] if self.hospital else [hospital.name for hospital in HOSPITALS]
        idle = [name for name in self.prevalence.hospitals if name not in scanning]
        if idle and self.hospital:
            raise WrongUse(
                f"--prevalence: its rows of {idle[0]} do nothing with --hospital {self.hospital}; delete them"
            )
        if idle:
            raise WrongUse(f"--prevalence: its rows of {idle[0]} do nothing without --hospital {idle[0]}; delete them")
        if self.hospital and self.coverage != "protocol":
            raise WrongUse(
                f"--coverage {self.coverage} with --hospital {self.hospital}: its fields and slices are no hospital's; "
                "leave one out"
            )
        if self.counterfactuals and self.label_noise:
            raise WrongUse("--counterfactuals with --label-noise: pairs are there to be told apart; leave one out")


USUAL = TreeOptions()
