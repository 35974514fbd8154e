"""Train on every fold but one, in turn, and gather what each run says of the fold that it held out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harmonize.launcher import end_with_launcher

if __name__ == "__main__":
    end_with_launcher()

# isort: split
import pandas as pd
from accelerate import PartialState

from finetune import candidates
from finetune.cv_folder import begun_folds, check_folder
from finetune.cv_origin import has_finished, is_finished, same_run
from finetune.evaluation.predictions import FOLD, FOLD_FOLDER, ID, PREDICTIONS, read_of_run
from finetune.metrics import Score
from finetune.predict.folds import GATHERED
from finetune.recipe import Recipe
from finetune.report import write_report
from finetune.segmentation import said_columns
from finetune.sources import Sources, add_sources
from finetune.tasks import make_task
from finetune.train import train
from harmonize.corpus import Corpus
from harmonize.errors import EXIT_INTERRUPTED, UserError, WrongUse
from harmonize.files import atomic_path, write_json
from harmonize.parser import Parser
from harmonize.terminal import say, warn
from headspark.config import parse_recipe, read_recipe, recipe_parser, run_command
from headspark.folder_kind import seen_at
from headspark.run.folder import RECIPE, without_odd_numbers
from headspark.run.interrupt import Interrupted, interrupts

GATHER = "--gather"


def cross_validate(recipe: Recipe, sources: Sources, out: Path, folds: Sequence[int] | None = None) -> bool:
    """Run folds one after the other, or what is left of them; a finished one is passed over.

    Args:
        recipe: Of all runs; its `data.fold` does not matter.
        sources: What they train on.
        out: Folder of the runs ``fold_0``, ``fold_1`` ...
        folds: Which; None: all `data.folds`.

    Returns:
        Whether all of these folds are finished; False after a signal, when what was done has been saved.

    Raises:
        UserError: A run cannot start or go on, or a finished one was another's; or the folder holds something else.
    """
    wanted = _checked(folds, recipe.data.folds)
    check_folder(out)
    recipe = recipe.settled(sources.corpus, sources.labels, run=next(iter(begun_folds(out).values()), None))
    try:
        with interrupts() as interrupt:
            interrupt.begin()
            for number in wanted:
                interrupt.check()
                own = replace(recipe, data=replace(recipe.data, fold=number))
                if is_finished(own, sources, out / FOLD_FOLDER.format(number)):
                    continue
                if PartialState().is_main_process:
                    warn(f"fold {number} of {recipe.data.folds}: {out / FOLD_FOLDER.format(number)}")
                score = train(
                    own,
                    corpus=sources.corpus,
                    encoder_folder=sources.encoder,
                    out=out / FOLD_FOLDER.format(number),
                    brain_model=sources.brain_model,
                    pseudo_labels=sources.pseudo_labels,
                    labels=sources.labels,
                )
                if score is None:
                    return False
    except Interrupted:
        return False
    return True


def gather(out: Path, folds: Sequence[int] | None = None) -> Score:
    """Put the held-out predictions of finished folds into one table, and score them together.

    Writes ``predictions.parquet``, ordered by series, ``candidates.parquet`` where the folds have candidates, and
    ``results.json``; the same runs give the same bytes.

    Args:
        out: As for `cross_validate`.
        folds: Which; None: all `data.folds` of the recipe.

    Returns:
        The score of all held-out series together.

    Raises:
        UserError: A fold is not finished, two are not of one cross-validation, or the folder is another's.
    """
    begun = begun_folds(out)
    if not begun:
        raise WrongUse(f"{out}: no cross-validation there, but {seen_at(out)}; give the --out of `finetune cv`")
    check_folder(out)
    first = next(iter(begun.values()))
    recipe = read_recipe(Recipe, first / RECIPE)
    wanted = _checked(folds, recipe.data.folds)
    missing = [number for number in wanted if not has_finished(out / FOLD_FOLDER.format(number))]
    if missing:
        names = ", ".join(map(str, missing))
        raise UserError(f"{out}: not finished are the folds {names}; run them, or name the others with --folds")
    task = make_task(recipe.task)
    tables, results = [], {}
    for number in wanted:
        folder = out / FOLD_FOLDER.format(number)
        state = same_run(folder, first, recipe, number)
        tables.append(read_of_run(folder / PREDICTIONS, said_columns(task)))
        results[str(number)] = state["results"]
    pooled = pd.concat(tables).sort_values([ID, FOLD], ignore_index=True)
    twice = int(pooled[ID].duplicated().sum())
    if twice:
        raise UserError(
            f"{out}: {twice} series were held out twice; the folds are not of one dealing, train them again"
        )
    score = task.score(pooled)
    with atomic_path(out / PREDICTIONS) as temporary:
        pooled.to_parquet(temporary, index=False)
    _gather_candidates(out, wanted)
    write_json(
        out / GATHERED,
        without_odd_numbers(
            {"folds": results, "pooled": {**score.headline(), "held_out_series": len(pooled), "areas": score.areas}}
        ),
    )
    return score


def _gather_candidates(out: Path, folds: Sequence[int]) -> None:
    """Put the candidates of all folds into one table; none where a fold has none."""
    paths = [out / FOLD_FOLDER.format(number) / candidates.TABLE for number in folds]
    if not all(path.exists() for path in paths):
        (out / candidates.TABLE).unlink(missing_ok=True)
        return
    pooled = pd.concat([candidates.read_table(path) for path in paths])
    with atomic_path(out / candidates.TABLE) as temporary:
        pooled.sort_values([ID, FOLD, "rank"], ignore_index=True).to_parquet(temporary, index=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``finetune cv``, and of ``python -m finetune.cross_validation``."""
    return run_command(_command, sys.argv[1:] if argv is None else argv)


