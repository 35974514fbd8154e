"""Curves of what a run measured, from the lines of its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from matplotlib.axes import Axes


def plot_metric(
    axes: Axes,
    metrics: Sequence[Mapping[Any, Any]],
    name: str,
    *,
    label: str,
    style: str = "-",
    color: str | None = None,
) -> None:
    """Draw one number by step; a line without points where none has it.

    Args:
        axes: To draw on.
        metrics: Lines of metrics.jsonl; the number may be absent, None or not finite in any of them.
        name: Of the number.
        label: For the legend.
        style: As matplotlib takes it, ``o-`` for few points.
        color: As matplotlib takes it; None: the next one.
    """
    lines = [line for line in metrics if has_number(line, name)]
    steps, values = [line["step"] for line in lines], [line[name] for line in lines]
    axes.plot(steps, values, style, label=label, color=color, markersize=4)


def has_number(line: Mapping[Any, Any], name: str) -> bool:
    """Whether a line has a finite number of that name."""
    value = line.get(name)
    return isinstance(value, int | float) and isfinite(value)
