"""From a run's state to a checkpoint and back: what is saved, and what a run must find there to go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

from harmonize.bounded_files import fits
from harmonize.errors import WrongUse
from harmonize.terminal import warn
from headspark.folders import remove_half_written
from headspark.run.checkpoint import Checkpoint, check_fits, load_newest, remove_leftovers, save_checkpoint
from headspark.run.claim import CHECKPOINTS, PICTURES
from headspark.run.device import say_once
from headspark.run.diverged import Diverged, reason_at_end
from headspark.run.folder import RunFolder, read_metrics
from headspark.run.plain_state import SCALER
from headspark.run.state import TrainState

SHAPE: dict[str, Any] = {
    "scaler": SCALER,
    "samples_per_step": (int, type(None)),
    "skipped": int,
    "skipped_in_a_row": int,
    "evaluated": int,
    "held_out_loss": (Real, type(None)),
}
"""Of what a checkpoint holds besides the optimizer, as `harmonize.bounded_files.fits` takes it; a loss may be infinite.
The pending steps, whose names are the program's own, are left to `state_shape`."""


def resume(state: TrainState[Any], run: RunFolder | None, folder: Path) -> bool:
    """Take up the newest whole checkpoint, if there is one, and forget what was measured after it.

    Args:
        state: At its first step; takes what was saved.
        run: The folder, on the first rank, else None.
        folder: Where it lies.

    Returns:
        Whether there was one.

    Raises:
        UserError: With exit code 2: a step has another number of samples now.
    """
    if run is not None:
        remove_leftovers(run.checkpoints)
        for place in (run.path, run.path / PICTURES):
            remove_half_written(place)
    state.accelerator.wait_for_everyone()
    say = partial(say_once, state.accelerator)
    found = load_newest(folder / CHECKPOINTS, say=say, fits=partial(check_resumable, state))
    if run is not None:
        if found is None:
            _say_what_is_lost(run)
        run.forget_after(-1 if found is None else found.step)
    if found is None:
        return False
    restore(state, found, where=folder)
    return True


def _say_what_is_lost(run: RunFolder) -> None:
    reached = max((line["step"] for line in read_metrics(run.path)), default=0)
    if reached:
        warn(f"{run.path}: had reached step {reached}, but no checkpoint is left to go on from; begins again")


def save(state: TrainState[Any], run: RunFolder | None, *, keep: int) -> None:
    """Write a checkpoint, on the first rank; the others wait for it.

    Raises:
        Diverged: There is nothing in the weights to go on from; the checkpoints before them stay.
    """
    if not state.has_finite_weights():
        raise Diverged(state.step, "its weights are not finite", advice=state.advice)
    if run is not None:
        save_checkpoint(run.checkpoints, snapshot(state), keep=keep)
    state.accelerator.wait_for_everyone()


def check_result(state: TrainState[Any], *, finite_scores: bool | None) -> None:
    """Refuse to call a run finished whose model says nothing.

    Args:
        state: After the last step.
        finite_scores: Of the model on what was held out; None where nothing was.

    Raises:
        Diverged: It does not.
    """
    reason = reason_at_end(
        steps=state.plan.steps,
        skipped=state.skipped,
        skipped_in_a_row=state.skipped_in_a_row,
        finite_weights=state.has_finite_weights(),
        finite_scores=finite_scores,
    )
    if reason is not None:
        raise Diverged(state.step, reason, advice=state.advice)


def snapshot(state: TrainState[Any]) -> Checkpoint:
    """The state after `state.step` steps; samples, rates and noise follow from the step."""
    scaler = state.accelerator.scaler
    training: dict[str, Any] = {
        "optimizer": state.optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "samples_per_step": state.plan.samples_per_step,
        "skipped": state.skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
        "evaluated": state.evaluated,
        "held_out_loss": state.held_out_loss,
        "pending": {name: [step[name] for step in state.pending] for name in state.measures},
    }
    ema = None if state.ema is None else state.ema.module.state_dict()
    return Checkpoint(step=state.step, model=state.unwrapped.state_dict(), ema=ema, training=training)


def restore(state: TrainState[Any], found: Checkpoint, *, where: object) -> None:
    """Undo everything since a checkpoint.

    Args:
        state: Takes what was saved.
        found: What `check_resumable` has accepted.
        where: The run's folder, for the message.

    Raises:
        UserError: With exit code 2: a step has another number of samples now.
    """
    training = _in_todays_words(found)
    began, now = training["samples_per_step"], state.plan.samples_per_step
    if began is not None and began != now:
        raise WrongUse(
            f"{where}: began with {began} samples per step, now {now}: "
            "set train.batch, train.accumulate and the number of ranks so that their product is the same",
        )
    state.step, state.evaluated, state.held_out_loss = found.step, training["evaluated"], training.get("held_out_loss")
    state.skipped, state.skipped_in_a_row = training["skipped"], training["skipped_in_a_row"]
    columns = [(training["pending"] or {}).get(name, ()) for name in state.measures]
    state.pending = [dict(zip(state.measures, values, strict=True)) for values in zip(*columns, strict=True)]
    state.unwrapped.load_state_dict(state.todays_names(found.model))
    state.optimizer.load_state_dict(training["optimizer"])
    if state.ema is not None and found.ema is not None:
        state.ema.module.load_state_dict(state.todays_names(found.ema))
    if state.accelerator.scaler is not None and training["scaler"]:
        state.accelerator.scaler.load_state_dict(training["scaler"])


def check_resumable(state: TrainState[Any], found: Checkpoint, where: str) -> None:
    """Refuse a checkpoint that a run cannot go on from.

    Args:
        state: Of the run.
        found: A whole checkpoint.
        where: Names it.

    Raises:
        UserError: Something is missing or has another shape.
    """
    shape = state_shape(state.measures)
    check_fits(
        Checkpoint(
            step=found.step,
            model=state.todays_names(found.model),
            ema=None if found.ema is None else state.todays_names(found.ema),
            training=_in_todays_words(found),
        ),
        where,
        model=state.unwrapped,
        optimizer=state.optimizer,
        needs=shape.keys() - {"held_out_loss"},  # version 0.1.0 kept none
        shape=shape,
    )


def state_shape(measures: tuple[str, ...]) -> dict[str, Any]:
    """What a checkpoint holds besides the optimizer, for runs whose steps have these measures."""

    def are_steps(pending: object) -> bool:
        if pending is None:  # as version 0.1.0's fine-tuning
            return True
        if not isinstance(pending, Mapping) or set(pending) != set(measures):
            return False
        return all(fits(one, [Real]) for one in pending.values()) and len({len(one) for one in pending.values()}) == 1

    return {**SHAPE, "pending": are_steps}


def _in_todays_words(found: Checkpoint) -> dict[str, Any]:
    """What a checkpoint says, in the words of this version; version 0.1.0 had others, and two sets of them."""
    training = dict(found.training)
    if "effective_batch" in training:  # its pretraining
        training["samples_per_step"] = training.pop("effective_batch")
        pending = training.get("pending")
        if isinstance(pending, Mapping) and set(pending) == {"losses", "norms"}:
            training["pending"] = {"loss": pending["losses"], "norm": pending["norms"]}
    if "non_finite" in training:  # its fine-tuning, which wrote no checkpoint before validating, nor between two lines
        training = {
            "samples_per_step": None,
            "skipped": 0,
            "skipped_in_a_row": training.pop("non_finite"),
            "evaluated": found.step,
            "pending": None,
            **training,
        }
    return training
