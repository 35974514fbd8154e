"""The pretraining run: start or resume, step after step, validate, and never lose what was done.

Every random number is a function of the recipe's seed and of the step or the sample it belongs to. So a checkpoint
holds no generator, and a run that was killed ends with the same weights as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path

import torch
from accelerate.utils import gather_object

from harmonize.corpus import Corpus
from headspark.data.batches import Batch, network_input, train_batches
from headspark.data.cache import Store, cached
from headspark.data.cohort import Cohort, idle_weights, read_cohort
from headspark.data.crops import NOISE, generator
from headspark.data.samples import TrainSamples
from headspark.packed.geometry import MaskGeometry
from headspark.recipe import Recipe
from headspark.run.checkpoint import check_fits, load_newest, remove_leftovers, save_checkpoint
from headspark.run.device import agree, device_name, enter_on_main, local_ranks, make_accelerator, on_gpu, say_once
from headspark.run.diverged import Diverged, reason_at_end
from headspark.run.evaluate import Judge
from headspark.run.folder import FINISHED, INTERRUPTED, Run, open_run
from headspark.run.interrupt import Interrupt, Interrupted, interrupts, say_nothing_to_save
from headspark.run.metrics_log import Report, check_trackers
from headspark.run.profiling import profiled
from headspark.run.state import NEEDED, SHAPE, Training, make_model, prepare, restore, snapshot

__all__ = ["Training", "make_model", "prepare", "train", "train_step"]

ADVICE = "lower optim.lr or lengthen optim.warmup, and give --out a new folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one step gave; the same on all ranks.

    Attributes:
        loss: Mean squared error over the scored, hidden voxels of the step's samples.
        norm: Of the gradient, before it was clipped.
        stop: Whether any rank was asked to stop.
        waited: Seconds that the ranks spent waiting for batches, on average.
        skipped_scans: What the step saw on all ranks, if it was skipped because it was not finite; else nothing.
    """

    loss: float
    norm: float
    stop: bool
    waited: float
    skipped_scans: tuple[str, ...]


def train(recipe: Recipe, *, corpus: Path, out: Path) -> bool:
    """Run a recipe on a corpus into the folder `out`, or take up the run that is there.

    Until the first step is taken the folder can be left as it was, and is, if the start fails or is asked to stop.

    Returns:
        Whether the run is finished; False after a signal, when what was done has been saved.

    Raises:
        UserError: Wrong use, or the run cannot go on; one line that says why.
    """
    check_trackers(recipe.train.trackers)
    opened = Corpus.open(corpus)
    cohort = read_cohort(opened, recipe.data)
    try:
        with interrupts() as interrupt:
            return _train(recipe, opened, cohort, out, interrupt)
    except Interrupted:
        say_nothing_to_save(out)
        return False


def _train(recipe: Recipe, corpus: Corpus, cohort: Cohort, out: Path, interrupt: Interrupt) -> bool:
    accelerator = make_accelerator(recipe, out)
    with ExitStack() as stack:
        run = enter_on_main(accelerator, stack, lambda: open_run(out, recipe, corpus))
        training = prepare(recipe, accelerator)
        pending = resume(training, run, out)
        report = stack.enter_context(Report(training.plan, accelerator, run, done=training.step))
        if run is not None:
            run.note(effective_batch=training.plan.effective, device=device_name(accelerator))
        store = stack.enter_context(fill_cache(cohort, training, report, out))
        profiler = stack.enter_context(profiled(recipe.train.profile, out / "profile", report.say))
        judge = Judge(cohort, store, recipe, accelerator, asked=lambda: bool(interrupt))
        samples = TrainSamples(cohort, store, recipe.sampling, samples_per_step=training.plan.effective)
        batches = stack.enter_context(
            closing(
                train_batches(samples, training.plan, recipe.data, first_step=training.step, pin=on_gpu(accelerator))
            )
        )
        if training.evaluated != training.step:  # a new run, or one that was stopped before it came to that
            evaluate(training, report, judge, out, interrupt)
        report.begin(pending)
        interrupt.begin()
        stop = False
        while training.step < recipe.train.steps and not stop:
            outcome = train_step(training, batches, interrupt)
            stop = outcome.stop
            if run is not None:
                run.claim.keep()
            profiler.step()
            record(training, report, outcome)
            with report.pause():
                # Whoever sent a signal does not wait long.
                stop = stop or not evaluate(training, report, judge, out, interrupt)
                if stop or training.step == recipe.train.steps or _due(training.step, recipe.train.checkpoint_every):
                    save(training, report, run)
        if not stop:
            check_result(training)
        if run is not None:
            run.claim.keep()
            run.note(status=INTERRUPTED if stop else FINISHED, step=training.step)
    return not stop


