"""What is said before the first run: what will be compared, and the smallest difference that can be seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.evaluation.compare import WITHIN
from finetune.evaluation.text import table
from finetune.metrics import LEVEL
from finetune.study.compared import ASKED, LEAST_SACS
from finetune.study.config import StudyConfig
from finetune.study.power import Power, power_of
from finetune.study.table import INSIDE, OUTSIDE, PLAN, Study, cell_path
from harmonize.files import write_json
from harmonize.phantom.rsna.plan import PAIRS
from harmonize.phantom.rsna.prevalence import MODALITIES, SHARE
from harmonize.phantom.vessels import MEAN_COUNT, SITE_WEIGHTS
from headspark.config import to_plain

STUDY, PAGE, NUMBERS = "study.yaml", "study.html", "study.json"
"""Beside `PLAN`: the study's recipe, as it began; and what it says, as a page and as numbers."""

COMPUTED_NOW = "by the formulas of this version"
"""What is said of numbers that should have been kept from before the first cell, and were not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a study should be able to see.

    Attributes:
        beforehand: Whether that was said before its first cell; else it was computed with its results.
        assumed: As `finetune.study.config.PowerConfig` has it.
        power: By measure, then split: ``series``, ``difference_error``, ``smallest``, and more.
    """

    beforehand: bool
    assumed: Mapping[str, float]
    power: Mapping[str, Mapping[str, Mapping[str, Any]]]

    def smallest(self, measure: str, split: str) -> float | None:
        """The smallest true difference that can be seen; None where nothing was said of it."""
        found = self.power.get(measure, {}).get(split)
        return None if found is None else float(found["smallest"])

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        said = "beforehand" if self.beforehand else COMPUTED_NOW
        return {"said": said, "assumed": dict(self.assumed), "power": self.power}


def planned(study: Study) -> Planned:
    """What was said before the first cell of a study; computed where that was not kept."""
    if study.planned is not None:
        return Planned(beforehand=True, **study.planned)
    return Planned(beforehand=False, assumed=asdict(study.config.power), power=power_facts(study.config))


def powers(config: StudyConfig) -> dict[tuple[str, str], Power]:
    """What can be seen by each measure of `ASKED` in the held-out series of each split."""
    sizes = {INSIDE: config.data.inside, OUTSIDE: config.data.outside_series}
    return {
        (measure, split): power_of(config.power, series=count, seeds=len(config.design.seeds), shares=shares)
        for measure in ASKED
        for split, count in sizes.items()
        if (shares := areas_of(measure, count))
    }


def areas_of(measure: str, series: int) -> list[tuple[float, float]]:
    """The areas that a measure is the mean of: share of the series that are positive in each, and negative.

    Half of a phantom's series are ill. Sites are as frequent as in medium and hard ones; only those count that
    `LEAST_SACS` are expected at.
    """
    if measure == WITHIN:
        halves = [PAIRS.count(modality) / len(PAIRS) / 2 for modality in MODALITIES]
        return [(half, half) for half in halves]
    weights = SITE_WEIGHTS["hard"]
    shares = [SHARE * MEAN_COUNT * weight / sum(weights) for weight in weights]
    return [(share, 1 - share) for share in shares if share * series >= LEAST_SACS]


def comparisons(config: StudyConfig) -> int:
    """Differences to the first arm that are shown with an interval."""
    return len(config.design.labels) * (len(config.arms) - 1) * len(ASKED) * len((INSIDE, OUTSIDE))


def facts(config: StudyConfig) -> dict[str, Any]:
    """All of it for JSON."""
    return {
        "study": to_plain(config),
        "cells": [cell.name for cell in config.cells()],
        "comparisons": comparisons(config),
        "level": LEVEL,
        "assumed": asdict(config.power),
        "power": power_facts(config),
    }


def power_facts(config: StudyConfig) -> dict[str, dict[str, Any]]:
    """`powers` for JSON: measure, then split."""
    found: dict[str, dict[str, Any]] = {}
    for (measure, split), one in powers(config).items():
        found.setdefault(measure, {})[split] = asdict(one)
    return found


def write_plan(config: StudyConfig, out: Path) -> None:
    """Write the plan where there is none yet, and nothing to be said beforehand of."""
    if not (out / PLAN).exists() and not any(cell_path(out, cell).is_file() for cell in config.cells()):
        write_json(out / PLAN, facts(config))


def plan_lines(config: StudyConfig) -> Iterator[str]:
    """The plan for a terminal."""
    arms = ", ".join(arm.name for arm in config.arms)
    labels, seeds = ", ".join(map(str, config.design.labels)), ", ".join(map(str, config.design.seeds))
    yield f"{len(list(config.fine_tunings()))} fine-tunings: {labels} labelled series x {arms} x seeds {seeds}"
    yield f"each of {config.arms[0].steps} steps; {len(list(config.probings()))} linear probes of frozen encoders"
    assumed = config.power
    yield (
        f"assumed: area {assumed.auc:g}; correlations {assumed.same_seed:g} (one seed, two arms), {assumed.same_arm:g} "
        f"(one arm, two seeds), {assumed.neither:g} (neither); deviation over seeds {assumed.seed_sd:g}"
    )
    rows = [
        [
            measure,
            split,
            one.series,
            f"{one.area_error:.3f}",
            f"{one.difference_error:.3f}",
            f"{one.half_interval:.3f}",
            f"{one.smallest:.3f}",
        ]
        for (measure, split), one in powers(config).items()
    ]
    columns = [
        "measure",
        "held out",
        "series",
        "error of an area",
        "of a difference",
        "half of its interval",
        "can be seen",
    ]
    yield from table(columns, rows)
    count = comparisons(config)
    yield (
        f"can be seen: a true difference of two arms' areas that the 95 % interval leaves 0 out of with a chance of "
        f"{percent(assumed.power)}. Of {count} such intervals {count * (1 - LEVEL):.1f} leave out 0 by chance where "
        "nothing differs."
    )


def percent(share: float) -> str:
    """A share in a sentence.

    Example:
        >>> percent(0.95)
        '95 %'
    """
    return f"{100 * share:.0f} %"
