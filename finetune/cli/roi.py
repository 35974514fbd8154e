"""`finetune roi`: teach a finder of the arteries' box, for views of kind ``roi`` and ``resized``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harmonize.terminal import say, warn

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune.recipe import Recipe
    from harmonize.corpus import Corpus


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; an error is one line on standard error."""
    from headspark.config import run_command

    return run_command(_command, sys.argv[1:] if argv is None else list(argv))


def _command(argv: Sequence[str]) -> int:
    from finetune.recipe import Recipe
    from finetune.roi import STEPS
    from harmonize.corpus import Corpus
    from harmonize.errors import EXIT_INTERRUPTED
    from headspark.config import parse_recipe, recipe_parser
    from headspark.config.checks import require
    from headspark.run.interrupt import Interrupted, interrupts

    parser = recipe_parser(
        Recipe, prog="finetune roi", description="Teach a finder of the arteries' box the training series of a recipe."
    )
    parser.add_argument("--corpus", type=Path, required=True, help="corpus that harmonize wrote, with labels")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finder; one that was there is replaced")
    parser.add_argument("--every-fold", action="store_true", help="one for each fold, for `finetune cv`")
    parser.add_argument("--steps", type=int, default=STEPS, help="of 8 samples; default %(default)s")
    recipe, options = parse_recipe(parser, Recipe, argv)
    require(options.steps >= 1, f"--steps {options.steps}: must be 1 or more")
    try:
        with interrupts() as interrupt:
            interrupt.begin()
            done = teach_folds(
                recipe,
                Corpus.open(options.corpus),
                options.out,
                every_fold=options.every_fold,
                steps=options.steps,
                asked=lambda: bool(interrupt),
            )
    except Interrupted:
        done = False
    if not done:
        warn(f"{options.out}: stopped before the finder was done; give the same command again")
        return EXIT_INTERRUPTED
    say(options.out)
    return 0


def teach_folds(
    recipe: Recipe, corpus: Corpus, out: Path, *, every_fold: bool, steps: int, asked: Callable[[], bool]
) -> bool:
    """Teach a finder of the recipe's fold, or one of each, and write it.

    Args:
        recipe: Of the runs that will look through it: their task, folds and modalities.
        corpus: With their series.
        out: Where to.
        every_fold: Write a folder ``fold_N`` for each fold.
        steps: Of the optimizer.
        asked: Whether to stop.

    Returns:
        Whether it is done.

    Raises:
        UserError: There is nothing to learn from.
    """
    from dataclasses import replace

    from finetune.cohort import cohort_of_run
    from finetune.finder import FINDER_FILES, Finder, save_finder
    from finetune.finder.folder import FOLD_FOLDER, is_finder_folder
    from finetune.roi import held, read_lesson, teach
    from finetune.tasks import make_task
    from harmonize.errors import WrongUse
    from harmonize.progress import Progress
    from headspark.folders import refuse_foreign, replaced

    recipe = recipe.settled(corpus)
    task, data = make_task(recipe.task), recipe.data
    if task.places < 1:
        raise WrongUse(f"task.kind {recipe.task.kind}: names no places, so there is no box of them to find")
    names = (*FINDER_FILES, *(f"{FOLD_FOLDER.format('*')}/{name}" for name in FINDER_FILES))
    refuse_foreign(out, names=names, is_ours=is_finder_folder, what="finder of boxes")
    selection = task.cases(corpus)
    numbers = range(data.folds) if every_fold else (data.fold,)
    cohorts = {}
    for number in numbers:
        own = replace(recipe, data=replace(data, fold=number, inference="box"))
        cohorts[number] = cohort_of_run(selection, corpus, task, own, out)
    cases = {case.scan_id: case for one in cohorts.values() for case in (*one.training, *one.held_out)}
    lessons = {}
    with Progress("read", total=len(cases), unit="series") as progress:
        for scan_id, case in cases.items():
            if asked():
                return False
            lessons[scan_id] = read_lesson(case, task)
            progress.advance()
    made: dict[int, Finder] = {}
    for number, cohort in cohorts.items():
        finder = teach(
            [lessons[case.scan_id] for case in cohort.training], task, steps=steps, seed=recipe.train.seed, asked=asked
        )
        if finder is None:
            return False
        spacing = corpus.spacing if data.spacing is None else (data.spacing,) * 3
        edges_mm = [voxels * mm for voxels, mm in zip(data.patch, spacing, strict=True)]
        judged = held(finder, [lessons[case.scan_id] for case in cohort.held_out], edges_mm)
        folds = {"fold": number, "folds": data.folds, "fold_seed": data.fold_seed}
        made[number] = replace(finder, facts={**folds, **finder.facts, "held_out": judged})
        size = " x ".join(f"{edge:g}" for edge in edges_mm)
        warn(
            f"note: fold {number}: of {judged['points']} held-out points {judged['found_lost']} lie outside of the "
            f"found box of {size} mm, {judged['fixed_lost']} outside of the fixed one; unsure in {judged['unsure']} of "
            f"{judged['series']} series"
        )
    with replaced(out, names=names, is_ours=is_finder_folder, what="finder of boxes") as temporary:
        for number, finder in made.items():
            place = temporary / FOLD_FOLDER.format(number) if every_fold else temporary
            place.mkdir(exist_ok=True)
            save_finder(place, finder)
    return True
