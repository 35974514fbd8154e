"""What every loss is: a mean over something, computed in parts that add up to the mean of all samples of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from finetune.tasks import LABELS
from harmonize.errors import WrongUse
from headspark.config.checks import require

LARGEST_WEIGHT = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class TermConfig:
    """What every term of the loss has.

    Attributes:
        of: The output that it is about.
        target: What that should say; empty: the target of the same name.
        weight: What it counts.
        name: On the curves and in metrics.jsonl; empty: the output's.
    """

    of: str = LABELS
    target: str = ""
    weight: float = 1.0
    name: str = ""

    def __post_init__(self) -> None:
        require(0 <= self.weight <= LARGEST_WEIGHT, f"losses: weight {self.weight} of {self.shown}: must be 0 or more")

    @property
    def wanted(self) -> str:
        """Name of its target."""
        return self.target or self.of

    @property
    def shown(self) -> str:
        """Its name."""
        return self.name or self.of


class Loss(Protocol):
    """One loss; those that are a mean over series are a `SeriesLoss`.

    A step's samples may be dealt out to several forward passes and ranks. So that the sum over these is the loss of
    all in one batch, each part's mean is weighted by its share of what the step's mean is over.

    Attributes:
        size: How many numbers `counts` gives.
    """

    size: int

    def __call__(self, output: Tensor, target: Tensor, known_B: Tensor | None) -> Tensor:
        """The mean over one part, a scalar.

        Args:
            output: Of the network, float32.
            target: Of the task.
            known_B: Which series the target can be scored in, bool; None for all.
        """
        ...

    def counts(self, target: Tensor, known_B: Tensor | None) -> Tensor:
        """What the mean of a part is over, (size,) float64; those of several parts add up."""
        ...

    def denominator(self, counts_n: Tensor) -> Tensor:
        """By what a sum is divided for the mean, of counts that were added up; (..., n) to (...)."""
        ...


class SeriesLoss:
    """A loss that is a mean over series; what follows it says what one series contributes, in `each`."""

    size = 1

    def each(self, output: Tensor, target: Tensor) -> Tensor:
        """What each series contributes, (B,); finite also where it is not scored."""
        raise NotImplementedError

    def scored(self, target: Tensor, known_B: Tensor | None) -> Tensor | None:
        """Which series are scored, (B,) bool; None for all."""
        return known_B

    def __call__(self, output: Tensor, target: Tensor, known_B: Tensor | None) -> Tensor:
        """The mean over the scored series of a part; 0 where there is none."""
        series_B, scored_B = self.each(output, target), self.scored(target, known_B)
        if scored_B is None:
            return series_B.mean()
        return (series_B * scored_B).sum() / scored_B.sum().clamp(min=1)

    def counts(self, target: Tensor, known_B: Tensor | None) -> Tensor:
        """How many series are scored."""
        scored_B = self.scored(target, known_B)
        count = target.new_full((), len(target), dtype=torch.float64) if scored_B is None else scored_B.sum()
        return count.double()[None]

    def denominator(self, counts_n: Tensor) -> Tensor:
        """The series."""
        return counts_n[..., 0].clamp(min=1)


def check_names(terms: tuple[TermConfig, ...]) -> None:
    """Refuse terms that would share a curve.

    Raises:
        WrongUse: Names the key.
    """
    names = [term.shown for term in terms]
    for name in names:
        if name in ("loss", "norm"):
            raise WrongUse(f"losses: {name!r} is taken; give the term another name")
        if names.count(name) > 1:
            raise WrongUse(f"losses: {names.count(name)} terms are called {name!r}; give each a name of its own")
    if not terms:
        raise WrongUse("losses: one term or more is needed")


def check_outputs(terms: tuple[TermConfig, ...], outputs: Mapping[str, object] | tuple[str, ...]) -> None:
    """Refuse terms about outputs that no head gives.

    Raises:
        WrongUse: Names the key and what there is.
    """
    for number, term in enumerate(terms):
        if term.of not in outputs:
            raise WrongUse(f"losses[{number}].of {term.of!r}: no head gives it; there is {', '.join(outputs)}")
