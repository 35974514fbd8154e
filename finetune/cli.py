"""The console script ``finetune``: train a model, predict a series, draw a run's report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from harmonize.errors import UserError
from harmonize.parser import Parser
from harmonize.terminal import hide_texts_of_errors, say, warn
from headspark.config import run_command

TRAIN = "train"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; an error is one line on standard error.

    Args:
        argv: Without the program's name; None takes the process's own.

    Returns:
        Exit code: 0 done, 1 not finished, 2 wrong use, 75 a run that was asked to stop and has saved its work.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == [TRAIN]:
        from finetune import train

        return train.main(words[1:])
    hide_texts_of_errors()  # those of a raw series may quote its header
    return run_command(_command, words)


def _command(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    return options.run(options)


def _predict(options: argparse.Namespace) -> int:
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
    print(json.dumps(objects[0] if len(found) == 1 else objects, indent=2))
    return 0


def _report(options: argparse.Namespace) -> int:
    from finetune.report import write_report
    from harmonize.corpus import Corpus

    say(write_report(options.model, None if options.corpus is None else Corpus.open(options.corpus)))
    return 0


def _parser() -> argparse.ArgumentParser:
    common = Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = Parser(prog="finetune", description="Fine-tune a pretrained encoder, and use what came of it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser(TRAIN, help="fine-tune on one device; `accelerate launch -m finetune.train` on several")
    predict = commands.add_parser(
        "predict", parents=[common], help="14 probabilities of each series in a folder, as JSON"
    )
    predict.add_argument("model", type=Path, metavar="FT", help="folder of a finished run")
    predict.add_argument("series", type=Path, metavar="SERIES_FOLDER", help="folder of one DICOM series, or of several")
    predict.set_defaults(run=_predict)
    report = commands.add_parser("report", parents=[common], help="draw the run's report.html again")
    report.add_argument("model", type=Path, metavar="FT", help="folder of a finished run")
    report.add_argument("--corpus", type=Path, help="the corpus it was trained on, for pictures")
    report.set_defaults(run=_report)
    return parser


if __name__ == "__main__":
    sys.exit(main())
