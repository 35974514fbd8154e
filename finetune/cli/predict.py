"""`finetune predict`: the probabilities of each series in a folder, as JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harmonize.errors import UserError
from harmonize.terminal import emit, warn


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of `finetune`."""
    parser = commands.add_parser(
        "predict", parents=[common], help="the probabilities of each series in a folder, as JSON"
    )
    parser.add_argument("model", type=Path, metavar="FT", help="folder of a finished run")
    parser.add_argument("series", type=Path, metavar="SERIES_FOLDER", help="folder of one DICOM series, or of several")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Answer each series, and print the answers.

    Raises:
        UserError: None could be answered.
    """
    from finetune.predict import Answer, NoAnswer, Predictor

    found = Predictor(options.model).answers(options.series)
    if not found:
        raise UserError(f"{options.series}: holds no DICOM pictures; give the folder of a series")
    answers = [one for one in found if isinstance(one, Answer)]
    unusable = [one for one in found if isinstance(one, NoAnswer)]
    if len(found) == 1 and unusable:
        raise UserError(f"{options.series}: {unusable[0].message} ({unusable[0].reason}); give another series")
    if len(found) > 1:
        warn(f"{options.series}: {len(found)} series, {len(answers)} of them answered")
    for answer in answers:
        where = f"series {answer.series}" if len(found) > 1 else f"{options.series}"
        for line in answer.warnings:
            warn(f"warning: {where}: {line}")
    for refusal in unusable:
        warn(f"not used: series {refusal.series}: {refusal.message} ({refusal.reason})")
    if not answers:
        raise UserError(f"{options.series}: none of its {len(found)} series can be used; give others")
    objects = [
        {**answer.probabilities, "decisions": answer.decisions, "warnings": answer.warnings} for answer in answers
    ]
    if len(found) > 1:
        objects = [{"series": answer.series, **one} for answer, one in zip(answers, objects, strict=True)]
    emit(objects[0] if len(found) == 1 else objects)
    return 0
