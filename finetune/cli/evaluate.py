"""`finetune evaluate`: what a run's predictions are worth, as tables or JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harmonize.errors import WrongUse
from harmonize.parser import positive
from harmonize.terminal import emit, say

if TYPE_CHECKING:
    from finetune.series import Case
    from finetune.tasks import Task
    from harmonize.corpus import Corpus


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of `finetune`."""
    parser = commands.add_parser(
        "evaluate", parents=[common], help="areas, shortcuts, calibration and thresholds of a run's predictions"
    )
    parser.add_argument(
        "model", type=Path, nargs="?", metavar="FT", help="folder of a finished run or of a cross-validation"
    )
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE", help="instead of FT: a .parquet or .csv table of predictions"
    )
    parser.add_argument("--truth", type=Path, metavar="TABLE.csv", help="labels of the series, where FILE has none")
    add_table_options(parser)
    parser.add_argument("--sizes", type=Path, metavar="TABLE.csv", help="diameter_mm of each finding, for sizes")
    parser.add_argument("--precision", type=share, help="that the overall label's threshold is to reach")
    parser.add_argument(
        "--outside",
        type=Path,
        metavar="CORPUS",
        help="ask FT about another corpus, such as one of `harmonize adam`, and evaluate that",
    )
    parser.add_argument("--device", help="with --outside, such as cpu or cuda:0; default: a GPU, or the CPU")
    parser.set_defaults(run=run)


def add_table_options(parser: argparse.ArgumentParser) -> None:
    """Options of all that reads tables of predictions."""
    parser.add_argument("--corpus", type=Path, help="the corpus of the series: patients, modalities, geometry")
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="which labels; all that have a truth if not given")
    parser.add_argument(
        "--overall", metavar="LABEL", help="the label that says whether there is anything at all; else the last one"
    )
    parser.add_argument("--draws", type=positive, default=1000, help="of the bootstrap over patients")
    parser.add_argument("--json", action="store_true", help="print JSON")


def share(text: str) -> float:
    """Read an option's value that is a share.

    Raises:
        argparse.ArgumentTypeError: No number above 0 and up to 1.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0 and up to 1")
    return value


def run(options: argparse.Namespace) -> int:
    """Evaluate, and print.

    Raises:
        UserError: There is nothing to evaluate.
    """
    from finetune.evaluation import evaluate, read
    from finetune.evaluation.detection import measured, read_finding_sizes, read_sizes
    from finetune.evaluation.text import evaluation_lines
    from finetune.evaluation.thresholds import TARGET_PRECISION
    from finetune.predict.folds import warn_of_unfinished
    from harmonize.corpus import Corpus
    from headspark.run.folder import without_odd_numbers

    source = options.model or options.predictions
    if source is None or (options.model and options.predictions):
        raise WrongUse("give the folder of a run, or --predictions FILE; see `finetune evaluate --help`")
    if options.outside is not None:
        return _outside(options)
    if options.model is not None:
        warn_of_unfinished(options.model)
    corpus = None if options.corpus is None else Corpus.open(options.corpus)
    if options.model is not None and options.labels is None and _answers(options, corpus):
        return 0
    overall, cases, candidates = options.overall, {}, None
    if options.model is not None and options.labels is None:
        from finetune.report.series import candidates_of, cases_of, others_of, overall_of, task_of

        task = task_of(options.model)
        overall, cases = overall or overall_of(task), cases_of(corpus, task)
        candidates = candidates_of(options.model)
        if task is not None and options.sizes is not None:
            cases = measured(cases, read_finding_sizes(options.sizes), task.labels)
    predictions = read(source, corpus=corpus, truth=options.truth, labels=options.labels, overall=overall)
    found = evaluate(
        predictions,
        corpus=corpus,
        others=others_of(predictions, cases) if cases else None,
        diameters_mm=None if options.sizes is None else read_sizes(options.sizes),
        candidates=candidates,
        cases=cases,
        precision=options.precision or TARGET_PRECISION,
        draws=options.draws,
    )
    if options.json:
        emit(without_odd_numbers(found.facts()))
    else:
        say(*evaluation_lines(found))
    return 0


def _outside(options: argparse.Namespace) -> int:
    """Ask models about another corpus, and print what that is worth."""
    from finetune.evaluation import evaluate
    from finetune.evaluation.text import evaluation_lines
    from finetune.evaluation.thresholds import TARGET_PRECISION
    from finetune.outside import ask_outside
    from finetune.predict.run import devices_of
    from harmonize.corpus import Corpus
    from headspark.run.folder import without_odd_numbers

    if options.model is None:
        raise WrongUse("--outside: give FT, whose models are asked")
    given = {"--truth": options.truth, "--labels": options.labels, "--overall": options.overall}
    given |= {"--corpus": options.corpus, "--sizes": options.sizes}
    too_many = next((name for name, value in given.items() if value is not None), None)
    if too_many is not None:
        raise WrongUse(f"{too_many}: not allowed with argument --outside; its corpus says all that is needed")
    corpus = Corpus.open(options.outside)
    asked = ask_outside([options.model], corpus, device=devices_of(options.device)[0])
    found = evaluate(
        asked.predictions,
        corpus=corpus,
        diameters_mm={scan: largest for scan, case in asked.cases.items() if (largest := _largest(case)) is not None},
        candidates=asked.found,
        cases=asked.cases,
        precision=options.precision or TARGET_PRECISION,
        draws=options.draws,
    )
    if options.json:
        emit(without_odd_numbers(found.facts()))
    else:
        say(*evaluation_lines(found))
    return 0


def _largest(case: Case) -> float | None:
    """Diameter of the largest finding of a series, if any is known."""
    return max((spot.diameter_mm for spot in case.spots if spot.counts and spot.diameter_mm), default=None)


def _answers(options: argparse.Namespace, corpus: Corpus | None) -> bool:
    """Print what answers to the question of a user's table are worth; whether the model is one for such a table."""
    from finetune.evaluation.answers import measure, read_answers
    from finetune.evaluation.text import answers_lines
    from finetune.report.series import task_of
    from finetune.tasks import MASKS
    from headspark.run.folder import without_odd_numbers

    task = task_of(options.model)
    if task is not None and task.answers == MASKS:
        _overlap(options, task)
        return True
    if task is None or task.any_label is not None:
        return False
    read = read_answers(options.model, asks=task.asks, labels=task.labels, corpus=corpus)
    found = measure(read, draws=options.draws)
    if options.json:
        emit(without_odd_numbers(found.facts()))
    else:
        say(*answers_lines(found))
    return True


def _overlap(options: argparse.Namespace, task: Task) -> None:
    """Print what the segmentations of a run are worth."""
    from finetune.evaluation.overlap import structures
    from finetune.evaluation.predictions import PREDICTIONS, read_of_run
    from finetune.evaluation.text import interval, table
    from finetune.segmentation import said_columns
    from headspark.run.folder import without_odd_numbers

    predictions = read_of_run(options.model / PREDICTIONS, said_columns(task))
    found = structures(predictions, task.labels, draws=options.draws)
    if options.json:
        emit(without_odd_numbers({one.name: one.facts() for one in found}))
        return
    rows = [[one.name, one.series, one.missed, interval(one.dice), interval(one.distance_mm)] for one in found]
    say(
        f"{options.model}: intervals of 95 %, {options.draws} draws of patients; - where a number is undefined",
        *table(["structure", "series", "missed", "Dice", "surface distance, mm"], rows),
    )
