"""The section of a report that says whether findings are seen where they are."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetune.evaluation.localisation import HIT_MM, RATES, SIZE_RATE, Localisation, Rate
from finetune.evaluation.text import HIT_RATE, interval, left_out_lines
from finetune.report.charts import BLUE, GREY, WIDE
from harmonize.page import Page


def add_localisation(page: Page, found: Localisation) -> None:
    """Add the hit rate, the FROC curve, and what is found by size and by site."""
    page.heading(HIT_RATE)
    page.text(
        f"Of {found.series} series with {found.findings} marked findings, whether the place that the network is surest "
        f"of lies within {HIT_MM:g} mm of one, or within its radius where that is known to be more. A finding outside "
        "of what the network saw is missed."
    )
    for line in left_out_lines(found):
        page.text(line[0].upper() + line[1:] + ".")
    rows: list[list[object]] = [
        [one.name, one.count, interval(one.share)] for one in (*found.by_modality, found.hit_rate)
    ]
    page.table(["modality", "series with findings", "surest place hits"], rows)
    page.text(
        f"Half of these hits lie within {found.distance_mm:.1f} mm of the point; {interval(found.named.share)} of "
        f"{found.named.count} are given the label of the finding."
    )
    page.figure(
        figure_froc(found),
        caption="FROC: the share of findings that a candidate hits over how many candidates a series hit none, in all "
        "series, with and without findings; dots: the rates of the table, with intervals over patients.",
    )
    at_rates: list[list[object]] = [[one.name, interval(one.share)] for one in found.froc]
    page.table(["false candidates a series", "sensitivity"], [*at_rates, ["mean", interval(found.mean)]])
    for title, groups in (("size", found.sizes), ("site", found.sites)):
        if groups:
            page.text(f"By {title}, where there is {SIZE_RATE:g} false candidate a series.")
            page.table([title, "findings", "found"], _rows(groups))


def _rows(groups: Sequence[Rate]) -> list[list[object]]:
    return [[one.name, one.count, interval(one.share)] for one in groups]


def figure_froc(found: Localisation) -> Figure:
    """Sensitivity over false candidates a series, on a scale of powers of two."""
    figure = Figure(figsize=(WIDE * 0.6, 3.6), layout="constrained")
    axis: Axes = figure.subplots()
    # From the left edge on the curve has the height that it reaches there.
    before = found.curve[found.curve[:, 0] < RATES[0]]
    start = [(RATES[0], float(before[-1, 1]) if len(before) else 0.0)]
    inside = found.curve[(found.curve[:, 0] >= RATES[0]) & (found.curve[:, 0] <= RATES[-1])]
    steps = [*start, *map(tuple, inside.tolist())]
    steps.append((RATES[-1], steps[-1][1]))
    axis.step([false for false, _ in steps], [share for _, share in steps], where="post", color=BLUE)
    values = [one.share.value for one in found.froc]
    below = [max(0.0, one.share.value - one.share.interval.low) for one in found.froc]
    above = [max(0.0, one.share.interval.high - one.share.value) for one in found.froc]
    axis.errorbar(RATES, values, yerr=[below, above], fmt="o", color=BLUE, ecolor=GREY, capsize=3, markersize=5)
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(RATES), [f"{rate:g}" for rate in RATES])
    axis.set(ylim=(0, 1.02), xlabel="false candidates a series", ylabel="sensitivity")
    axis.grid(alpha=0.3)
    return figure
