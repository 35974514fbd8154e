"""`finetune compare`: how runs differ on the series that they all predicted."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.cli.evaluate import add_table_options
from harmonize.errors import WrongUse
from harmonize.terminal import emit, say

if TYPE_CHECKING:
    from finetune.evaluation.compare import Comparison
    from finetune.tasks import Task


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of `finetune`."""
    parser = commands.add_parser(
        "compare", parents=[common], help="scores of runs on the same series, and paired differences"
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders of runs or cross-validations, or tables"
    )
    add_table_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare, and print.

    Raises:
        UserError: A run has no predictions, or they cannot be compared.
    """
    from finetune.evaluation import read
    from finetune.evaluation.answers import compare_answers, read_answers
    from finetune.evaluation.compare import compare
    from finetune.evaluation.text import comparison_lines
    from finetune.predict.folds import warn_of_unfinished
    from finetune.report.series import task_of
    from finetune.tasks import MASKS
    from harmonize.corpus import Corpus
    from headspark.run.folder import without_odd_numbers

    for one in options.runs:
        warn_of_unfinished(one)
    corpus = None if options.corpus is None else Corpus.open(options.corpus)
    tasks = [task_of(one) if one.is_dir() else None for one in options.runs]
    masks = [task for task in tasks if task is not None and task.answers == MASKS]
    asked = [task for task in tasks if task is not None and task.any_label is None]
    if masks:
        found = _overlaps(options, masks)
    elif options.labels is None and len(asked) == len(tasks):
        found = compare_answers(
            [
                read_answers(one, asks=task.asks, labels=task.labels, corpus=corpus)
                for one, task in zip(options.runs, asked, strict=True)
            ],
            draws=options.draws,
        )
    else:
        found = compare(
            [read(one, corpus=corpus, labels=options.labels, overall=options.overall) for one in options.runs],
            draws=options.draws,
        )
    if options.json:
        emit(without_odd_numbers(found.facts()))
    else:
        say(*comparison_lines(found))
    return 0


def _overlaps(options: argparse.Namespace, tasks: Sequence[Task]) -> Comparison:
    """Of runs that segment.

    Raises:
        UserError: They do not all segment the same structures, or a table of predictions is damaged.
    """
    from finetune.evaluation.compare import own_names
    from finetune.evaluation.overlap import compare_overlaps
    from finetune.evaluation.predictions import read_frame

    labels = tasks[0].labels
    if len(tasks) < len(options.runs) or any(task.labels != labels for task in tasks):
        raise WrongUse(f"{', '.join(map(str, options.runs))}: do not segment the same structures; compare runs that do")
    frames, names = zip(*map(read_frame, options.runs), strict=True)
    return compare_overlaps(dict(zip(own_names(names), frames, strict=True)), labels, draws=options.draws)
