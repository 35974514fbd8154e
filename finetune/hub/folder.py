"""What of a fine-tuned model travels: its configuration, weights, histograms and card, and nothing else of its run."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.finder.beside import BESIDE_FILES
from finetune.hub.model_card import write_card
from finetune.model_folder import CONFIG, SCHEMA_VERSION, WEIGHTS, Bundle, load_model, read_bundle, save_bundle
from finetune.predict.folds import models_in, refuse_unfinished
from harmonize.corpus import NYUL
from harmonize.errors import WrongUse
from harmonize.files import write_json, write_text
from harmonize.hub import check_repo, check_tag, push_folder, refuse_foreign_repository
from headspark.folder_kind import is_model_config, read_json
from headspark.folders import replaced
from headspark.hub.encoder_folder import CARD, CURVES
from headspark.hub.own_words import refuse_own_words, sealed

FOLDS = "folds"
"""In config.json above the models of a cross-validation: their folders."""

MOST_FOLDS = 100
HISTOGRAMS = f"{NYUL}/*.npy"
_FOLD = re.compile(r"fold_[0-9]{1,4}", re.ASCII)

_OF_A_MODEL = (CONFIG, WEIGHTS, HISTOGRAMS, *BESIDE_FILES)
MODEL_FILES = (*_OF_A_MODEL, *(f"fold_*/{name}" for name in _OF_A_MODEL), CARD, CURVES)
"""All that `save_model` writes, as patterns; a folder or repository with other files is not replaced."""


def save_model(source: Path, folder: Path) -> None:
    """Write a fine-tuned model, or those of a cross-validation, as a folder to pass on.

    Weights and configuration are written anew from what was read of them, so nothing goes along that this version does
    not know: no name of a scan or of a patient, no path, no prediction.

    Args:
        source: Folder of a finished run, or of a cross-validation.
        folder: Where; made if need be. A model that was there is replaced as a whole.

    Raises:
        UserError: The run is damaged, or folds are lacking. With exit code 2: there is none, it needs a file that may
            not travel, or `folder` holds something else, or a card that was changed by hand; all of it stays as it is.
    """
    models = _models_of(source)
    with replaced(folder, names=MODEL_FILES, is_ours=_is_ours, what="fine-tuned model") as temporary:
        _write(source, models, temporary)


def push_model(source: Path, repo: str, *, private: bool = True, tag: str | None = None) -> str:
    """Push what `save_model` writes to the Hub in one commit; the repository is made if need be.

    Args:
        source: Folder of a finished run, or of a cross-validation.
        repo: ``user/name``.
        private: Make a new repository private; one that is there stays as visible as it is.
        tag: Revision that the commit can be fetched by from now on, such as ``v1``.

    Returns:
        The commit's address.

    Raises:
        UserError: The Hub refused, or could not be reached, or folds are lacking; what it had before is unchanged.
        WrongUse: The repository holds something else than a fine-tuned model, or `repo` or `tag` is no name of one.
    """
    check_repo(repo)
    check_tag(tag)
    models = _models_of(source)
    with tempfile.TemporaryDirectory(prefix="headspark-push-") as name:
        refuse_foreign_repository(repo, mark=CONFIG, is_ours=is_ours_config, what="a fine-tuned model")
        _write(source, models, Path(name))
        # Deleted is what a model left that was there before, and that this one does not have.
        message = "Push a fine-tuned model of headspark"
        done = push_folder(Path(name), repo, message=message, delete=MODEL_FILES, private=private, tag=tag)
    return done.address


def is_ours_config(config: object) -> bool:
    """Whether the content of a config.json is that of a fine-tuned model, or of several of a cross-validation."""
    return is_model_config(config) or bool(folds_of_config(config))


def folds_of_config(config: object) -> tuple[str, ...]:
    """The folders of the models of a cross-validation; none where a config.json is something else."""
    if not isinstance(config, dict) or config.keys() != {"schema_version", FOLDS}:
        return ()
    names = config[FOLDS]
    if config["schema_version"] != SCHEMA_VERSION or not isinstance(names, list) or len(names) > MOST_FOLDS:
        return ()
    fine = all(isinstance(name, str) and _FOLD.fullmatch(name) for name in names)
    return tuple(names) if fine and len(set(names)) == len(names) else ()


def _models_of(source: Path) -> list[tuple[Path, Bundle]]:
    """The models of a run, or of all folds of a cross-validation.

    Raises:
        UserError: Folds are lacking; or as `_bundle_of`.
    """
    refuse_unfinished(source)
    return [(path, _bundle_of(path)) for path in models_in(source)]


def _bundle_of(folder: Path) -> Bundle:
    """What is known of a model, with nothing in it that is of its author's machine alone.

    Raises:
        WrongUse: It needs the weights of SynthStrip beside it.
    """
    bundle = read_bundle(folder)
    if bundle.settings.apply_brain:
        raise WrongUse(
            f"{folder}: was trained with --apply-brain and needs SynthStrip's weights, which are FreeSurfer's to "
            "pass on and no safetensors; train on a corpus without --apply-brain to push a model"
        )
    return replace(bundle, data=replace(bundle.data, cache_dir=None))


def _write(source: Path, models: list[tuple[Path, Bundle]], target: Path) -> None:
    is_one = len(models) == 1 and models[0][0] == source
    for path, bundle in models:
        place = target if is_one else target / path.name
        place.mkdir(exist_ok=True)
        save_bundle(place, bundle, load_model(path, bundle).state_dict())
    if not is_one:
        folds: dict[str, Any] = {"schema_version": SCHEMA_VERSION, FOLDS: [path.name for path, _ in models]}
        if not folds_of_config(folds):
            raise WrongUse(f"{source}: its models do not lie in fold_0, fold_1 ...; push one alone")
        write_json(target / CONFIG, folds)
    card = write_card(source, models)
    for name, content in card.pictures.items():
        (target / name).write_bytes(content)
    write_text(target / CARD, sealed(card.text))


def _is_ours(folder: Path) -> bool:
    """Whether a folder that holds no other files than `MODEL_FILES` was written by `save_model`.

    A run that lost everything else looks the same but for its card.

    Raises:
        WrongUse: It was, and somebody has written into its card since.
    """
    refuse_own_words(folder / CARD)
    return is_ours_config(read_json(folder / CONFIG)) and (folder / CARD).is_file()
