"""What a fine-tuning run began with: corpus, ranks, and the encoder, which is known by its weights, not its name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.finder import finder_sha256, folder_of_fold
from finetune.finder.beside import finder_of
from finetune.folds import FOLDS
from finetune.recipe import Recipe
from finetune.stages import LARGEST_STEPS
from harmonize.bounded_files import fits
from harmonize.errors import UserError, WrongUse
from headspark.channels import (
    DEFAULT_CT_WINDOWS,
    NAMED_WINDOWS,
    UNSTATED_MRI_SCALING,
    CtWindow,
    MriScaling,
    as_window,
    check_scaling,
)
from headspark.config import from_plain, to_plain
from headspark.decoder import UNetDecoder
from headspark.encoder import EncoderConfig, build_encoder
from headspark.folder_kind import is_preprocessing
from headspark.hub.encoder_folder import Encoder
from headspark.hub.load import load_decoder
from headspark.run.claim import CHECKPOINTS, NEW_FOLDER
from headspark.run.folder import RunKind, completed
from headspark.weights import weights_sha256

FITTED = frozenset({"task.means", "task.deviations", "task.weights"})
"""Keys of a recipe that follow from its others and the training series."""

FINE_TUNING = RunKind(
    name="fine-tuning",
    other="pretraining",
    key="origin",
    free=FITTED,
    files=(FOLDS,),
)

_BEGAN = {
    "corpus": str,
    "ranks": int,
    "encoder": (type(None), str, {"sha256": str, "config": dict, "preprocessing": is_preprocessing}),
}
"""Shape of `origin` in run.json."""

EPOCH_STEPS = "steps_per_epoch"
"""In run.json: by which the stages' lengths in epochs became steps."""

PSEUDO_LABELS = "pseudo_labels"
"""In run.json: the hash of the file of pseudo-labels, or null."""


FINDER = "finder"
"""In run.json: the hash of the finder of boxes that the view looks through; absent where it has none."""


@dataclass(frozen=True, slots=True)
class Given:
    """What ``--encoder`` named.

    Attributes:
        name: Folder or Hub repository; None: the recipe's encoder, from scratch.
        network: What was read there; None from scratch, or where it cannot be read.
        fault: Why it cannot be read.
        decoder: The decoder that lies beside it, if it was asked for and is there.
        finder: Hash of the finder of boxes that the view looks through; None: it has none.
    """

    name: str | None
    network: Any = None
    fault: UserError | None = None
    decoder: UNetDecoder | None = None
    finder: str | None = None


def read_given(name: str | None, *, decoder: bool = False, recipe: Recipe | None = None) -> Given:
    """Read a pretrained encoder; that it cannot be read matters only to a run that needs it.

    Args:
        name: Folder or Hub repository; None: there is none.
        decoder: Whether the decoder beside it is wanted too, if there is one.
        recipe: The run's, whose view may look through a finder of boxes.

    Raises:
        UserError: There is no such finder.
    """
    named = None if recipe is None else finder_of(recipe.view)
    finder = None if named is None or recipe is None else finder_sha256(folder_of_fold(named, recipe.data.fold))
    if name is None:
        return Given(None, finder=finder)
    try:
        network = Encoder.from_pretrained(name)
        return Given(name, network, decoder=load_decoder(name, network) if decoder else None, finder=finder)
    except UserError as error:
        return Given(name, fault=error, finder=finder)


def windows_of(preprocessing: Mapping[str, Any], channels: int) -> tuple[CtWindow, ...]:
    """The CT windows that a pretrained encoder was given, one a channel.

    Args:
        preprocessing: Of its config.json.
        channels: That it takes.

    Raises:
        UserError: It does not say them, or other ones than it has channels for.
    """
    stated = preprocessing.get("ct_windows")
    windows: tuple[CtWindow, ...] = ()
    if isinstance(stated, list | tuple) and len(stated) == channels:
        with suppress(UserError):
            windows = tuple(as_window(one) for one in stated)
    if not windows:
        raise UserError(
            f"--encoder: preprocessing.ct_windows in its config.json is {stated}; fine-tuning wants the names of its "
            f"{channels} channels, of {', '.join(NAMED_WINDOWS)}, or their name, width and level"
        )
    return windows


def scaling_of(preprocessing: Mapping[str, Any]) -> MriScaling:
    """How MRI was scaled for a pretrained encoder.

    Raises:
        UserError: In a way that this version does not know.
    """
    try:
        return check_scaling(preprocessing.get("mri_scaling", UNSTATED_MRI_SCALING))
    except UserError as error:
        raise UserError(f"--encoder: preprocessing in its config.json: {error}") from error


def recipe_of(recipe: Recipe, folder: Path, given: Given) -> Recipe:
    """The recipe with what it leaves open about the network's input: as the run began, else as the encoder was trained.

    Args:
        recipe: As it was given.
        folder: Of the run.
        given: The encoder.

    Raises:
        UserError: The encoder does not say what it was given. With exit code 2: one from scratch has another number of
            channels than there are windows.
    """
    network = given.network
    if given.name is not None and recipe.view.pictures:
        raise WrongUse(f"--encoder {given.name}: is one of volumes, and view.kind {recipe.view.kind} shows pictures")
    if network is None:
        recipe = completed(recipe, folder, tuple(map(as_window, DEFAULT_CT_WINDOWS)))
    else:
        stated = network.preprocessing
        recipe = completed(recipe, folder, windows_of(stated, network.config.in_channels), scaling_of(stated))
    windows, channels = len(recipe.data.windows), recipe.scratch.in_channels
    shown = recipe.view.channels(windows)
    if given.name is None and shown != channels:
        named = f"data.ct_windows names {windows} channels"
        more = f", of which view.kind {recipe.view.kind} makes {shown}" if recipe.view.pictures else ""
        raise WrongUse(f"scratch.in_channels {channels}: {named}{more}")
    return recipe


