"""Fine-tune an encoder in stages: ``accelerate launch -m finetune.train --config ... --corpus ... --out ...``."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

from harmonize.launcher import end_with_launcher

if __name__ == "__main__":
    end_with_launcher()

# isort: split
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object

from finetune.folds import FOLDS, began_with_version_0_1_0, folds_of_run, keep_folds, write_folds
from finetune.inference import PREDICTIONS, score_of
from finetune.losses import finetune_loss
from finetune.metrics import Score
from finetune.model_folder import irreproducible, save_bundle, settings_of
from finetune.origin import read_given, rebuilt
from finetune.recipe import Recipe
from finetune.report import write_report
from finetune.run_folder import RunFolder, hold_run
from finetune.samples import Batch, RegionStore, TrainingSamples, check_patch, training_batches
from finetune.stages import apply_rates, total_steps
from finetune.step_log import log_score, log_skip, log_steps, summary
from finetune.tasks.aneurysm import select
from finetune.trainer import NEEDED, SHAPE, StepReport, Trainer, make_trainer, notes, restore, snapshot
from finetune.validation import ADVICE, check_result, validate, validate_if_due
from harmonize.corpus import Corpus
from harmonize.errors import UserError
from harmonize.files import atomic_path
from harmonize.progress import Progress
from headspark.config import parse_recipe, recipe_parser, run_command
from headspark.data.batches import Plan
from headspark.run.checkpoint import check_fits, load_newest, save_checkpoint
from headspark.run.claim import CHECKPOINTS
from headspark.run.device import agree, enter_on_main, mixed_precision, say_once, threads_of_a_rank
from headspark.run.diverged import Diverged
from headspark.run.interrupt import EXIT_INTERRUPTED, Interrupt, Interrupted, interrupts, say_nothing_to_save

NOT_FINITE = "its loss or gradient is not finite"


class Outcome(NamedTuple):
    """What one step gave; the same on all ranks.

    Attributes:
        report: In numbers.
        stop: Whether any rank was asked to stop.
        skipped_scans: What the step saw on all ranks, if it was skipped because it was not finite; else nothing.
    """

    report: StepReport
    stop: bool
    skipped_scans: tuple[str, ...]


def train(
    recipe: Recipe, *, corpus: Corpus, encoder_folder: str | None, out: Path, brain_model: Path | None = None
) -> Score | None:
    """Run all stages, or what is left of them, and write the model and its predictions for the validation fold.

    Args:
        recipe: The run's.
        corpus: With labelled RSNA series.
        encoder_folder: Folder or Hub repository of a pretrained encoder; None trains the recipe's from scratch.
        out: The run's folder.
        brain_model: SynthStrip's weights, for a corpus that was made with ``--apply-brain``.

    Returns:
        The score on the validation fold; None after a signal, when what was done has been saved.

    Raises:
        UserError: The run cannot start or go on.
    """
    try:
        with interrupts() as interrupt:
            return _train(recipe, corpus, encoder_folder, out, brain_model, interrupt)
    except Interrupted:
        say_nothing_to_save(out)
        return None


def _train(
    recipe: Recipe,
    corpus: Corpus,
    encoder_folder: str | None,
    out: Path,
    brain_model: Path | None,
    interrupt: Interrupt,
) -> Score | None:
    accelerator = Accelerator(
        mixed_precision=mixed_precision(recipe.train.precision),
        # Said outright: without a GPU, accelerate would otherwise take each rank for a run of its own.
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    torch.set_num_threads(recipe.train.threads or threads_of_a_rank())
    # A pretrained encoder says its stride when it is loaded.
    check_patch(recipe.data, recipe.scratch.cumulative_strides[-1] if encoder_folder is None else 1, corpus.spacing)
    old = began_with_version_0_1_0(out)
    selection = select(corpus, every_label=old)
    note = partial(say_once, accelerator, stream=sys.stderr)
    note(f"note: {selection.summary()}")
    fault = irreproducible(corpus, selection.cases, brain_model=brain_model)
    if fault is not None:
        if not old:
            raise UserError(f"{corpus.path}: {fault}", exit_code=2)
        note(f"note: the finished model will not harmonize as its corpus was: {fault}")
    settings = settings_of(corpus, brain_model=brain_model)
    folds = folds_of_run(corpus, recipe, selection.cases, out)
    training, held_out = folds.split(selection.cases, recipe.data.fold)
    given = read_given(encoder_folder)
    own_folds = partial(write_folds, out / FOLDS, folds) if old else None
    rank, ranks = accelerator.process_index, accelerator.num_processes
    hold = partial(hold_run, corpus=corpus.manifest_sha256(), ranks=ranks, given=given, first=own_folds)
    with ExitStack() as stack:
        folder = enter_on_main(accelerator, stack, lambda: hold(out, recipe))
        encoder = given.network
        if given.fault is not None:
            note(f"note: {given.fault}; the run's checkpoint holds its weights")
            encoder = rebuilt(agree({} if folder is None else folder.encoder or {}))
        trainer = make_trainer(recipe, accelerator, encoder)
        fits = partial(check_fits, model=trainer.model, optimizer=trainer.optimizer, needs=NEEDED, shape=SHAPE)
        checkpoint = load_newest(out / CHECKPOINTS, say=partial(say_once, accelerator), fits=fits)
        for line in notes(trainer, corpus):
            note(f"note: {line}")
        if checkpoint is not None:
            restore(trainer, checkpoint)
        elif given.fault is not None:
            raise given.fault
        if folder is not None:
            folder.forget_after(trainer.step)
        seen = RegionStore(training, trainer.data, label="training series")
        judged = RegionStore(held_out[rank::ranks], trainer.data, label="held-out series")
        if folder is not None and not folds.stored and not old:
            keep_folds(folds, corpus, out)
        interrupt.begin()
        done = run_stages(trainer, seen, judged, folder, interrupt)
        predictions = validate(trainer, judged, interrupt) if done else None
        if predictions is None:
            if folder is not None:
                folder.interrupt(trainer.step)
            return None
        check_result(trainer, predictions)
        score = score_of(predictions)
        if folder is not None:
            log_score(folder, trainer, score)
            with atomic_path(out / PREDICTIONS) as temporary:
                predictions.to_parquet(temporary, index=False)
            save_bundle(out, trainer.bundle(settings), trainer.judged.state_dict())
            folder.finish(
                {**score.headline(), "held_out_series": len(predictions), "left_out": dict(selection.left_out)}
            )
            write_report(out, corpus)
        say_once(accelerator, summary(trainer, score))
    accelerator.end_training()
    return score


def run_stages(
    trainer: Trainer, seen: RegionStore, judged: RegionStore, folder: RunFolder | None, interrupt: Interrupt
) -> bool:
    """Take the steps that are left, with validations, log lines and checkpoints on the way.

    Args:
        trainer: At the step to go on from.
        seen: Training series.
        judged: This rank's held-out series.
        folder: Where the main process writes; None on the others.
        interrupt: Whether the run was asked to stop.

    Returns:
        Whether all are taken; False after a signal, when the last one has been saved.
    """
    recipe, data = trainer.recipe.train, trainer.data
    stride = trainer.recipe.head.stride
    steps = total_steps(trainer.recipe.stages)
    plan = Plan(
        steps=steps,
        batch=recipe.batch,
        accumulate=recipe.accumulate,
        rank=trainer.accelerator.process_index,
        ranks=trainer.accelerator.num_processes,
    )
    samples = TrainingSamples(seen, data, trainer.recipe.augment, stride=stride, seed=recipe.seed)
    with (
        closing(training_batches(samples, plan, data, first_step=trainer.step)) as batches,
        Progress("fine-tune", total=steps, unit="step", done=trainer.step) as progress,
    ):
        began = time.monotonic()
        # First the validation that a run which was asked to stop had left out.
        stop = not validate_if_due(trainer, judged, folder, interrupt, progress)
        while trainer.step < steps and not stop:
            rates = trainer.rates()
            outcome = train_step(trainer, batches, interrupt)
            stop = outcome.stop
            progress.advance(stage=rates.name, loss=f"{outcome.report.loss:.3f}")
            if folder is not None:
                folder.claim.keep()
            record(trainer, outcome, folder, progress)
            if folder is not None and (trainer.step % recipe.log_every == 0 or trainer.step == 1):
                log_steps(folder, trainer, rates, time.monotonic() - began)
            if trainer.step % recipe.log_every == 0 or trainer.step == 1:
                trainer.pending, began = [], time.monotonic()
            # Whoever sent a signal does not wait long.
            stop = stop or not validate_if_due(trainer, judged, folder, interrupt, progress)
            if stop or trainer.step == steps or trainer.step % recipe.checkpoint_every == 0:
                save(trainer, folder)
    return not stop


def train_step(trainer: Trainer, batches: Iterator[Batch], interrupt: Interrupt) -> Outcome:
    """Take one optimizer step."""
    recipe, accelerator = trainer.recipe, trainer.accelerator
    apply_rates(trainer.rates(), trainer.model, trainer.optimizer)
    # Dropout follows from the step, as the samples do, so a resumed run needs no generator's state.
    torch.manual_seed(recipe.train.seed + trainer.step * accelerator.num_processes + accelerator.process_index)

    sums_5 = torch.zeros(5, device=accelerator.device)
    scan_ids: list[str] = []
    for part in range(recipe.train.accumulate):
        batch = next(batches).to(accelerator.device)
        scan_ids += batch.scan_ids
        last = part == recipe.train.accumulate - 1
        with nullcontext() if last else accelerator.no_sync(trainer.parallel):
            output = trainer.parallel(batch.x_BCDHW.to(memory_format=torch.channels_last_3d))
            losses = finetune_loss(output, batch.targets, recipe.loss)
            accelerator.backward(losses.total / recipe.train.accumulate)
        sums_5[:4] += torch.stack(losses).detach() / recipe.train.accumulate

    # One small exchange a step: the losses, and whether any rank was asked to stop.
    sums_5[4] = float(bool(interrupt))
    total, labels, presence, territory, asked = accelerator.reduce(sums_5, "mean").tolist()
    limit = recipe.train.clip if recipe.train.clip > 0 else math.inf
    norm = float(accelerator.clip_grad_norm_(trainer.parallel.parameters(), limit))
    report = StepReport(total, labels, presence, territory, norm)
    # The scaler of fp16 must see a bad step to shrink its scale; it leaves the weights alone by itself.
    if report.finite or accelerator.scaler is not None:
        trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    if report.finite and trainer.ema is not None:
        trainer.ema.update(trainer.model)
    trainer.step += 1
    trainer.skipped += not report.finite
    trainer.non_finite = 0 if report.finite else trainer.non_finite + 1
    return Outcome(
        report=report,
        stop=asked > 0,
        skipped_scans=() if report.finite else tuple(sorted(set(gather_object(scan_ids)))),
    )


def record(trainer: Trainer, outcome: Outcome, folder: RunFolder | None, progress: Progress) -> None:
    """Note a step; one that was skipped is named.

    Raises:
        Diverged: Too many steps in a row were skipped.
    """
    trainer.pending.append(outcome.report)
    if outcome.report.finite:
        return
    scans = ", ".join(outcome.skipped_scans)
    if folder is not None:
        progress.say(f"step {trainer.step} skipped: {NOT_FINITE}; it saw {scans}")
        log_skip(folder, trainer, NOT_FINITE, outcome.skipped_scans)
    if trainer.non_finite >= trainer.recipe.train.non_finite_patience:
        reason = f"the loss or its gradient was not finite in {trainer.non_finite} steps in a row, lastly on {scans}"
        raise Diverged(trainer.step, reason, advice=f"look at these series, or {ADVICE}")


def save(trainer: Trainer, folder: RunFolder | None) -> None:
    """Write a checkpoint, on the first rank; the others wait for it.

    Raises:
        Diverged: There is nothing in the weights to go on from; the checkpoints before them stay.
    """
    if not trainer.has_finite_weights():
        raise Diverged(trainer.step, "its weights are not finite", advice=ADVICE)
    if folder is not None:
        save_checkpoint(folder.checkpoints, snapshot(trainer), keep=trainer.recipe.train.keep)
    trainer.accelerator.wait_for_everyone()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m finetune.train``."""
    return run_command(_command, sys.argv[1:] if argv is None else argv)


def _command(argv: Sequence[str]) -> int:
    parser = recipe_parser(Recipe, prog="finetune train", description="Fine-tune an encoder in stages.")
    parser.add_argument("--corpus", type=Path, required=True, help="folder that `harmonize rsna` wrote")
    parser.add_argument("--encoder", type=str, default=None, help="pretrained encoder: folder or Hub repository")
    parser.add_argument(
        "--brain-model", type=Path, default=None, help="SynthStrip's weights, if the corpus was made with --apply-brain"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an unfinished one is taken up")
    recipe, options = parse_recipe(parser, Recipe, argv)
    score = train(
        recipe,
        corpus=Corpus.open(options.corpus),
        encoder_folder=options.encoder,
        out=options.out,
        brain_model=options.brain_model,
    )
    return EXIT_INTERRUPTED if score is None else 0


if __name__ == "__main__":
    sys.exit(main())
