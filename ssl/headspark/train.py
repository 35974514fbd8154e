"""The pretraining run: start or resume, step after step, validate, and never lose what was done.

Every random number is a function of the recipe's seed and of the step or the sample it belongs to. So a checkpoint
holds no generator, and a run that was killed ends with the same weights as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from harmonize.corpus import Corpus
from harmonize.errors import UserError
from headspark.cache import Store, cached
from headspark.checkpoint import Checkpoint, load_newest, remove_leftovers, save_checkpoint
from headspark.cohort import Cohort, idle_weights, read_cohort
from headspark.config import WRONG_USE
from headspark.crops import NOISE, generator
from headspark.data import Batch, Plan, network_input, train_batches
from headspark.device import agree, device_name, local_ranks, make_accelerator, on_gpu
from headspark.encoder import build_encoder
from headspark.evaluate import Judge
from headspark.fit import fit_batch
from headspark.interrupt import Interrupt, interrupts
from headspark.optim import make_optimizer, make_schedule
from headspark.packed_geometry import MaskGeometry
from headspark.profiling import profiled
from headspark.recipe import Recipe
from headspark.report import Report, check_trackers
from headspark.run import FINISHED, INTERRUPTED, Run, open_run
from headspark.samples import TrainSamples
from headspark.spark import SparK


@dataclass(slots=True, kw_only=True)
class Training:
    """What changes from step to step, and what moves it.

    Attributes:
        recipe: What the run is.
        accelerator: Device, ranks, precision.
        plan: Which samples each step uses.
        model: As prepared by the accelerator.
        optimizer: As prepared by the accelerator.
        schedule: Sets the learning rate of a step.
        ema: Moving average of the weights, or None.
        step: Optimizer steps done.
        skipped: Steps whose loss or gradient was not finite.
        skipped_in_a_row: The last so many of them.
        evaluated: The last step after which `evaluate` was called.
    """

    recipe: Recipe
    accelerator: Accelerator
    plan: Plan
    model: nn.Module
    optimizer: Optimizer
    schedule: Scheduler
    ema: ModelEmaV3 | None
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    evaluated: int = -1

    @property
    def bare(self) -> SparK:
        """The model without the accelerator's wrapping."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def judged(self) -> SparK:
        """The model that is validated and exported: the moving average, if there is one."""
        return self.bare if self.ema is None else self.ema.module


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

    Returns:
        Whether the run is finished; False after a signal, when a checkpoint has been written.

    Raises:
        UserError: Wrong use, or the run cannot go on; one line that says why.
    """
    check_trackers(recipe.train.trackers)
    opened = Corpus.open(corpus)
    cohort = read_cohort(opened, recipe.data)
    accelerator = make_accelerator(recipe, out)
    with ExitStack() as stack:
        interrupt = stack.enter_context(interrupts())
        run = stack.enter_context(open_run(out, recipe, opened)) if accelerator.is_main_process else None
        training = prepare(recipe, accelerator)
        pending = resume(training, run, out)
        report = stack.enter_context(Report(training.plan, accelerator, run, done=training.step))
        if run is not None:
            run.note(effective_batch=training.plan.effective, device=device_name(accelerator))
        store = stack.enter_context(fill_cache(cohort, training, report, out))
        profiler = stack.enter_context(profiled(recipe.train.profile, out / "profile", report.say))
        judge = Judge(cohort, store, recipe, accelerator)
        samples = TrainSamples(cohort, store, recipe, effective=training.plan.effective)
        batches = stack.enter_context(
            closing(train_batches(samples, training.plan, recipe, first_step=training.step, pin=on_gpu(accelerator)))
        )
        if training.evaluated != training.step:  # a new run, or one that was stopped before it came to that
            evaluate(training, report, judge, out)
        report.begin(pending)
        stop = False
        while training.step < recipe.train.steps and not stop:
            outcome = train_step(training, batches, interrupt)
            stop = outcome.stop
            profiler.step()
            record(training, report, outcome)
            with report.pause():
                if not stop:  # whoever sent a signal does not wait long
                    evaluate(training, report, judge, out)
                if stop or training.step == recipe.train.steps or _due(training.step, recipe.train.checkpoint_every):
                    save(training, report, run)
        if run is not None:
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
        UserError: Too many steps in a row were skipped.
    """
    step, every = training.step, training.recipe.train.log_every
    report.collect(loss=outcome.loss, norm=outcome.norm, waited=outcome.waited)
    if outcome.skipped_scans:
        scans = ", ".join(outcome.skipped_scans)
        report.say(f"step {step} skipped: its loss or gradient is not finite; it saw {scans}")
        if training.skipped_in_a_row >= training.recipe.train.non_finite_patience:
            raise UserError(
                f"step {step}: the loss or its gradient was not finite in {training.skipped_in_a_row} steps in a row, "
                f"lastly on {scans}; look at these scans, or lower optim.lr"
            )
    if step == 1 or step % every == 0 or step == training.recipe.train.steps:
        lr = training.optimizer.param_groups[0]["lr"]
        report.line(step, lr=lr, skipped=training.skipped)