def encoder_facts(given: Given) -> dict[str, Any] | None:
    """The encoder for run.json: the hash of its weights, and what else is needed to build it without its folder.

    Raises:
        UserError: It cannot be read.
    """
    if given.fault is not None:
        raise given.fault
    if given.network is None:
        return None
    return {
        # For people alone, and a model's folder may be shared: no path of somebody's home.
        "name": Path(given.name).resolve().name if given.name is not None and Path(given.name).exists() else given.name,
        "sha256": weights_sha256(given.network.state_dict()),
        "config": to_plain(given.network.config),
        "preprocessing": given.network.preprocessing,
    }


def rebuilt(facts: Mapping[str, Any]) -> Any:
    """The network of an encoder whose folder is not there; its weights are those of a checkpoint's."""
    network = build_encoder(from_plain(EncoderConfig, facts["config"]))
    network.preprocessing = facts["preprocessing"]
    return network


def began_with(
    state: Mapping[str, Any] | None,
    *,
    folder: Path,
    corpus: str,
    ranks: int,
    given: Given,
    epoch: int,
    pseudo: str | None = None,
) -> dict[str, Any]:
    """What a run begins with, for run.json, after a look at whether it is what the run that is taken up began with.

    Args:
        state: run.json of that run; None for a new one.
        folder: The run's.
        corpus: Hash of the corpus's manifest.
        ranks: Processes that train.
        given: The encoder that is asked for.
        epoch: Steps of an epoch; a run that is taken up keeps those that it began with.
        pseudo: Hash of the file of pseudo-labels; None without one.

    Raises:
        UserError: With exit code 2: something is not the same, or the encoder is needed and is not there. With exit
            code 1: it is damaged.
    """
    if state is None:
        encoder = encoder_facts(given)
    else:
        has_checkpoint = any((folder / CHECKPOINTS).glob("step_*"))
        began = state["origin"]
        encoder = taken_up(folder, began, corpus=corpus, ranks=ranks, given=given, has_checkpoint=has_checkpoint)
        epoch = state.get(EPOCH_STEPS, epoch)
        if type(epoch) is not int or not 1 <= epoch <= LARGEST_STEPS:
            raise _other(folder, f"its run.json is damaged ({EPOCH_STEPS})")
        if state.get(PSEUDO_LABELS) != pseudo:
            raise _other(folder, "--pseudo-labels is not the file that this run began with")
        if state.get(FINDER) != given.finder:
            raise _other(folder, "the finder of boxes in view.model is not the one that this run began with")
    origin = {"corpus": corpus, "encoder": encoder, "ranks": ranks}
    looks = {} if given.finder is None else {FINDER: given.finder}
    return {"origin": origin, EPOCH_STEPS: epoch, PSEUDO_LABELS: pseudo, **looks}


def taken_up(
    path: Path, began: Mapping[str, Any], *, corpus: str, ranks: int, given: Given, has_checkpoint: bool
) -> dict[str, Any] | None:
    """The encoder of a run that goes on, after a look at whether it goes on with what it began with.

    Args:
        path: The run's folder, for messages.
        began: `origin` of its run.json.
        corpus: Hash of the corpus's manifest now.
        ranks: Processes that train now.
        given: The encoder that is asked for now.
        has_checkpoint: Whether the run can do without the encoder's weights.

    Returns:
        As `encoder_facts`.

    Raises:
        UserError: With exit code 2: something is not the same.
    """
    if not fits(began, _BEGAN):
        raise _other(path, "its run.json is damaged")
    if began.get("corpus") != corpus:
        raise _other(path, "the corpus is not the one that this run began with")
    if began.get("ranks") != ranks:
        raise _other(path, f"began with {began.get('ranks')} ranks, now {ranks} train; start as many as then")
    facts = began.get("encoder")
    if (facts is None) != (given.name is None):
        then, now = ("--encoder", "none") if facts is not None else ("none, from scratch", f"--encoder {given.name}")
        raise _other(path, f"began with another encoder ({then}), now {now} is asked for")
    if facts is None:
        return None
    if isinstance(facts, str):
        return _of_version_0_1_0(path, facts, given)
    if given.network is None:
        if has_checkpoint:
            return dict(facts)
        return encoder_facts(given)  # says why there is none
    if facts["sha256"] != weights_sha256(given.network.state_dict()):
        raise _other(path, f"the weights of --encoder {given.name} are not those that this run began with")
    return dict(facts)


def _of_version_0_1_0(path: Path, name: str, given: Given) -> dict[str, Any] | None:
    """The encoder of a run that knew it by its name alone."""
    if given.name is not None and os.path.realpath(given.name) != os.path.realpath(name):
        raise _other(
            path, f"began with --encoder {name}, which version 0.1.0 knew by name alone, now {given.name} is asked for"
        )
    return encoder_facts(given)


def _other(path: Path, what: str) -> UserError:
    return WrongUse(f"{path}: {what}; {NEW_FOLDER}")
