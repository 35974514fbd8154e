"""What is said about a series: the probabilities of its labels, or why there are none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model says about a series.

    Attributes:
        series: A name for the series, unique in the folder that was asked about.
        probabilities: By label, in the task's order.
        decisions: What harmonize found and did, in order.
        warnings: Those of the decisions that are no matter of course: slices that are missing, pictures left out ...
    """

    series: str
    probabilities: dict[str, float]
    decisions: list[str]
    warnings: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnswer:
    """Why a series cannot be used.

    Attributes:
        series: As in `Answer`.
        reason: A code of docs/rejections.md.
        message: One line.
    """

    series: str
    reason: str
    message: str
