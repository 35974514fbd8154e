"""The plots of a study: score against labels, differences to the first arm, detectability by size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetune.evaluation.areas import Estimate
from finetune.evaluation.compare import WITHIN
from finetune.report.charts import COLOURS, GREY, forest, name_ticks
from finetune.study.compared import Compared
from finetune.study.config import PROBE, StudyConfig
from finetune.study.findings import WHERE, pretrained_arms
from finetune.study.pairs import Detected, arms_in
from harmonize.terminal import printable

WIDE = 6.6
"""Inches; text of 9 points can still be read where this is shown 360 pixels wide."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
DODGE = 0.03
"""Share by which the arms' places are moved apart along the axis of labels."""


def figure_scores(config: StudyConfig, compared: Sequence[Compared], *, measure: str = WITHIN) -> Figure:
    """Score against the number of labelled series, a panel a split; bands are the 95 % intervals."""
    splits = list(dict.fromkeys(one.split for one in compared))
    figure = Figure(figsize=(WIDE, 3.0 * len(splits) + 0.8), layout="constrained")
    panels = figure.subplots(len(splits), 1, sharex=True, squeeze=False)[:, 0]
    names = list(dict.fromkeys(
        run.name for one in compared for run in one.comparison.runs if np.isfinite(run.scores[measure].value)
    ))  # fmt: skip
    for panel, split in zip(panels, splits, strict=True):
        own = [one for one in compared if one.split == split]
        panel.axhline(0.5, color=GREY, linewidth=1, linestyle="--")
        for place, name in enumerate(names):
            points = [(one.labelled, one.score(name, measure)) for one in own if name in one.arms]
            _curve(panel, points, name, place, len(names))
        panel.set_xscale("log", base=2)
        panel.set_xticks(list(config.design.labels), [str(count) for count in config.design.labels], fontsize=9)
        panel.minorticks_off()
        panel.set_ylabel(measure, fontsize=9)
        panel.set_title(WHERE.get(split, split), loc="left", fontsize=10)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=9)
    panels[-1].set_xlabel("labelled series", fontsize=9)
    _add_legend(figure, panels)
    return figure


def _curve(panel: Axes, points: Sequence[tuple[int, Estimate]], name: str, place: int, count: int) -> None:
    if not points:
        return
    colour, is_probe = COLOURS[place % len(COLOURS)], name.startswith(PROBE)
    x = [labelled * (1 + DODGE * (place - (count - 1) / 2)) for labelled, _ in points]
    lows, highs = ([getattr(one.interval, bound) for _, one in points] for bound in ("low", "high"))
    panel.vlines(x, lows, highs, color=colour, linewidth=1.2)
    panel.plot(
        x,
        [one.value for _, one in points],
        marker=MARKERS[place % len(MARKERS)],
        linestyle=":" if is_probe else DASHES[place % len(DASHES)],
        color=colour,
        markersize=5,
        label=printable(name),
    )


def figure_differences(config: StudyConfig, compared: Sequence[Compared], *, measure: str = WITHIN) -> Figure:
    """Each pretrained arm minus the first, with paired intervals; the line is no difference."""
    rows = [
        (f"{one.labelled}, {WHERE.get(one.split, one.split)}: {arm}", one.difference(arm, measure))
        for one in compared
        for arm in pretrained_arms(config, one)
    ]
    figure = Figure(figsize=(WIDE, 1.0 + 0.32 * len(rows)), layout="constrained")
    axis = figure.subplots()
    forest(axis, rows, guess=0.0)
    bounds = [abs(bound) for _, one in rows for bound in (one.interval.low, one.interval.high) if bound == bound]
    reach = 1.1 * max([0.02, *bounds])
    axis.set_xlim(-reach, reach)
    axis.set_xlabel(f"difference of {measure} to {config.arms[0].name}", fontsize=9)
    return figure


def figure_detected(found: Sequence[Detected], *, by: str) -> Figure:
    """Share of pairs whose score is higher with the sac, by group; a panel a number of labelled series."""
    counts = list(dict.fromkeys(one.labelled for one in found))
    figure = Figure(figsize=(WIDE, 2.6 * len(counts) + 0.8), layout="constrained")
    panels = figure.subplots(len(counts), 1, sharex=True, squeeze=False)[:, 0]
    arms = arms_in(found)
    own_groups = list(dict.fromkeys((one.group, one.pairs) for one in found if one.by == by))
    for panel, labelled in zip(panels, counts, strict=True):
        panel.axhline(0.5, color=GREY, linewidth=1, linestyle="--")
        for place, arm in enumerate(arms):
            own = {one.group: one.share for one in found if (one.by, one.labelled, one.arm) == (by, labelled, arm)}
            if not own:
                continue
            x = [number + 0.12 * (place - (len(arms) - 1) / 2) for number, _ in enumerate(own_groups)]
            shares = [own[group] for group, _ in own_groups]
            colour = COLOURS[place % len(COLOURS)]
            panel.vlines(x, [one.interval.low for one in shares], [one.interval.high for one in shares], color=colour)
            panel.plot(
                x, [one.value for one in shares], MARKERS[place % len(MARKERS)], color=colour, markersize=5,
                label=printable(arm),
            )  # fmt: skip
        name_ticks(panel.xaxis, [f"{group} ({pairs})" for group, pairs in own_groups])
        panel.set_ylim(-0.02, 1.02)
        panel.set_ylabel("higher with the sac", fontsize=9)
        panel.set_title(f"{labelled} labelled series", loc="left", fontsize=10)
        panel.grid(alpha=0.3, axis="y")
    _add_legend(figure, panels)
    return figure


def _add_legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """Of all panels: an arm may be missing in one."""
    handles, labels = zip(*(panel.get_legend_handles_labels() for panel in panels), strict=True)
    named = dict(zip(chain(*labels), chain(*handles), strict=True))
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