def train_step(training: Training, batches: Iterator[Batch], interrupt: Interrupt) -> Outcome:
    """One optimizer step over the samples of the plan.

    The loss is the mean over all scored voxels of the step, however the samples are dealt out to forward passes and
    ranks: each pass gives a sum, and the gradient is divided once, when the number of voxels is known.
    """
    recipe, accelerator, plan = training.recipe, training.accelerator, training.plan
    torch.manual_seed(int(generator(recipe.train.seed, NOISE, training.step * plan.ranks + plan.rank).integers(2**63)))
    training.model.train()
    training.schedule.step_update(training.step)
    # Keeps the sums near 1, within the reach of fp16.
    nominal_voxels = plan.batch * recipe.data.patch**3
    totals_4 = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
    waited = 0.0
    scan_ids: list[str] = []

    for part in range(plan.accumulate):
        began = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - began
        scan_ids += batch.scan_ids
        batch = batch.to(accelerator.device)
        x_BCDHW, scored_B1DHW = network_input(batch, recipe.data.ct_windows, recipe.augment, patch=recipe.data.patch)
        last = part == plan.accumulate - 1
        with nullcontext() if last else accelerator.no_sync(training.model):
            output = training.model(x_BCDHW, MaskGeometry(batch.visible_Bdhw), scored_B1DHW)
            accelerator.backward(output.loss * (output.scored_voxels / nominal_voxels))
        totals_4[0] += output.loss.detach().double() * output.scored_voxels
        totals_4[1] += output.scored_voxels

    # One small exchange a step: the loss, its voxels, whether any rank was asked to stop, and how long they waited.
    totals_4[2], totals_4[3] = float(interrupt.name is not None), waited / plan.ranks
    error, voxels, asked, waited = accelerator.reduce(totals_4, "sum").tolist()
    gradients = [parameter.grad for parameter in training.model.parameters() if parameter.grad is not None]
    torch._foreach_mul_(gradients, plan.ranks * nominal_voxels / max(voxels, 1.0))
    norm = float(accelerator.clip_grad_norm_(training.model.parameters(), recipe.train.clip or float("inf")))
    loss = error / max(voxels, 1.0)
    finite = isfinite(loss) and isfinite(norm)

    if finite or accelerator.scaler is not None:  # the scaler of fp16 skips by itself, and lowers its scale
        training.optimizer.step()
    training.optimizer.zero_grad()
    if finite and training.ema is not None:
        training.ema.update(training.bare)
    training.step += 1
    training.skipped += not finite
    training.skipped_in_a_row = 0 if finite else training.skipped_in_a_row + 1
    return Outcome(
        loss=loss,
        norm=norm,
        stop=asked > 0,
        waited=waited,
        skipped_scans=() if finite else tuple(sorted(set(gather_object(scan_ids)))),
    )


def record(training: Training, report: Report, outcome: Outcome) -> None:
    """Take a step into the report, and write a line where one is due.

    Raises:
        Diverged: Too many steps in a row were skipped.
    """
    step, every = training.step, training.recipe.train.log_every
    report.collect(loss=outcome.loss, norm=outcome.norm, waited=outcome.waited)
    if outcome.skipped_scans:
        report.skip(step, "its loss or gradient is not finite", outcome.skipped_scans)
        if training.skipped_in_a_row >= training.recipe.train.non_finite_patience:
            reason = (
                f"the loss or its gradient was not finite in {training.skipped_in_a_row} steps in a row, lastly on "
                f"{', '.join(outcome.skipped_scans)}"
            )
            raise Diverged(step, reason, advice=f"look at these scans, or {ADVICE}")
    if step == 1 or step % every == 0 or step == training.recipe.train.steps:
        lr = training.optimizer.param_groups[0]["lr"]
        report.line(step, lr=lr, skipped=training.skipped)


