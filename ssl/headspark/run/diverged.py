"""What it means that a run has diverged: there is nothing to go on from, and nothing worth exporting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from torch import nn

from harmonize.errors import UserError


class Diverged(UserError):
    """A run's losses, gradients or weights are not finite any more.

    Args:
        step: When that was seen.
        reason: What is not finite, or how many steps in a row were skipped.
        advice: What to do.
    """

    def __init__(self, step: int, reason: str, *, advice: str) -> None:
        super().__init__(f"diverged at step {step}: {reason}; {advice}")
        self.step, self.reason = step, reason

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        return {"step": self.step, "reason": self.reason}


def all_finite(modules: Iterable[nn.Module | None]) -> bool:
    """Whether every parameter and buffer is a finite number."""
    return all(
        bool(torch.isfinite(value).all())
        for module in modules
        if module is not None
        for value in module.state_dict().values()
        if value.is_floating_point()
    )


def reason_at_end(
    *, steps: int, skipped: int, skipped_in_a_row: int, finite_weights: bool, finite_scores: bool | None
) -> str | None:
    """Why a run that has taken its last step is no result, if it is none.

    A single bad batch at the very end says nothing about weights that score well; a row of skipped steps does, and so
    does a score that is not finite.

    Args:
        steps: Of the run.
        skipped: Steps whose loss or gradient was not finite, and which changed nothing.
        skipped_in_a_row: The last so many of them.
        finite_weights: Of the model and its moving average.
        finite_scores: Of the model on what was held out; None where nothing was.

    Example:
        >>> reason_at_end(steps=9, skipped=1, skipped_in_a_row=1, finite_weights=True, finite_scores=True)
        >>> reason_at_end(steps=9, skipped=1, skipped_in_a_row=1, finite_weights=True, finite_scores=None)
        'its last step was skipped, because its loss or gradient was not finite'
    """
    if not finite_weights:
        return "its weights are not finite"
    if skipped >= steps:
        return "not one step had a finite loss and gradient"
    if skipped_in_a_row > 1:
        return f"its last {skipped_in_a_row} steps were skipped, because their loss or gradient was not finite"
    if finite_scores is False:
        return "what it says of held-out scans is not finite"
    if skipped_in_a_row == 1 and finite_scores is None:
        return "its last step was skipped, because its loss or gradient was not finite"
    return None


def divergence(state: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str | None:
    """What run.json and metrics.jsonl say about a run that has diverged; None where they say nothing of the kind.

    Version 0.1.0 wrote no such status, so the last losses count too.

    Example:
        >>> divergence({"status": "diverged", "diverged": {"step": 4, "reason": "its weights are not finite"}}, [])
        'diverged at step 4: its weights are not finite'
        >>> divergence({"status": "finished"}, [{"step": 8, "loss": 0.3}, {"step": 9, "val_loss": float("inf")}])
        'diverged: val_loss is not finite at step 9'
    """
    found = state.get("diverged")
    if isinstance(found, Mapping):
        return f"diverged at step {found.get('step')}: {' '.join(str(found.get('reason')).split())}"
    for name in ("val_loss", "loss"):
        line = next((line for line in reversed(metrics) if name in line), None)
        if line is not None and (line[name] is None or not isfinite(line[name])):
            return f"diverged: {name} is not finite at step {line['step']}"
    return None
