"""Whether runs are of one cross-validation: what each fold began with, beside what is asked for or another's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.finder.beside import FOLDER as FINDER_FOLDER
from finetune.model_folder import APPLIED_BRAIN, CONFIG
from finetune.origin import FINDER, FINE_TUNING, PSEUDO_LABELS, read_given, recipe_of
from finetune.recipe import Recipe
from finetune.sources import Sources
from harmonize.errors import UserError, WrongUse
from harmonize.files import sha256_of
from headspark.folder_kind import read_json
from headspark.run.folder import FINISHED, FREE_ON_RESUME, check_same_recipe, read_state
from headspark.weights import weights_sha256

_FREE = frozenset(FREE_ON_RESUME) | FINE_TUNING.free
_FINDER_NAMED = "finder of boxes (view.model)"


def has_finished(folder: Path) -> bool:
    """Whether a fold's run has."""
    state = read_state(folder) if folder.is_dir() else None
    return state is not None and state["status"] == FINISHED


def is_finished(recipe: Recipe, sources: Sources, folder: Path) -> bool:
    """Whether a fold needs no run.

    Args:
        recipe: The fold's.
        sources: What it is to train on.
        folder: Of its run.

    Raises:
        UserError: A finished run there began with something else.
    """
    if not has_finished(folder):
        return False
    state, given = read_state(folder) or {}, read_given(sources.encoder)
    check_same_recipe(folder, recipe_of(recipe, folder, given), _FREE)
    began = state.get("origin") or {}
    encoder = began.get("encoder") or {}
    pseudo = None if sources.pseudo_labels is None else sha256_of(sources.pseudo_labels)
    sha256 = None if given.network is None else weights_sha256(given.network.state_dict())
    finder, brain = _finder_now(recipe), _brain_of(folder)
    differs = {
        "another corpus": began.get("corpus") != sources.corpus.manifest_sha256(),
        # Where the encoder or the finder cannot be read now, that there was one has to do.
        "another encoder": bool(encoder) != (given.name is not None) or sha256 not in (None, encoder.get("sha256")),
        "other --pseudo-labels": state.get(PSEUDO_LABELS) != pseudo,
        f"another {_FINDER_NAMED}": finder is not None and state.get(FINDER) != finder,
        "another --brain-model": brain is not None and brain != _brain_now(sources),
    }
    what = next((name for name, is_so in differs.items() if is_so), None)
    if what is not None:
        raise WrongUse(f"{folder}: finished with {what} than is asked for now; give --out a new folder")
    return True


def same_run(folder: Path, first: Path, recipe: Recipe, number: int) -> dict[str, Any]:
    """run.json of a fold, after a look at whether it is of the same cross-validation as the first.

    Args:
        folder: Of the fold's run.
        first: Of the first fold's run.
        recipe: Of that one.
        number: The fold's.

    Raises:
        UserError: It is not.
    """
    own = replace(recipe, data=replace(recipe.data, fold=number))
    check_same_recipe(folder, own, _FREE)
    state, other = read_state(folder) or {}, read_state(first) or {}
    differs = {
        "another corpus": _began(state, "corpus") != _began(other, "corpus"),
        "another encoder": _began(state, "encoder") != _began(other, "encoder"),
        "other --pseudo-labels": state.get(PSEUDO_LABELS) != other.get(PSEUDO_LABELS),
        f"another {_FINDER_NAMED}": state.get(FINDER) != other.get(FINDER) and not _has_own_finders(folder, first),
        "another --brain-model": None not in (brains := (_brain_of(folder), _brain_of(first))) and len({*brains}) > 1,
    }
    what = next((name for name, is_so in differs.items() if is_so), None)
    if what is not None:
        raise WrongUse(f"{folder}: began with {what} than {first.name}; a cross-validation has one")
    return state


def _began(state: Mapping[str, Any], key: str) -> object:
    """The hash of what a run began with."""
    found = (state.get("origin") or {}).get(key)
    return found.get("sha256") if isinstance(found, dict) else found


def _finder_now(recipe: Recipe) -> str | None:
    """The hash of the finder that a fold's view looks through now; None where it has none, or one that is gone."""
    try:
        return read_given(None, recipe=recipe).finder
    except UserError:
        return None


def _has_own_finders(*folders: Path) -> bool:
    """Whether each run looks through a finder that learned nothing from the fold that it holds out.

    `finetune roi --every-fold` makes one for each fold. One whose copy is gone from the run's folder may be such a one.
    """
    keys = ("fold", "folds", "fold_seed")
    looks = [(_part(folder / FINDER_FOLDER, "facts"), _part(folder, "data")) for folder in folders]
    return all(
        facts is None or data is None or all(facts.get(key) == data.get(key) for key in keys) for facts, data in looks
    )


def _brain_of(folder: Path) -> str | None:
    """The hash of the SynthStrip weights that a model harmonizes with, or ""; None where nobody can say any more."""
    harmonized = _part(folder, "harmonize")
    return None if harmonized is None else str(harmonized.get(APPLIED_BRAIN, ""))


def _brain_now(sources: Sources) -> str:
    """The same of what is given now; "" where the corpus keeps the whole head, whatever is given."""
    path = sources.brain_model
    if path is None or not sources.corpus.info["settings"].get("apply_brain"):
        return ""
    return sha256_of(path) if path.is_file() else "none"


def _part(folder: Path, key: str) -> dict[str, Any] | None:
    """A part of the config.json in a folder; None where there is none."""
    config = read_json(folder / CONFIG)
    found = config.get(key) if isinstance(config, dict) else None
    return found if isinstance(found, dict) else None