def _command(argv: Sequence[str]) -> int:
    if any(word.split("=")[0] == GATHER for word in argv):
        return _gather_alone(argv)
    parser = recipe_parser(Recipe, prog="finetune cv", description="Train on all folds but one, in turn.")
    add_sources(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; the same command goes on")
    parser.add_argument("--folds", type=str, default=None, help="such as 0,2; default: all")
    parser.add_argument("--fold", type=int, default=None, help="one alone, as a task of an array runs it")
    recipe, options = parse_recipe(parser, Recipe, argv)
    if options.fold is not None and options.folds is not None:
        raise WrongUse("--fold: not allowed with argument --folds; give one of them")
    asked = numbers_of(options.folds)
    folds = asked if options.fold is None else [options.fold]
    sources = Sources.of(options)
    if not cross_validate(recipe, sources, options.out, folds):
        return EXIT_INTERRUPTED
    if not PartialState().is_main_process:
        return 0
    left = [
        number
        for number in asked or range(recipe.data.folds)
        if not has_finished(options.out / FOLD_FOLDER.format(number))
    ]
    if left:
        warn(f"{options.out}: folds {', '.join(map(str, left))} are left; `finetune cv {GATHER}` waits for them")
        return 0
    # Another job may have trained the others: what it gathered must not shrink.
    finished = [n for n in range(recipe.data.folds) if has_finished(options.out / FOLD_FOLDER.format(n))]
    return _gathered(options.out, finished, sources.corpus)


def _gather_alone(argv: Sequence[str]) -> int:
    parser = Parser(prog="finetune cv", description="Gather the folds of a cross-validation.")
    parser.add_argument(GATHER, type=Path, required=True, metavar="CV")
    parser.add_argument("--folds", metavar="N,N", help="such as 0,2; default: all")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    return _gathered(options.gather, numbers_of(options.folds))


def _gathered(out: Path, folds: Sequence[int] | None, corpus: Corpus | None = None) -> int:
    score = gather(out, folds)
    which = "all folds" if folds is None else f"the folds {', '.join(map(str, folds))}"
    say(f"{out / PREDICTIONS}: the held-out series of {which} together: {score.line()}")
    if corpus is None:
        say(f"the report: finetune report {out} --corpus CORPUS")
    else:
        say(f"{write_report(out, corpus)}: the report")
    return 0


def numbers_of(text: str | None) -> list[int] | None:
    """The folds that ``--folds`` names.

    Raises:
        WrongUse: It is no list of numbers.
    """
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise WrongUse(f"--folds {text}: give numbers with commas between, such as 0,2")
    return [int(word) for word in words]


def _checked(folds: Sequence[int] | None, count: int) -> list[int]:
    wanted = list(range(count)) if folds is None else sorted(set(folds))
    beyond = [number for number in wanted if not 0 <= number < count]
    if beyond or not wanted:
        raise WrongUse(f"--folds {beyond}: there are data.folds {count}, numbered 0 to {count - 1}")
    return wanted


if __name__ == "__main__":
    sys.exit(main())