def evaluate(training: Training, report: Report, judge: Judge, out: Path, interrupt: Interrupt) -> bool:
    """Validate, draw and probe where it is due; the last step always validates and draws.

    Returns:
        Whether it was done; False after a signal, when it is left to the run that goes on.
    """
    recipe, step = training.recipe.train, training.step
    model, last = training.judged.eval(), step == recipe.steps
    validates, draws = (last or _due(step, every) for every in (recipe.validate_every, recipe.picture_every))
    probes = recipe.probe_every > 0 and (last or _due(step, recipe.probe_every))
    if validates or draws or probes:
        path = out / "pictures" / f"step_{step:06d}.png"
        loss = judge.validation_loss(model) if validates else None
        if draws and training.accelerator.is_main_process:
            judge.draw(path, model, step=step)
        scores = judge.probe(model.encoder) if probes else {}
        if training.any_rank(bool(interrupt)):
            return False
        if validates:
            training.held_out_loss = loss
        if loss is not None:
            report.write(step=step, val_loss=loss)
        if draws and training.accelerator.is_main_process:
            report.picture(path, step)
        if probes:
            report.write(step=step, **scores)
    training.evaluated = step
    return True


def save(training: Training, report: Report, run: Run | None) -> None:
    """Write a checkpoint, on the first rank; the others wait for it.

    Raises:
        Diverged: There is nothing in the weights to go on from; the checkpoints before them stay.
    """
    if not training.has_finite_weights():
        raise Diverged(training.step, "its weights are not finite", advice=ADVICE)
    if run is not None:
        save_checkpoint(run.checkpoints, snapshot(training, pending=report.pending()), keep=training.recipe.train.keep)
    training.accelerator.wait_for_everyone()


def check_result(training: Training) -> None:
    """Refuse to call a run finished whose model says nothing.

    Raises:
        Diverged: It does not.
    """
    loss = training.held_out_loss
    reason = reason_at_end(
        steps=training.recipe.train.steps,
        skipped=training.skipped,
        skipped_in_a_row=training.skipped_in_a_row,
        finite_weights=training.has_finite_weights(),
        finite_scores=None if loss is None else isfinite(loss),
    )
    if reason is not None:
        raise Diverged(training.step, reason, advice=ADVICE)


def resume(training: Training, run: Run | None, out: Path) -> dict[str, list[float]] | None:
    """Take up the newest whole checkpoint, if there is one; gives the steps that were not yet written as a line."""
    if run is not None:
        remove_leftovers(run.checkpoints)
    training.accelerator.wait_for_everyone()
    fits = partial(check_fits, model=training.bare, optimizer=training.optimizer, needs=NEEDED, shape=SHAPE)
    found = load_newest(out / "checkpoints", say=partial(say_once, training.accelerator), fits=fits)
    if run is not None:
        run.forget_after(-1 if found is None else found.step)
    if found is None:
        return None
    restore(training, found, where=out)
    return found.training["pending"]


def fill_cache(cohort: Cohort, training: Training, report: Report, out: Path) -> AbstractContextManager[Store]:
    """Decode the scans to where the recipe wants them, and say so."""
    idle = idle_weights(cohort.scans, training.recipe.data.weights)
    if idle:
        report.say(f"data.weights: no scan is of {', '.join(idle)}")
    report.say(f"{len(cohort.train)} scans to train on, {len(cohort.val)} held out")
    return cached(
        cohort,
        training.recipe.data,
        run_name=str(out.resolve()),
        local_rank=training.accelerator.local_process_index,
        local_ranks=local_ranks(),
        agree=agree,
        wait=training.accelerator.wait_for_everyone,
        say=report.say,
    )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
