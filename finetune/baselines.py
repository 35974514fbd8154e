"""Several recipes on the same folds: each cross-validated, then all side by side on one page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open

from finetune.cross_validation import cross_validate, gather
from finetune.cv_folder import check_folder_of_several
from finetune.evaluation import read
from finetune.evaluation.compare import Comparison, compare
from finetune.evaluation.predictions import FOLD_FOLDER
from finetune.metrics import DRAWS
from finetune.model_folder import WEIGHTS
from finetune.models.pictures import TimmConfig
from finetune.recipe import Recipe
from finetune.report.comparison import Contender, facts_of, write_comparison
from finetune.report.series import overall_of
from finetune.sources import Sources
from finetune.tasks import make_task
from harmonize.errors import WrongUse
from harmonize.files import write_json
from headspark.config import read_recipe
from headspark.recipe import Precision
from headspark.run.folder import read_metrics, without_odd_numbers

PAGE, RESULTS = "baselines.html", "baselines.json"
"""In the folder of all runs."""


def read_recipes(paths: Sequence[Path], *, precision: Precision | None = None) -> dict[str, Recipe]:
    """Recipes by the names of their files.

    Args:
        paths: The files.
        precision: Of all of them; None: as each says.

    Raises:
        UserError: One is damaged; with exit code 2: two have one name, or they cannot be compared.
    """
    counts = Counter(path.stem for path in paths)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise WrongUse(f"{twice[0]}: two recipes are called so; each run's folder has its recipe's name")
    if len(paths) < 2:
        raise WrongUse("one recipe cannot be compared; give two or more")
    recipes = {path.stem: read_recipe(Recipe, path) for path in paths}
    name, first = next(iter(recipes.items()))
    if make_task(first.task).any_label is None:
        raise WrongUse(
            f"{name}: its task has no label that says whether there is anything; compare with finetune compare"
        )
    for other, recipe in recipes.items():
        for key in ("folds", "fold_seed"):
            mine, theirs = getattr(first.data, key), getattr(recipe.data, key)
            if mine != theirs:
                raise WrongUse(
                    f"{other}: data.{key} {theirs}, and {mine} in {name}; runs on other folds do not compare"
                )
        if recipe.task.kind != first.task.kind:
            raise WrongUse(f"{other}: task.kind {recipe.task.kind}, and {first.task.kind} in {name}")
    if precision is None:
        return recipes
    return {name: replace(recipe, train=replace(recipe.train, precision=precision)) for name, recipe in recipes.items()}


def run_all(recipes: dict[str, Recipe], sources: Sources, out: Path, folds: Sequence[int] | None = None) -> bool:
    """Train every recipe on every fold, or what is left of that.

    Args:
        recipes: By the names of their folders.
        sources: What they train on; recipes whose views show pictures take no encoder.
        out: Folder of the runs.
        folds: Which; None: all.

    Returns:
        Whether all is done; False after a signal, when what was done has been saved.

    Raises:
        UserError: A run cannot start or go on, or the folder holds something else.
    """
    check_folder_of_several(out, recipes, pages=(PAGE, RESULTS))
    for name, recipe in recipes.items():
        own = replace(sources, encoder=None) if recipe.view.pictures else sources
        if not cross_validate(recipe, own, out / name, folds):
            return False
        gather(out / name, folds)
    return True


def side_by_side(
    recipes: dict[str, Recipe], sources: Sources, out: Path, folds: Sequence[int] | None = None, *, draws: int = DRAWS
) -> Comparison:
    """Write the page and its numbers of runs that are finished; arguments as of `run_all`.

    Args:
        recipes: By the names of their folders.
        sources: What they trained on.
        out: Folder of the runs, the page, and the numbers as JSON.
        folds: Which; None: all.
        draws: Of the bootstrap over patients.

    Returns:
        The comparison.
    """
    overall = overall_of(make_task(next(iter(recipes.values())).task))
    runs = [read(out / name, corpus=sources.corpus, overall=overall) for name in recipes]
    found = compare(runs, draws=draws)
    contenders = [_contender(name, recipe, out / name, folds) for name, recipe in recipes.items()]
    note = f"Corpus of {' x '.join(f'{mm:g}' for mm in sources.corpus.spacing)} mm; every run held out the same folds."
    write_comparison(out / PAGE, found, contenders, notes=[note])
    write_json(out / RESULTS, without_odd_numbers({**found.facts(), "contenders": facts_of(contenders)}))
    return found


def _contender(name: str, recipe: Recipe, folder: Path, folds: Sequence[int] | None) -> Contender:
    shape = recipe.scratch
    runs = [folder / FOLD_FOLDER.format(number) for number in (folds or range(recipe.data.folds))]
    seconds = 0.0
    for run in runs:
        lines = [line for line in read_metrics(run) if "seconds" in line]
        steps = [0, *(line["step"] for line in lines)]
        seconds += sum(
            line["seconds"] * (step - before) for line, before, step in zip(lines, steps[:-1], steps[1:], strict=True)
        )
    return Contender(
        name=name,
        view=recipe.view.kind,
        encoder=shape.backbone if isinstance(shape, TimmConfig) else shape.kind,
        parameters=_parameters(runs[0] / WEIGHTS),
        minutes=seconds / 60,
        folds=len(runs),
    )


def _parameters(weights: Path) -> int:
    """Numbers in a file of weights; statistics of norms among them."""
    count = 0
    with safe_open(weights, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 not a mapping
            size = 1
            for edge in file.get_slice(key).get_shape():
                size *= edge
            count += size
    return count
