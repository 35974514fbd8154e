"""The page of several runs side by side: their scores on the same series, and how they differ from the first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from finetune.evaluation.compare import Comparison
from finetune.evaluation.text import difference, interval
from finetune.report.charts import ROW, WIDE, forest
from harmonize.page import Page

COLUMNS = 2
"""Panels beside each other: more could not be read on a telephone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """What a reader should know of a run.

    Attributes:
        name: Of the run.
        view: What it sees.
        encoder: What looks at that.
        parameters: Of all that was trained.
        minutes: That its training took, all folds together.
        folds: That are finished.
    """

    name: str
    view: str
    encoder: str
    parameters: int
    minutes: float
    folds: int


def write_comparison(path: Path, found: Comparison, contenders: Sequence[Contender], *, notes: Sequence[str]) -> None:
    """Write the page.

    Args:
        path: Of the file.
        found: The comparison.
        contenders: What its runs are, in their order.
        notes: Further lines for its reader.
    """
    lead = (
        f"{found.series} held-out series of {found.patients} patients that all runs predicted. Intervals hold 95 % of "
        f"{found.draws} draws of patients, the same draws for all runs; those of differences are of pairs."
    )
    page = Page("Views side by side", lead=lead)
    for note in (*found.notes, *notes):
        page.text(note)
    page.heading("Runs")
    page.table(
        ["run", "view", "encoder", "parameters (million)", "folds", "training (minutes)"],
        [
            [one.name, one.view, one.encoder, round(one.parameters / 1e6, 2), one.folds, round(one.minutes, 1)]
            for one in contenders
        ],
    )
    page.heading("Scores")
    page.table(
        ["run", *found.measures],
        [[one.name, *(interval(one.scores[name]) for name in found.measures)] for one in found.runs],
    )
    page.figure(figure_scores(found), caption="Each run's score with its own interval; the line is that of a guess.")
    page.heading("Paired differences")
    page.text("Each run minus another. * the interval leaves out 0.")
    page.table(
        ["difference", *found.measures],
        [
            [f"{one.name} - {one.baseline}", *(difference(one.differences[name]) for name in found.measures)]
            for one in found.differences
        ],
    )
    page.write(path)


def figure_scores(found: Comparison) -> Figure:
    """A panel a measure, two beside each other, a row a run; all have one scale, of which no more than is used."""
    lines = -(-len(found.measures) // COLUMNS)
    figure = Figure(figsize=(WIDE, lines * (0.9 + 1.2 * ROW * len(found.runs))), layout="constrained")
    panels = figure.subplots(lines, COLUMNS, sharey=True, squeeze=False).flatten()
    lows = [one.scores[measure].interval.low for one in found.runs for measure in found.measures]
    lowest = min([0.5, *(low for low in lows if math.isfinite(low))])
    for panel, measure in zip(panels, found.measures, strict=False):
        forest(panel, [(one.name, one.scores[measure]) for one in found.runs])
        panel.set_xlim(lowest - 0.05, 1.02)
        panel.set_title(measure, loc="left")
    for panel in panels[len(found.measures) :]:
        panel.remove()
    return figure


def facts_of(contenders: Sequence[Contender]) -> list[Mapping[str, object]]:
    """The same for JSON."""
    return [{name: getattr(one, name) for name in Contender.__slots__} for one in contenders]
