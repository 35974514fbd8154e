"""Whose the folder is that the folds of a cross-validation, or several of them, shall be written to."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from finetune import candidates
from finetune.evaluation.predictions import FOLD_FOLDER, PREDICTIONS
from finetune.model_folder import CONFIG
from finetune.origin import FINE_TUNING
from finetune.predict.folds import GATHERED
from finetune.report import REPORT
from harmonize.errors import WrongUse
from harmonize.files import TEMPORARY
from headspark.folder_kind import CORPUS_MARKS, read_json, seen_at
from headspark.run.folder import LOCK, STATE

_OTHERS = (STATE, CONFIG, CORPUS_MARKS[0])
"""What stands at the top of a run, a model, an encoder or a corpus, and never of a cross-validation."""


def check_folder(out: Path) -> None:
    """Refuse a folder that is another's, before the first fold is trained or anything there is replaced.

    One whose folds have begun may hold notes of its owner too: nothing but what a cross-validation writes is touched.

    Args:
        out: Of a new cross-validation, of one to go on with, or of one to gather.

    Raises:
        WrongUse: It is a run, a model, an encoder or a corpus, or holds something else and no fold that has begun.
    """
    names = _names_in(out)
    if not names.isdisjoint(_OTHERS):
        raise _foreign(out, "no cross-validation")
    if not _has_folds(out):
        written = {PREDICTIONS, candidates.TABLE, REPORT, GATHERED} if GATHERED in names else set[str]()
        if any(name not in written and _number_of(name) is None for name in names):
            raise _foreign(out, "no cross-validation")


def check_folder_of_several(out: Path, names: Collection[str], *, pages: Collection[str]) -> None:
    """The same for the folder of several cross-validations, and for each of theirs.

    Args:
        out: The folder.
        names: Of the cross-validations that are to be run there.
        pages: What is written beside them.

    Raises:
        WrongUse: As `check_folder`.
    """
    found = _names_in(out)
    others = found - set(pages)
    is_other = not found.isdisjoint(_OTHERS) or any(_number_of(name) is not None for name in found)
    if is_other or not (any(_has_folds(out / name) for name in others) or others <= set(names)):
        raise _foreign(out, "no folder of baselines")
    for name in names:
        check_folder(out / name)


def begun_folds(out: Path) -> dict[int, Path]:
    """The folders of folds by their numbers, in that order."""
    found = {
        number: path for path in out.glob(FOLD_FOLDER.format("*")) if (number := _number_of(path.name)) is not None
    }
    return dict(sorted(found.items()))


def _number_of(name: str) -> int | None:
    number = name.removeprefix(FOLD_FOLDER.format(""))
    return int(number) if number != name and number.isdecimal() else None


def _names_in(out: Path) -> set[str]:
    """What a folder holds besides locks and what is being written; nothing where there is none yet."""
    if not out.is_dir():
        return set()
    try:
        return {path.name for path in out.iterdir() if path.name != LOCK and not path.name.startswith(TEMPORARY)}
    except OSError as error:
        raise WrongUse(f"{out}: cannot be read: {error.strerror}") from error


def _has_folds(out: Path) -> bool:
    """Whether a fine-tuning run has begun in one of the folders of folds."""
    states = (read_json(path / STATE) for path in begun_folds(out).values())
    return any(isinstance(state, dict) and FINE_TUNING.key in state for state in states)


def _foreign(out: Path, wanted: str) -> WrongUse:
    return WrongUse(f"{out}: {wanted}, but {seen_at(out)}, which stays as it is; give a new folder")
