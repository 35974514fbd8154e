"""Training of small networks, done in minutes: one group of weights, one rate that rises and falls, no checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from harmonize.progress import Progress

LEAST = 0.01
"""Of the rate, at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long, and how fast.

    Attributes:
        steps: Of the optimizer.
        rate: Highest rate.
        warmup: Steps in which it is reached; then it falls as half a cosine.
        weight_decay: AdamW's.
    """

    steps: int
    rate: float
    warmup: int
    weight_decay: float


def train_briefly(
    network: nn.Module,
    plan: Plan,
    loss_of: Callable[[int], tuple[Tensor, Mapping[str, str]]],
    *,
    name: str,
    asked: Callable[[], bool],
) -> bool:
    """Train a network in place.

    Args:
        network: In training mode.
        plan: See `Plan`.
        loss_of: The loss of a step, by its number, and what else its progress shows.
        name: That the progress is shown by.
        asked: Whether to stop.

    Returns:
        Whether all steps were taken.
    """
    optimizer = AdamW(network.parameters(), lr=plan.rate, weight_decay=plan.weight_decay)
    with Progress(name, total=plan.steps, unit="steps") as progress:
        for step in range(plan.steps):
            if asked():
                return False
            decay = 0.5 * (1 + math.cos(math.pi * step / plan.steps))
            optimizer.param_groups[0]["lr"] = plan.rate * min(1.0, (step + 1) / plan.warmup) * max(decay, LEAST)
            loss, shown = loss_of(step)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            progress.advance(1, loss=f"{loss.item():.2f}", **shown)
    return True
