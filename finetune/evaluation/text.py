"""An evaluation or a comparison in lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from finetune.evaluation import Evaluation
from finetune.evaluation.answers import Measured, Worth
from finetune.evaluation.areas import Estimate, LabelAreas
from finetune.evaluation.compare import Comparison
from finetune.evaluation.localisation import HIT_MM, SIZE_RATE, Localisation
from finetune.evaluation.measures import NAMES
from finetune.evaluation.thresholds import averaged, summed

HIT_RATE = f"Hit rate within {HIT_MM:g} mm"


def evaluation_lines(found: Evaluation) -> Iterator[str]:
    """All but the pictures of the report, under its headings."""
    predictions = found.predictions
    patients = len(set(predictions.subjects_N))
    yield f"{predictions.name}: {len(predictions.scan_ids_N)} series of {patients} patients"
    yield f"intervals: 95 %, {found.draws} draws of patients; - where a number is undefined"
    yield from predictions.notes
    yield ""
    yield f"Within-modality AUC ({predictions.overall})"
    of_groups = [[one.name, *_counts(one), interval(one.roc)] for one in found.within.groups]
    mean = [["mean over modalities", "", "", interval(found.within.mean)]] if of_groups else []
    pooled = ["all together", *_counts(_overall(found)), interval(found.within.pooled)]
    yield from table(["modality", "series", "positive", "AUC"], [*of_groups, *mean, pooled])
    yield ""
    yield "By site and size"
    sensitivity = {one.name: interval(one.sensitivity) for one in found.sites}
    rows = [
        [one.name, one.positives, interval(one.roc), sensitivity[one.name]]
        for one in found.labels
        if one.name in sensitivity
    ]
    yield from table(["site", "positive", "AUC", "found at 90 % specificity"], rows)
    for one in found.sizes:
        yield f"  {one.name}: {one.series} series, found {interval(one.sensitivity)}"
    yield ""
    yield "Shortcuts"
    names = [one.name for one in found.baselines]
    rows = [
        [one.name, number(one.roc.value), *(number(base.areas[one.name].value) for base in found.baselines)]
        for one in found.labels
    ]
    within = [number(found.within.mean.value), *(number(one.within.value) for one in found.baselines)]
    rows.append([f"{predictions.overall}, within modality", *within])
    yield from table(["AUC of", "model", *(f"{name} alone" for name in names)], rows)
    yield ""
    yield "Calibration"
    rows = [
        [
            one.name,
            number(one.temperature),
            number(one.before.error),
            "-" if one.after is None else number(one.after.error),
        ]
        for one in found.calibration
    ]
    yield from table(["label", "temperature", "calibration error", "with temperature"], rows)
    yield ""
    yield "Thresholds"
    rows = [
        [one.name, one.rule, probability(one.value), *map(number, _shares(one.confusion))] for one in found.thresholds
    ]
    of_sites = [one.confusion for one in found.thresholds if one.name != predictions.overall]
    if of_sites:
        rows.append(["micro average of the sites", "", "", *map(number, _shares(summed(of_sites)))])
        rows.append(["macro average of the sites", "", "", *map(number, averaged(of_sites).values())])
    yield from table(["label", "rule", "threshold", "precision", "sensitivity", "specificity", "F1"], rows)
    yield ""
    yield "ROC and PR"
    rows = [[one.name, one.positives, interval(one.roc), interval(one.precision)] for one in found.labels]
    if predictions.sites:
        micro = found.micro
        rows.append(["micro average of the sites", micro.positives, interval(micro.roc), interval(micro.precision)])
        rows.append(["macro average of the sites", "", interval(found.macro), ""])
    rows.append([f"mean of {predictions.overall} and macro", "", number(found.score), ""])
    yield from table(["label", "positive", "AUC", "average precision"], rows)
    yield ""
    yield "Most confident mistakes"
    rows = [[one.scan_id, "missed" if one.truth else "false alarm", probability(one.probability), one.site]
            for one in found.mistakes]  # fmt: skip
    yield from table(["series", "what", "probability", "site"], rows)
    if found.localisation is not None:
        yield ""
        yield from localisation_lines(found.localisation)


def localisation_lines(found: Localisation) -> Iterator[str]:
    """Whether findings are seen where they are."""
    yield HIT_RATE
    yield f"{found.findings} findings in {found.series} series; median distance of hits {found.distance_mm:.1f} mm"
    yield from left_out_lines(found)
    rows = [[one.name, one.count, interval(one.share)] for one in (*found.by_modality, found.hit_rate)]
    yield from table(["modality", "series with findings", "surest candidate hits"], rows)
    yield f"  right label: {interval(found.named.share)} of {found.named.count} hits"
    yield ""
    yield "FROC"
    rows = [[one.name, interval(one.share)] for one in found.froc]
    yield from table(["false candidates a series", "sensitivity"], [*rows, ["mean", interval(found.mean)]])
    for title, groups in (("size", found.sizes), ("site", found.sites)):
        if groups:
            yield ""
            rows = [[one.name, one.count, interval(one.share)] for one in groups]
            yield from table([title, "findings", f"found at {SIZE_RATE:g} false a series"], rows)


def left_out_lines(found: Localisation) -> Iterator[str]:
    """Which series were not compared, if any."""
    if found.left_out:
        yield "left out: " + ", ".join(f"{count} {why}" for why, count in sorted(found.left_out.items()))


def answers_lines(found: Worth) -> Iterator[str]:
    """What answers to a table's question are worth."""
    answers, overall = found.answers, found.overall
    yield f"{answers.name}: {answers.asks}, {overall.series} series of {overall.patients} patients"
    yield f"intervals: 95 %, {found.draws} draws of patients; - where a number is undefined"

    def rows(first: str, measured: Sequence[Measured]) -> Iterator[str]:
        columns = [first, "series", *(NAMES[name] for name in measured[0].measures)]
        yield ""
        yield from table(columns, [[one.name, one.series, *map(interval, one.measures.values())] for one in measured])

    yield from rows("of", [overall])
    if len(found.labels) > 1:
        yield from rows("label", found.labels)
    for group, measured in found.groups.items():
        yield from rows(group, measured)


