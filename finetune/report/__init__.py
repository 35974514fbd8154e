"""The report of a fine-tuning run or a cross-validation: what its held-out predictions are worth, and how it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.evaluation import evaluate, read
from finetune.evaluation.answers import measure, read_answers
from finetune.evaluation.detection import measured
from finetune.evaluation.predictions import FOLD_FOLDER, ID, PREDICTIONS, SUBJECT, read_of_run
from finetune.metrics import DRAWS
from finetune.report.answers import add_answers
from finetune.report.corpus import add_corpus
from finetune.report.findings import add_evaluation, add_examples, add_mistakes, examples, tiles
from finetune.report.localisation import add_localisation
from finetune.report.masks import add_masks
from finetune.report.run import add_run
from finetune.report.series import candidates_of, cases_of, others_of, overall_of, pictures_of, task_of
from finetune.report.training import figure_curves
from finetune.segmentation import said_columns
from finetune.tasks import MASKS, Task
from harmonize.corpus import Corpus
from harmonize.errors import WrongUse
from harmonize.page import Page
from headspark.run.folder import FINISHED, RUNNING, read_metrics, read_state

__all__ = ["REPORT", "RESULTS", "add_evaluation", "figure_curves", "write_report"]

REPORT = "report.html"
RESULTS = "results"
"""What run.json calls the headline of a run and what became of its series."""


def write_report(
    run: Path,
    corpus: Corpus | None = None,
    *,
    diameters_mm: Mapping[str, float] | None = None,
    of_findings_mm: Mapping[tuple[str, str], float] | None = None,
) -> Path:
    """Write ``report.html`` into a finished run's folder, or into that of a cross-validation.

    Args:
        run: The folder.
        corpus: The one it was trained on; without it there are no pictures of series, and fewer baselines.
        diameters_mm: Of the largest finding of each series, by its id.
        of_findings_mm: Of each finding, as `finetune.evaluation.detection.read_finding_sizes` gives them.

    Returns:
        Path of the page.

    Raises:
        UserError: There is no finished run.
    """
    states = _states(run)
    task = task_of(run)
    if task is not None and task.answers == MASKS:
        page, scan_ids = _page_of_masks(run, corpus, task, states)
    elif task is not None and task.any_label is None:
        page, scan_ids = _page_of_answers(run, corpus, task, states)
    else:
        page, scan_ids = _page_of_findings(run, corpus, task, states, diameters_mm, of_findings_mm or {})
    _training(page, states)
    add_corpus(page, states[0][0], corpus, scan_ids)
    page.heading("Made with")
    libraries = {name: str(value) for state, _ in states for name, value in state["libraries"].items()}
    page.table(["what", "value"], sorted(libraries.items()))
    page.write(run / REPORT)
    return run / REPORT


def _page_of_masks(
    run: Path, corpus: Corpus | None, task: Task, states: Sequence[tuple[dict[str, Any], Path]]
) -> tuple[Page, Sequence[str]]:
    """What segmentations are worth, and the series that they are of."""
    table = read_of_run(run / PREDICTIONS, said_columns(task))
    page = Page("Fine-tuning report", lead=_lead(len(table), table[SUBJECT].nunique(), DRAWS, states))
    add_run(page, states, corpus)
    add_masks(page, run, corpus, task, table)
    return page, tuple(map(str, table[ID]))


def _page_of_answers(
    run: Path, corpus: Corpus | None, task: Task, states: Sequence[tuple[dict[str, Any], Path]]
) -> tuple[Page, Sequence[str]]:
    """What a table's labels are answered, and the series that were asked about."""
    found = measure(read_answers(run, asks=task.asks, labels=task.labels, corpus=corpus))
    answers = found.answers
    lead = _lead(len(answers.scan_ids_N), len(set(answers.subjects_N)), found.draws, states)
    page = Page("Fine-tuning report", lead=lead)
    add_run(page, states, corpus)
    add_answers(page, found)
    return page, answers.scan_ids_N


def _page_of_findings(
    run: Path,
    corpus: Corpus | None,
    task: Task | None,
    states: Sequence[tuple[dict[str, Any], Path]],
    diameters_mm: Mapping[str, float] | None,
    of_findings_mm: Mapping[tuple[str, str], float],
) -> tuple[Page, Sequence[str]]:
    """What is said of findings and their places, and the series that were asked about."""
    predictions = read(run, corpus=corpus, overall=overall_of(task))
    cases = cases_of(corpus, task)
    others = others_of(predictions, cases)
    found = evaluate(
        predictions,
        corpus=corpus,
        others=others,
        diameters_mm=diameters_mm,
        candidates=candidates_of(run),
        cases=measured(cases, of_findings_mm, predictions.labels),
    )
    shown = examples(predictions)
    wanted = [*(one.scan_id for one in found.mistakes), *shown]
    pictures = pictures_of(run, predictions, cases, wanted)
    count, patients = len(predictions.scan_ids_N), len(set(predictions.subjects_N))
    page = Page("Fine-tuning report", lead=_lead(count, patients, found.draws, states))
    add_run(page, states, corpus)
    page.tiles(tiles(found))
    for note in predictions.notes:
        page.text(note)
    add_evaluation(page, found)
    if found.localisation is not None:
        add_localisation(page, found.localisation)
    add_mistakes(page, found, pictures)
    add_examples(page, predictions, shown, pictures)
    return page, predictions.scan_ids_N


def _states(run: Path) -> list[tuple[dict[str, Any], Path]]:
    """run.json of the run, or of each fold, with its folder."""
    folders = [run] if read_state(run) is not None else sorted(run.glob(FOLD_FOLDER.format("*")))
    states = [(state, folder) for folder in folders if (state := read_state(folder)) and _has_results(state)]
    if not states:
        if not run.exists():
            raise WrongUse(f"{run}: no such folder; give that of a finished run")
        raise WrongUse(f"{run}: no finished run there; let finetune train finish")
    return states


def _has_results(state: Mapping[str, Any]) -> bool:
    """Whether a run came to its end, or has nothing left to do but its report."""
    return state["status"] == FINISHED or (state["status"] == RUNNING and RESULTS in state)


def _lead(series: int, patients: int, draws: int, states: Sequence[tuple[Mapping[str, Any], Path]]) -> str:
    folds = f", {len(states)} folds pooled" if len(states) > 1 else ""
    steps = max((line["step"] for _, folder in states for line in read_metrics(folder)[-1:]), default=0)
    return (
        f"{series} held-out series of {patients} patients, none of whom "
        f"the model that is judged was trained on{folds}; {steps} steps. Intervals hold 95 % of {draws} draws of "
        "patients; a dash stands where a number is undefined."
    )


def _training(page: Page, states: Sequence[tuple[Mapping[str, Any], Path]]) -> None:
    page.heading("Training")
    for _, folder in states:
        name = f" {folder.name}." if len(states) > 1 else ""
        caption = f"Losses and held-out scores by step; the bands are the stages.{name}"
        page.figure(figure_curves(read_metrics(folder)), caption=caption)