def evaluate(training: Training, report: Report, judge: Judge, out: Path) -> None:
    """Validate, draw and probe where it is due; the last step always validates and draws."""
    recipe, step = training.recipe.train, training.step
    model, last = training.judged.eval(), step == recipe.steps
    training.evaluated = step
    if last or _due(step, recipe.validate_every):
        loss = judge.validation_loss(model)
        if loss is not None:
            report.write(step=step, val_loss=loss)
    if last or _due(step, recipe.picture_every):
        path = out / "pictures" / f"step_{step:06d}.png"
        if training.accelerator.is_main_process:
            judge.draw(path, model, step=step)
            report.picture(path, step)
    if recipe.probe_every and (last or _due(step, recipe.probe_every)):
        report.write(step=step, **judge.probe(model.encoder))


def save(training: Training, report: Report, run: Run | None) -> None:
    """Write a checkpoint, on the first rank; the others wait for it."""
    if run is not None:
        scaler = training.accelerator.scaler
        state: dict[str, Any] = {
            "optimizer": training.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "effective_batch": training.plan.effective,
            "skipped": training.skipped,
            "skipped_in_a_row": training.skipped_in_a_row,
            "evaluated": training.evaluated,
            "pending": report.pending(),
        }
        ema = None if training.ema is None else training.ema.module.state_dict()
        checkpoint = Checkpoint(step=training.step, model=training.bare.state_dict(), ema=ema, training=state)
        save_checkpoint(run.checkpoints, checkpoint, keep=training.recipe.train.keep)
    training.accelerator.wait_for_everyone()


def resume(training: Training, run: Run | None, out: Path) -> dict[str, list[float]] | None:
    """Take up the newest whole checkpoint, if there is one; gives the steps that were not yet written as a line."""
    if run is not None:
        remove_leftovers(run.checkpoints)
    training.accelerator.wait_for_everyone()
    found = load_newest(out / "checkpoints", say=training.accelerator.print)
    if run is not None:
        run.forget_after(-1 if found is None else found.step)
    if found is None:
        return None
    effective = found.training["effective_batch"]
    if effective != training.plan.effective:
        raise UserError(
            f"{out}: began with {effective} samples a step, now {training.plan.effective}: "
            "set train.batch, train.accumulate and the number of ranks so that their product is the same",
            exit_code=WRONG_USE,
        )
    training.step, training.evaluated = found.step, found.training["evaluated"]
    training.skipped, training.skipped_in_a_row = found.training["skipped"], found.training["skipped_in_a_row"]
    training.bare.load_state_dict(found.model)
    training.optimizer.load_state_dict(found.training["optimizer"])
    if training.ema is not None and found.ema is not None:
        training.ema.module.load_state_dict(found.ema)
    if training.accelerator.scaler is not None:
        training.accelerator.scaler.load_state_dict(found.training["scaler"])
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


def prepare(recipe: Recipe, accelerator: Accelerator) -> Training:
    """Model, optimizer and plan of a run at its first step."""
    batch, accumulate = recipe.train.batch, recipe.train.accumulate
    if on_gpu(accelerator):
        batch, accumulate = fit_batch(recipe, accelerator, make_model)
    model = make_model(recipe)
    if accelerator.num_processes > 1 and on_gpu(accelerator):
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    optimizer = make_optimizer(model, recipe.optim)
    schedule = make_schedule(optimizer, recipe.optim, steps=recipe.train.steps)
    ema = None if recipe.train.ema is None else ModelEmaV3(model, decay=recipe.train.ema).to(accelerator.device)
    model, optimizer = accelerator.prepare(model, optimizer)
    return Training(
        recipe=recipe,
        accelerator=accelerator,
        plan=Plan(
            steps=recipe.train.steps,
            batch=batch,
            accumulate=accumulate,
            rank=accelerator.process_index,
            ranks=accelerator.num_processes,
        ),
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        ema=ema,
    )


def make_model(recipe: Recipe) -> SparK:
    """The model at its first step: a function of the recipe's seed."""
    torch.manual_seed(recipe.train.seed)
    encoder = build_encoder(recipe.encoder)
    if recipe.train.activation_checkpointing:
        if not hasattr(encoder, "set_grad_checkpointing"):
            raise UserError(f"train.activation_checkpointing: {recipe.encoder.kind} cannot", exit_code=WRONG_USE)
        encoder.set_grad_checkpointing(True)
    return SparK(encoder, recipe.decoder, recipe.spark, in_channels=recipe.encoder.in_channels)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