def comparison_lines(found: Comparison) -> Iterator[str]:
    """The scores of each run, and how they differ."""
    yield f"{found.series} series of {found.patients} patients that all runs predicted"
    yield f"intervals: 95 %, {found.draws} draws of patients, the same for all runs"
    yield from found.notes
    yield ""
    yield from table(
        ["run", *found.measures],
        [[one.name, *(interval(one.scores[name]) for name in found.measures)] for one in found.runs],
    )
    yield ""
    rows = [
        [f"{one.name} - {one.baseline}", *(difference(one.differences[name]) for name in found.measures)]
        for one in found.differences
    ]
    yield from table(["difference", *found.measures], rows)
    yield "* the interval leaves out 0"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Lines of a table with aligned columns.

    Example:
        >>> list(table(["label", "n"], [["a", 10], ["bc", 5]]))
        ['  label   n', '  a      10', '  bc      5']
    """
    texts = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(columns))]
    for row in texts:
        first, *others = (
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  " + "  ".join([first, *others]).rstrip()


def number(value: float) -> str:
    """Three decimals; a dash where it is undefined."""
    return "-" if np.isnan(value) else f"{value:.3f}"


def behind(estimate: Estimate) -> str:
    """The interval of a number, to stand behind what the number is; nothing where it is undefined."""
    low, high = estimate.interval.low, estimate.interval.high
    return "" if np.isnan(low) else f"; 95 %: {number(low)} to {number(high)}"


def probability(value: float) -> str:
    """Three decimals, or three digits where it is small, as those of rare sites are; a dash where it is undefined.

    Example:
        >>> probability(0.8), probability(0.00115)
        ('0.800', '0.00115')
    """
    return number(value) if not value < 0.1 else f"{value:.3g}"


def interval(estimate: Estimate) -> str:
    """A number with its interval.

    Example:
        >>> from finetune.metrics import Interval
        >>> interval(Estimate(value=0.5, interval=Interval(low=0.25, high=0.75, defined=1.0)))
        '0.500 (0.250 to 0.750)'
    """
    low, high = estimate.interval.low, estimate.interval.high
    if np.isnan(estimate.value) or np.isnan(low):
        return number(estimate.value)
    return f"{number(estimate.value)} ({number(low)} to {number(high)})"


def difference(estimate: Estimate) -> str:
    """The same with its sign, and a star where the interval leaves out 0."""
    low, high = estimate.interval.low, estimate.interval.high
    if np.isnan(estimate.value) or np.isnan(low):
        return "-" if np.isnan(estimate.value) else f"{estimate.value:+.3f}"
    return f"{estimate.value:+.3f} ({low:+.3f} to {high:+.3f}){'*' if low > 0 or high < 0 else ''}"


def _overall(found: Evaluation) -> LabelAreas:
    return next(one for one in found.labels if one.name == found.predictions.overall)


def _counts(areas: LabelAreas) -> tuple[int, int]:
    return areas.series, areas.positives


def _shares(confusion: object) -> tuple[float, ...]:
    return tuple(getattr(confusion, name) for name in ("precision", "sensitivity", "specificity", "f1"))
