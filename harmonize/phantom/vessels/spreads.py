"""How sizes are spread: each is drawn by a single number of a generator, so that kinds of heads differ in it alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import special


class Spread(Protocol):
    """A distribution of a size."""

    def draw(self, rng: np.random.Generator) -> float:
        """One value, by one number of `rng`."""
        ...


@dataclass(frozen=True, slots=True)
class Even:
    """As often anywhere between two ends."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """One value, by one number of `rng`."""
        return float(rng.uniform(self.low, self.high))


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Log-normal, cut at two ends.

    Attributes:
        median: Of what is not cut.
        sigma: Standard deviation of the logarithm.
        low: What is smaller is not drawn.
        high: Nor is what is larger.
    """

    median: float
    sigma: float
    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """One value, by one number of `rng`."""
        low, high = special.ndtr(np.log(np.array([self.low, self.high]) / self.median) / self.sigma)
        return float(self.median * np.exp(self.sigma * special.ndtri(rng.uniform(low, high))))
