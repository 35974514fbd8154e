"""The series of one run: those that it trains on, those that it is judged by, and what a user should know of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.drawing import limited, of_modalities
from finetune.folds import Folds, folds_of_run, own_folds
from finetune.pseudo import PseudoLabels, pseudo_labelled, summary
from finetune.recipe import Recipe
from finetune.series import Case, Selection
from finetune.tasks import Task
from harmonize.corpus import Corpus

TRAINED_ON = "trained_on"
"""In the results of run.json: `Cohort.trained_on`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """What a run works on.

    Attributes:
        training: Series to train on; last those with pseudo-labels, and those of which only masks are learned.
        held_out: Series of the fold that is not trained on.
        folds: Of all patients.
        left_out: How many of the source's other series there are, by why they are not used.
        notes: Lines for a person.
    """

    training: list[Case]
    held_out: list[Case]
    folds: Folds
    left_out: Counter[str]
    notes: tuple[str, ...]

    def trained_on(self) -> list[dict[str, object]]:
        """How many series and patients of each source and modality are trained on, for JSON."""
        series: Counter[tuple[str, str]] = Counter((case.source, case.modality) for case in self.training)
        patients = Counter(group for group, _ in {((one.source, one.modality), one.subject) for one in self.training})
        return [
            {"source": source, "modality": modality, "series": count, "patients": patients[source, modality]}
            for (source, modality), count in sorted(series.items())
        ]

    @property
    def labelled(self) -> list[Case]:
        """All but those with pseudo-labels, or without labels."""
        return [case for case in (*self.training, *self.held_out) if not case.pseudo]


def cohort_of_run(
    selection: Selection, corpus: Corpus, task: Task, recipe: Recipe, out: Path, *, pseudo: PseudoLabels | None = None
) -> Cohort:
    """Choose the series of a run; writes nothing.

    Args:
        selection: What the corpus offers to the task.
        corpus: With a label table.
        task: Whose series.
        recipe: The run's.
        out: The run's folder, which may hold an unfinished run.
        pseudo: Labels of another model, for series that nobody labelled.

    Raises:
        UserError: Nothing is left, or the folds are not what the recipe asks for.
    """
    data, notes, all_cases = recipe.data, list(selection.notes), selection.cases
    selection = _of_modalities(selection, data.modalities)
    notes.append(selection.summary())
    if task.shares_folds:
        folds = folds_of_run(corpus, task.sources[0], recipe, all_cases, out)
    else:
        folds = own_folds(all_cases, task.fold_labels(all_cases), recipe, out)
    training, held_out = folds.split(selection.cases, data.fold)
    if data.limit is not None:
        found = len(training), len(held_out)
        training, held_out = (
            limited(cases, most, seed=data.fold_seed)
            for cases, most in zip((training, held_out), data.limit, strict=True)
        )
        notes.append(
            f"data.limit: {len(training)} of {found[0]} training and {len(held_out)} of {found[1]} held-out series"
        )
    if data.inference == "bag":
        held_out = [replace(case, whole=True) for case in held_out]
    if pseudo is not None:
        more, left_out = pseudo_labelled(pseudo, selection.unlabelled, selection.cases, folds, data.fold)
        training = [*training, *more]
        notes.append(summary(pseudo, more, left_out))
    if selection.masked:
        training = [*training, *selection.masked]
        notes.append(f"{len(selection.masked)} more series whose masks are learned of, without labels")
    return Cohort(training=training, held_out=held_out, folds=folds, left_out=selection.left_out, notes=tuple(notes))


def _of_modalities(selection: Selection, wanted: Sequence[str]) -> Selection:
    """The selection without series of other modalities than those that are wanted, which are counted."""
    if not wanted:
        return selection
    cases = of_modalities(selection.cases, wanted)
    others = len(selection.cases) - len(cases)
    return replace(
        selection,
        cases=cases,
        left_out=selection.left_out + Counter({"of other modalities (data.modalities)": others}),
        unlabelled=of_modalities(selection.unlabelled, wanted, strict=False),
        masked=of_modalities(selection.masked, wanted, strict=False),
    )
