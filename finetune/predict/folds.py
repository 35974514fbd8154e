"""Where models lie in the folder of a cross-validation, and which of its folds have none yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune.evaluation.predictions import FOLD_FOLDER
from finetune.model_folder import CONFIG
from harmonize.errors import UserError
from harmonize.terminal import warn
from headspark.folder_kind import is_model_config, read_json
from headspark.run.folder import STATE

FOLD_FOLDERS = FOLD_FOLDER.format("*")
"""Runs of a cross-validation in its folder."""

GATHERED = "results.json"
"""What `finetune cv` leaves in that folder where it has put folds together: which, the score of each, and of all."""


MOST_FOLDS = 1000
"""More are not looked for: a model's folder may be a stranger's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """Folds of a cross-validation that have no model, beside others that have.

    Attributes:
        folder: Of all of them.
        folds: How many its recipe deals.
        lacking: Those without a model.
        begun: Those of them whose run has begun.
        there: Those with a model.
        chosen: Whether its user said that those with a model are all, by gathering just these, or by passing them on.
    """

    folder: Path
    folds: int
    lacking: tuple[int, ...]
    begun: tuple[int, ...]
    there: tuple[int, ...]
    chosen: bool

    def line(self) -> str:
        """For a person."""
        begun = f" ({_names(self.begun)} begun, and not finished)" if self.begun else ""
        return f"{self.folder}: no model of fold {_names(self.lacking)} of {self.folds}{begun}"


def is_model(path: Path) -> bool:
    """Whether a folder holds a fine-tuned model, or the models of a cross-validation."""
    return _holds_model(path) or any(map(_holds_model, path.glob(FOLD_FOLDERS)))


def models_in(folder: Path) -> list[Path]:
    """The folder itself, or the folds of a cross-validation in the order of their numbers."""
    if _holds_model(folder):
        return [folder]
    folds = [path for path in folder.glob(FOLD_FOLDERS) if _holds_model(path)]
    return sorted(folds, key=lambda path: (len(path.name), path.name)) or [folder]  # of which read_bundle says more


def unfinished(folder: Path) -> Unfinished | None:
    """What a cross-validation lacks; None where that is nothing, or where there is no model of a fold at all."""
    there = {number for path in models_in(folder) if path != folder and (number := _number_of(path)) is not None}
    if not there:
        return None
    begun = {n for path in folder.glob(f"{FOLD_FOLDERS}/{STATE}") if (n := _number_of(path.parent)) is not None}
    folds = _folds_of(folder / FOLD_FOLDER.format(min(there)))
    lacking = (set(range(folds)) | begun) - there
    if not lacking:
        return None
    return Unfinished(
        folder=folder,
        folds=max(folds, *(number + 1 for number in lacking | there)),
        lacking=tuple(sorted(lacking)),
        begun=tuple(sorted(begun - there)),
        there=tuple(sorted(there)),
        chosen=_chosen(folder) == there,
    )


def warn_of_unfinished(folder: Path) -> None:
    """Say that folds are lacking, unless their user left them out, and none of them is being trained."""
    found = unfinished(folder)
    if found is not None and (found.begun or not found.chosen):
        warn(f"warning: {found.line()}; this is of {_names(found.there)} alone")


def refuse_unfinished(folder: Path) -> None:
    """Refuse to publish a part of a cross-validation that its user has not called all of it.

    Raises:
        UserError: Folds are lacking.
    """
    found = unfinished(folder)
    if found is not None and not found.chosen:
        raise UserError(
            f"{found.line()}; let `finetune cv` finish it, or say that the others are all: `finetune cv --gather "
            f"{folder} --folds {','.join(map(str, found.there))}`"
        )


def _chosen(folder: Path) -> set[int] | None:
    """The folds that were put together, or that a folder to pass on names; None where nobody says."""
    gathered, passed_on = read_json(folder / GATHERED), read_json(folder / CONFIG)
    if isinstance(gathered, dict) and isinstance(gathered.get("folds"), dict):
        return {int(name) for name in gathered["folds"] if name.isdecimal()}
    if isinstance(passed_on, dict) and isinstance(passed_on.get("folds"), list):
        numbers = (_number_of(Path(str(name))) for name in passed_on["folds"])
        return {number for number in numbers if number is not None}
    return None


def _folds_of(model: Path) -> int:
    """How many folds the recipe of a model deals; 0 where its config.json does not say."""
    data = (read_json(model / CONFIG) or {}).get("data")
    folds = data.get("folds") if isinstance(data, dict) else None
    return folds if isinstance(folds, int) and folds <= MOST_FOLDS else 0


def _number_of(path: Path) -> int | None:
    number = path.name.removeprefix(FOLD_FOLDER.format(""))
    return int(number) if number != path.name and number.isdecimal() else None


def _names(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _holds_model(path: Path) -> bool:
    return is_model_config(read_json(path / CONFIG))
