"""The pretraining run: start or resume, step after step, validate, and never lose what was done.

Every random number is a function of the recipe's seed and of the step or the sample it belongs to. So a checkpoint
holds no generator, and a run that was killed ends with the same weights as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from functools import partial
from math import isfinite
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch import Tensor

from harmonize.corpus import Corpus
from headspark.data.batches import PretrainBatch, network_input, train_batches, vessel_steps
from headspark.data.cache import Store, cached
from headspark.data.cohort import Cohort, idle_weights, read_cohort, without_vessels
from headspark.data.crops import NOISE, generator
from headspark.data.samples import TrainSamples
from headspark.pretraining.evaluate import Evaluator
from headspark.pretraining.origin import PRETRAINING, began_with
from headspark.pretraining.state import PretrainState, prepare
from headspark.recipe import Recipe
from headspark.run.claim import PICTURES
from headspark.run.device import agree, device_name, enter_on_main, local_ranks, make_accelerator, on_gpu
from headspark.run.folder import FINISHED, INTERRUPTED, SAMPLES_PER_STEP, completed, open_run
from headspark.run.interrupt import Interrupt, Interrupted, interrupts, say_nothing_to_save
from headspark.run.metrics_log import MetricsLog, check_trackers
from headspark.run.profiling import profiled
from headspark.run.resume import check_result, resume, save
from headspark.run.state import StepResult, counts, due
from headspark.spark import SparKOutput, Term

__all__ = ["train", "train_step"]


def train(recipe: Recipe, *, corpus: Path, out: Path) -> bool:
    """Run a recipe on a corpus into the folder `out`, or take up the run that is there.

    Until the first step is taken the folder can be left as it was, and is, if the start fails or is asked to stop.

    Returns:
        Whether the run is finished; False after a signal, when what was done has been saved.

    Raises:
        UserError: Wrong use, or the run cannot go on; one line that says why.
    """
    check_trackers(recipe.train.trackers)
    recipe = completed(recipe, out)
    opened = Corpus.open(corpus)
    cohort = read_cohort(opened, recipe.data)
    try:
        with interrupts() as interrupt:
            return _train(recipe, opened, cohort, out, interrupt)
    except Interrupted:
        say_nothing_to_save(out)
        return False


def _train(recipe: Recipe, corpus: Corpus, cohort: Cohort, out: Path, interrupt: Interrupt) -> bool:
    settings = recipe.train
    accelerator = make_accelerator(
        precision=settings.precision, threads=settings.threads, out=out, trackers=settings.trackers
    )
    origin = partial(began_with, corpus=corpus, folder=out)
    with ExitStack() as stack:
        run = enter_on_main(accelerator, stack, lambda: open_run(out, recipe, PRETRAINING, began_with=origin))
        state = prepare(recipe, accelerator)
        plan = state.plan
        resume(state, run, out)
        log = stack.enter_context(MetricsLog(state, run, label="pretrain"))
        if run is not None:
            run.note(**{SAMPLES_PER_STEP: plan.samples_per_step, "device": device_name(accelerator)})
        store = stack.enter_context(fill_cache(cohort, state, log, out))
        profiler = stack.enter_context(profiled(settings.profile, out / "profile", log.say))
        evaluator = Evaluator(cohort, store, recipe, accelerator, asked=lambda: bool(interrupt))
        samples = TrainSamples(cohort, store, recipe.sampling, samples_per_step=plan.samples_per_step)
        # Which blocks of turned samples are scored is known when they are turned, on the accelerator.
        find_wanted = recipe.decoder.where == "scored" and not recipe.augment.turns
        pin, first = on_gpu(accelerator), state.step
        batches = stack.enter_context(
            closing(train_batches(samples, plan, recipe.data, first_step=first, pin=pin, find_wanted=find_wanted))
        )
        if state.evaluated != state.step:  # a new run, or one that was stopped before it came to that
            evaluate(state, log, evaluator, out, interrupt)
        log.begin()
        interrupt.begin()
        stop = False
        while state.step < settings.steps and not stop:
            result = train_step(state, batches, interrupt)
            stop = result.stop
            if run is not None:
                run.claim.keep()
            profiler.step()
            record(state, log, result)
            with log.pause():
                # Whoever sent a signal does not wait long.
                stop = stop or not evaluate(state, log, evaluator, out, interrupt)
                if stop or state.step == settings.steps or due(state.step, settings.checkpoint_every):
                    save(state, run, keep=settings.keep)
        if not stop:
            loss = state.held_out_loss
            check_result(state, finite_scores=None if loss is None else isfinite(loss))
        if run is not None:
            run.end(INTERRUPTED if stop else FINISHED, step=state.step)
    return not stop


def train_step(state: PretrainState, batches: Iterator[PretrainBatch], interrupt: Interrupt) -> StepResult:
    """One optimizer step over the samples of the plan.

    The loss is the mean over all scored voxels of the step, however the samples are dealt out to forward passes and
    ranks: each pass gives a sum, and the gradient is divided once, when the number of voxels is known.
    """
    recipe, data, accelerator, plan = state.recipe, state.recipe.data, state.accelerator, state.plan
    torch.manual_seed(int(generator(recipe.train.seed, NOISE, state.step * plan.ranks + plan.rank).integers(2**63)))
    state.model.train()
    state.schedule.step_update(state.step)
    # Keeps the sums near 1, within the reach of fp16.
    nominal_voxels = plan.batch * data.patch**3
    totals_2 = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    errors_T2 = torch.zeros(len(state.terms), 2, dtype=torch.float64, device=accelerator.device)
    waited = 0.0
    scan_ids: list[str] = []

    for part in range(plan.accumulate):
        began = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - began
        scan_ids += batch.scan_ids
        batch = batch.to(accelerator.device)
        x_BCDHW, scored_B1DHW = network_input(
            batch, data.windows, recipe.augment, patch=data.patch, mri_scaling=data.scaling
        )
        last = part == plan.accumulate - 1
        steps_B1DHW = vessel_steps(batch, recipe.augment, patch=data.patch)
        with nullcontext() if last else accelerator.no_sync(state.model):
            output = state.model(x_BCDHW, batch.geometry, scored_B1DHW, batch.wanted, steps_B1DHW, batch.twice)
            accelerator.backward(output.summed_loss / nominal_voxels)
        totals_2[0] += output.loss.detach().double() * output.scored_voxels
        totals_2[1] += output.scored_voxels
        if state.terms:
            errors_T2 += sums_of_terms(output, state.terms)

    # One small exchange a step: the loss, its voxels, whether any rank was asked to stop, and how long they waited.
    # What it gives, and the norm, are read in one go: then alone the host waits for an accelerator.
    host = [totals_2.new_full((1,), number) for number in (float(interrupt.name is not None), waited / plan.ranks)]
    totals = accelerator.reduce(torch.cat([totals_2, *host, errors_T2.flatten()]), "sum")
    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    torch._foreach_mul_(gradients, (plan.ranks * nominal_voxels / totals[1].clamp(min=1.0)).float())
    norm = accelerator.clip_grad_norm_(state.model.parameters(), recipe.train.clip or float("inf"))
    error, voxels, asked, waited, *sums, norm = torch.cat([totals, norm.double().view(1)]).tolist()
    means = [total / max(count, 1.0) for total, count in zip(sums[::2], sums[1::2], strict=True)]
    numbers = {"loss": error / max(voxels, 1.0), **dict(zip(state.terms, means, strict=True)), "norm": norm}
    finite = counts(numbers)

    state.update(finite=finite)
    return StepResult(
        numbers=numbers,
        stop=asked > 0,
        waited=waited,
        skipped_scans=() if finite else tuple(sorted(set(gather_object(scan_ids)))),
    )


def sums_of_terms(output: SparKOutput, names: Sequence[str]) -> Tensor:
    """Of what a pass measured beside the loss, the sum and the count, [terms, 2] float64; zero where it had none."""
    none = output.loss.new_zeros(()).double()
    found = [output.terms.get(name, Term(none, none)) for name in names]
    return torch.stack([torch.stack([one.value.detach().double() * one.weight, one.weight.double()]) for one in found])


def record(state: PretrainState, log: MetricsLog, result: StepResult) -> None:
    """Take a step into the log, and write a line where one is due.

    Raises:
        Diverged: Too many steps in a row were skipped.
    """
    settings, step = state.recipe.train, state.step
    log.collect(result, patience=settings.non_finite_patience)
    if step == 1 or due(step, settings.log_every) or step == settings.steps:
        lr, norm = state.optimizer.param_groups[0]["lr"], state.pending[-1]["norm"]
        means = log.means()
        log.line(**{name: means[name] for name in ("loss", *state.terms)}, lr=lr, grad_norm=norm)


def evaluate(state: PretrainState, log: MetricsLog, evaluator: Evaluator, out: Path, interrupt: Interrupt) -> bool:
    """Validate, draw and probe where it is due; the last step always validates and draws.

    Returns:
        Whether it was done; False after a signal, when it is left to the run that goes on.
    """
    settings, step = state.recipe.train, state.step
    model, last = state.eval_model.eval(), step == settings.steps
    validates, draws = (last or due(step, every) for every in (settings.validate_every, settings.picture_every))
    probes = settings.probe_every > 0 and (last or due(step, settings.probe_every))
    if validates or draws or probes:
        path = out / PICTURES / f"step_{step:06d}.png"
        losses = evaluator.validation_losses(model) if validates else {}
        if draws and state.accelerator.is_main_process:
            evaluator.draw(path, model, step=step)
        scores = evaluator.probe(model.encoder) if probes else {}
        if state.any_rank(bool(interrupt)):
            return False
        if validates:
            state.held_out_loss = losses.get("val_loss")
        if losses:
            log.write(**losses)
        if draws and state.accelerator.is_main_process:
            log.picture(path)
        if probes:
            log.write(**scores)
    state.evaluated = step
    return True


def fill_cache(cohort: Cohort, state: PretrainState, log: MetricsLog, out: Path) -> AbstractContextManager[Store]:
    """Decode the scans to where the recipe wants them, and say so."""
    idle = idle_weights(cohort.scans, state.recipe.data.weights)
    if idle:
        log.say(f"data.weights: no scan is of {', '.join(idle)}")
    log.say(f"{len(cohort.train)} scans to train on, {len(cohort.val)} held out")
    plain = without_vessels(cohort.scans) if state.recipe.vessels.wanted else None
    if plain is not None:
        log.say(plain)
    return cached(
        cohort.scans,
        state.recipe.data,
        decoder=state.recipe.decoder_of_scans,
        run_name=str(out.resolve()),
        local_rank=state.accelerator.local_process_index,
        local_ranks=local_ranks(),
        agree=agree,
        wait=state.accelerator.wait_for_everyone,
        say=log.say,
    )
