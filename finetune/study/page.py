"""Write what a study says: a page, its numbers, and a section for the documentation, from the predictions alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from finetune.evaluation.compare import SITES, WITHIN
from finetune.evaluation.text import difference, interval, number
from finetune.metrics import LEVEL
from finetune.study.compared import ASKED, LEAST_SACS, MEASURES, Compared, compare_arms
from finetune.study.config import StudyConfig
from finetune.study.figures import figure_detected, figure_differences, figure_scores
from finetune.study.findings import WHERE, pretrained_arms, sentences
from finetune.study.pairs import Detected, detect
from finetune.study.plan import COMPUTED_NOW, NUMBERS, PAGE, STUDY, Planned, percent, planned
from finetune.study.results import write_section
from finetune.study.table import CELLS, Study, gather, read_study
from harmonize.files import write_json
from harmonize.page import Page
from headspark.config import read_recipe, to_plain
from headspark.run.folder import without_odd_numbers

STYLE = ".answer { border-left: 4px solid var(--mark); padding: .1rem 0 .1rem .9rem; font-size: 1.1rem; }"


def write_results(out: Path, *, docs: Path | None = None) -> list[str]:
    """Write ``study.html`` and ``study.json``; the same predictions give the same bytes.

    Args:
        out: Folder of a study, finished or not, or of its ``predictions.parquet`` alone.
        docs: A page of Markdown whose section of results is written too.

    Returns:
        Lines for a terminal: what it says, and where it stands.

    Raises:
        UserError: There are no predictions.
    """
    has_cells = (out / STUDY).is_file() and (out / CELLS).is_dir()
    study = gather(read_recipe(StudyConfig, out / STUDY), out) if has_cells else read_study(out)
    compared, detected = compare_arms(study), detect(study)
    page_of(study, compared, detected).write(out / PAGE)
    write_json(out / NUMBERS, without_odd_numbers(facts(study, compared, detected)))
    if docs is not None:
        write_section(docs, study, compared, detected)
    lines = [*sentences(study, compared, detected), f"{out / PAGE}: the page"]
    return lines if docs is None else [*lines, f"{docs}: its section of results"]


def facts(study: Study, compared: Sequence[Compared], detected: Sequence[Detected]) -> dict[str, object]:
    """All numbers for JSON."""
    return {
        "study": to_plain(study.config),
        "missing_cells": list(study.missing),
        "says": list(sentences(study, compared, detected)),
        "planned": planned(study).facts(),
        "compared": [one.facts() for one in compared],
        "detected": [one.facts() for one in detected],
    }


def page_of(study: Study, compared: Sequence[Compared], detected: Sequence[Detected]) -> Page:
    """The page."""
    config, plan = study.config, planned(study)
    said = list(sentences(study, compared, detected))
    page = Page(
        "Does pretraining help?",
        lead=f"A study on phantoms: {', '.join(map(str, config.design.labels))} labelled series, "
        f"{len(config.design.seeds)} seeds, {config.arms[0].steps} steps in each arm. Intervals hold "
        f"{percent(LEVEL)} of {config.design.draws} draws of patients, the same for all arms, and allow for other "
        "seeds.",
        style=STYLE,
    )
    page.markup(f"<p class=answer>{escape(said[0])}</p>")
    page.text(said[-1])
    if study.missing:
        page.text(f"Not finished: {len(study.missing)} of {len(config.cells())} cells ({', '.join(study.missing)}).")
    if compared:
        _add_scores(page, config, compared)
    if said[1:-1]:
        page.heading("In words")
    for sentence in said[1:-1]:
        page.text(sentence)
    if detected:
        _add_detected(page, detected)
    page.heading("What was said beforehand" if plan.beforehand else "What it could see")
    page.table(*expected(config, compared, plan))
    page.text(
        f"The standard error of a difference was computed {'' if plan.beforehand else f'{COMPUTED_NOW} '}from assumed "
        "areas and correlations "
        f"({', '.join(f'{name} {value:g}' for name, value in plan.assumed.items())}), and is beside the one that the "
        "draws of patients and seeds then had."
    )
    if not plan.beforehand:
        page.text("What was said before the first cell was not kept with the predictions.")
    page.heading("Arms")
    page.table(*arms(config))
    return page


def _add_scores(page: Page, config: StudyConfig, compared: Sequence[Compared]) -> None:
    page.heading("Score against labels")
    sites = {one.split: len(one.sites) for one in compared}
    captions = {
        WITHIN: "AUC of any aneurysm within modality, the mean over seeds; the dashed line is a guess.",
        SITES: f"Mean AUC of the sites with {LEAST_SACS} sacs or more "
        f"({', '.join(f'{WHERE.get(split, split)} {count}' for split, count in sites.items())}); probes say nothing of "
        "them.",
    }
    for measure in ASKED:
        page.figure(figure_scores(config, compared, measure=measure), caption=captions[measure])
    page.table(*scores(compared))
    page.heading("Paired differences")
    if any(pretrained_arms(config, one) for one in compared):
        for measure in ASKED:
            page.figure(
                figure_differences(config, compared, measure=measure),
                caption=f"{measure}: each pretrained arm minus the one without pretraining, on the same series, seeds "
                "and draws.",
            )
    page.text("* the interval leaves out 0.")
    page.table(*differences(config, compared))
    page.heading("Seed by seed")
    page.table(*by_seed(compared))


def _add_detected(page: Page, detected: Sequence[Detected]) -> None:
    page.heading("Heads with and without a sac")
    page.text(
        "Each pair is one head, one noise and one scanner with and without the sac. 0.5 is a guess; how often the "
        "score of the sac's site is higher with it says whether a sac is seen at all, whatever else differs between "
        "patients. Probes say nothing of sites: theirs is the score of presence."
    )
    for by in ("size", "modality"):
        page.figure(figure_detected(detected, by=by), caption=f"By {by}; in brackets how many pairs there are.")
    page.table(*detections(detected))


Table = tuple[list[str], list[list[object]]]


def scores(compared: Sequence[Compared]) -> Table:
    """Columns and rows: the score of each arm."""
    rows: list[list[object]] = [
        [one.labelled, WHERE.get(one.split, one.split), run.name, *(interval(run.scores[name]) for name in MEASURES)]
        for one in compared
        for run in one.comparison.runs
    ]
    return ["labelled", "held out", "arm", *MEASURES], rows


def differences(config: StudyConfig, compared: Sequence[Compared]) -> Table:
    """Columns and rows: each arm minus the first."""
    first = config.arms[0].name
    rows: list[list[object]] = [
        [one.labelled, WHERE.get(one.split, one.split), run.name,
         *(difference(one.difference(run.name, name)) for name in MEASURES)]
        for one in compared
        for run in one.comparison.runs
        if run.name != first
    ]  # fmt: skip
    return ["labelled", "held out", f"minus {first}", *MEASURES], rows


def by_seed(compared: Sequence[Compared]) -> Table:
    """Columns and rows: the areas of each seed."""
    seeds = sorted({seed for one in compared for own in one.by_seed[WITHIN].values() for seed in own})
    rows: list[list[object]] = [
        [
            measure,
            one.labelled,
            WHERE.get(one.split, one.split),
            arm,
            *(number(own.get(seed, float("nan"))) for seed in seeds),
        ]
        for measure in ASKED
        for one in compared
        for arm, own in one.by_seed[measure].items()
    ]
    return ["measure", "labelled", "held out", "arm", *(f"seed {seed}" for seed in seeds)], rows


def detections(detected: Sequence[Detected]) -> Table:
    """Columns and rows: detectability by pairs."""
    rows: list[list[object]] = [
        [one.labelled, one.by if one.by == one.group else f"{one.by}: {one.group}", one.pairs, one.arm,
         interval(one.share), difference(one.share_more), difference(one.logits)]
        for one in detected
    ]  # fmt: skip
    return ["labelled", "pairs", "how many", "arm", "higher with the sac", "minus the first arm", "logits"], rows


def expected(config: StudyConfig, compared: Sequence[Compared], plan: Planned) -> Table:
    """Columns and rows: what was expected to be seen, beside the errors that were found."""
    rows: list[list[object]] = []
    for measure, split, one in ((name, split, one) for name, own in plan.power.items() for split, one in own.items()):
        found = ", ".join(
            number(own.errors[measure][arm]) for own in compared if own.split == split and measure in own.errors
            for arm in pretrained_arms(config, own)
        )  # fmt: skip
        numbers = [f"{one['difference_error']:.3f}", f"{one['smallest']:.3f}"]
        rows.append([measure, WHERE.get(split, split), one["series"], *numbers, found or "-"])
    return ["measure", "held out", "series", "expected error", "smallest difference to be seen", "errors found"], rows


def arms(config: StudyConfig) -> Table:
    """Columns and rows: what each arm does."""
    rows: list[list[object]] = [
        [arm.name, "pretrained" if arm.pretrained else "random", "; ".join(_stages(arm.stages))] for arm in config.arms
    ]
    return ["arm", "encoder", "stages"], rows


def _stages(stages: Sequence[object]) -> Iterator[str]:
    for stage in stages:
        rate = f", encoder {stage.encoder_lr:g} on {stage.layers} layers" if stage.encoder_lr else ", encoder frozen"  # type: ignore[attr-defined]
        yield f"{stage.name}: {stage.steps} steps, head {stage.head_lr:g}{rate}"  # type: ignore[attr-defined]
