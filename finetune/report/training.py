"""How a run was trained: its losses and held-out scores by step, with the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from finetune.evaluation.measures import CORRELATION, MAE, R2
from finetune.evaluation.overlap import DICE, DISTANCE
from finetune.report.charts import COLOURS, GREY
from headspark.run.curves import has_number, plot_metric

STAGE_TINTS = ("#e8f1f5", "#f7efe6", "#eef0f2", "#f3eaf3")
STYLES = ("-", "--", "-.", ":")
UNBOUNDED = frozenset({R2, CORRELATION})
"""Scores that no guess has half of; the error of a number, whose unit is the table's, is not drawn."""

MINOR_DIGITS = "2357"
"""Of a logarithmic axis: ticks between the powers of ten that have a number."""

TOTAL, AFTER_LOSSES, SCORE = "loss", "gradient_norm", "score"


def figure_curves(metrics: Sequence[Mapping[Any, Any]]) -> Figure:
    """Training losses above, held-out scores below, over the optimizer steps, with the stages as bands.

    Args:
        metrics: The lines of metrics.jsonl; what a line lacks may be absent, None or NaN.
    """
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    losses, areas = figure.subplots(2, 1, sharex=True)
    for axis in (losses, areas):
        _mark_stages(axis, metrics, named=axis is losses)
        axis.grid(alpha=0.3)
    terms = loss_names(metrics)
    for number, name in enumerate(terms[:1] if len(terms) == 2 else terms):  # one term alone is the loss
        style, colour = STYLES[number % len(STYLES)], COLOURS[number % len(COLOURS)]
        plot_metric(losses, metrics, name, label=name, style=style, color=colour)
    losses.set(ylabel="training loss", yscale="log")
    losses.yaxis.set_major_formatter(FuncFormatter(_plain))
    losses.yaxis.set_minor_formatter(FuncFormatter(_plain_of_some))
    losses.legend(loc="upper right", fontsize=9, ncols=4)
    scores = [name for name in score_names(metrics) if name not in (MAE, DISTANCE)]
    shown = [name for name in scores if name != SCORE or not _is_said_already(metrics, scores)]
    for number, name in enumerate(shown):
        style, colour = f"{'osD^'[number % 4]}-", COLOURS[number % len(COLOURS)]
        label = name.replace("_", " ").replace("auc", "AUC")
        plot_metric(areas, metrics, name, label=label, style=style, color=colour)
    areas.set(xlabel="optimizer step", ylabel="held-out score")
    if not any(name in UNBOUNDED for name in shown):
        areas.set(ylim=(0, 1.02))
        if DICE in shown:
            areas.set(ylabel="held-out Dice")
        else:
            areas.axhline(0.5, color=GREY, linewidth=1, linestyle="--")
    if areas.get_legend_handles_labels()[0]:
        areas.legend(loc="best", fontsize=9)
    return figure


def loss_names(metrics: Sequence[Mapping[Any, Any]]) -> list[str]:
    """The losses of a training line, the whole one first: they stand before the norm of the gradient.

    Example:
        >>> loss_names([{"step": 1, "stage": "all", "loss": 1.0, "labels": 0.5, "gradient_norm": 2.0}])
        ['loss', 'labels']
    """
    line = next((list(line) for line in metrics if has_number(line, TOTAL)), [])
    return line[line.index(TOTAL) : line.index(AFTER_LOSSES)] if AFTER_LOSSES in line else line and [TOTAL]


def score_names(metrics: Sequence[Mapping[Any, Any]]) -> list[str]:
    """The numbers of a validation's line, those that the score is the mean of first.

    Example:
        >>> score_names([{"step": 1, "loss": 1.0, "score": None}, {"step": 1, "loss": None, "mean": 0.6, "score": 0.7}])
        ['mean', 'score']
    """
    found = dict.fromkeys(
        name
        for line in metrics
        if has_number(line, SCORE)
        for name in line
        if name != "step" and has_number(line, name)
    )
    return list(found)


def _is_said_already(metrics: Sequence[Mapping[Any, Any]], scores: Sequence[str]) -> bool:
    """Whether one of the other numbers is the score."""
    lines = [line for line in metrics if has_number(line, SCORE)]
    others = [name for name in scores if name != SCORE]
    return any(all(line.get(name) == line[SCORE] for line in lines) for name in others)


def _plain(value: float, _: int | None) -> str:
    """A number without powers of ten.

    Example:
        >>> _plain(0.6, None), _plain(10.0, None)
        ('0.6', '10')
    """
    return f"{value:g}"


def _plain_of_some(value: float, _: int | None) -> str:
    return f"{value:g}" if f"{value:e}"[0] in MINOR_DIGITS else ""


def _mark_stages(axis: Axes, metrics: Sequence[Mapping[Any, Any]], *, named: bool) -> None:
    start = 0
    for number, (name, lines) in enumerate(groupby(metrics, key=lambda line: line["stage"])):
        end = max(line["step"] for line in lines)
        axis.axvspan(start, end, color=STAGE_TINTS[number % len(STAGE_TINTS)], zorder=0)
        if named:
            axis.text((start + end) / 2, 1.01, name, transform=axis.get_xaxis_transform(), ha="center", fontsize=9)
        start = end
