"""Fine-tune an encoder in stages: ``accelerate launch -m finetune.train --config ... --corpus ... --out ...``."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object

from finetune.bundle import irreproducible, save_bundle, settings_of
from finetune.data import Batch, RegionStore, TrainingSamples, check_patch, training_batches
from finetune.folds import FOLDS, began_with_version_0_1_0, folds_of_run, write_folds
from finetune.inference import PREDICTIONS, predict_cases, score_of
from finetune.losses import finetune_loss
from finetune.metrics import Score
from finetune.recipe import Recipe
from finetune.report import write_report
from finetune.rsna import select
from finetune.run_folder import RunFolder, hold_run
from finetune.stages import Rates, apply_rates, total_steps
from finetune.trainer import Trainer, differences, make_trainer, restore, snapshot
from harmonize.corpus import Corpus
from harmonize.errors import UserError
from harmonize.files import atomic_path
from harmonize.progress import Progress
from headspark.checkpoint import load_newest, save_checkpoint
from headspark.config import parse_recipe, recipe_parser, run_command
from headspark.data import Plan
from headspark.device import mixed_precision, threads_of_a_rank

CHECKPOINTS = "checkpoints"


class StepReport(NamedTuple):
    """One step in numbers."""

    loss: float
    labels: float
    presence: float
    territory: float
    gradient_norm: float


def train(
    recipe: Recipe, *, corpus: Corpus, encoder_folder: str | None, out: Path, brain_model: Path | None = None
) -> Score:
    """Run all stages, or what is left of them, and write the model and its predictions for the validation fold.

    Args:
        recipe: The run's.
        corpus: With labelled RSNA series.
        encoder_folder: Folder or Hub repository of a pretrained encoder; None trains the recipe's from scratch.
        out: The run's folder.
        brain_model: SynthStrip's weights, for a corpus that was made with ``--apply-brain``.

    Returns:
        The score on the validation fold.

    Raises:
        UserError: The run cannot start or go on.
    """
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
    accelerator.print(f"note: {selection.summary()}", file=sys.stderr)
    fault = irreproducible(corpus, selection.cases, brain_model=brain_model)
    if fault is not None:
        if not old:
            raise UserError(f"{corpus.path}: {fault}", exit_code=2)
        accelerator.print(f"note: the finished model will not harmonize as its corpus was: {fault}", file=sys.stderr)
    settings = settings_of(corpus, brain_model=brain_model)
    folds = folds_of_run(corpus, recipe, selection.cases, out)
    training, held_out = folds.split(selection.cases, recipe.data.fold)
    origin = {
        "corpus": corpus.manifest_sha256(),
        "encoder": encoder_folder,
        "ranks": accelerator.num_processes,
    }
    # Only one rank writes; the others go on when it has made or refused the folder.
    keep_folds = None if folds.kept else partial(write_folds, out / FOLDS, folds)
    with hold_run(out, recipe, origin, first=keep_folds) if accelerator.is_main_process else nullcontext() as folder:
        accelerator.wait_for_everyone()
        trainer = make_trainer(recipe, accelerator, encoder_folder)
        for line in differences(trainer.model.encoder, corpus, recipe.data):
            accelerator.print(f"note: {line}", file=sys.stderr)
        checkpoint = load_newest(out / CHECKPOINTS, say=accelerator.print)
        if checkpoint is not None:
            restore(trainer, checkpoint)
        if folder is not None:
            folder.forget_after(trainer.step)
        rank, ranks = accelerator.process_index, accelerator.num_processes
        seen = RegionStore(training, trainer.data, label="training series")
        judged = RegionStore(held_out[rank::ranks], trainer.data, label="held-out series")
        run_stages(trainer, seen, judged, folder)
        predictions = validate(trainer, judged)
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
        accelerator.print(summary(trainer, score))
    accelerator.end_training()
    return score


def run_stages(trainer: Trainer, seen: RegionStore, judged: RegionStore, folder: RunFolder | None) -> None:
    """Take the steps that are left, with validations, log lines and checkpoints on the way.

    Args:
        trainer: At the step to go on from.
        seen: Training series.
        judged: This rank's held-out series.
        folder: Where the main process writes; None on the others.
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
    batches = training_batches(samples, plan, first_step=trainer.step, workers=data.workers)
    with Progress("fine-tune", total=steps, unit="step", done=trainer.step) as progress:
        reports: list[StepReport] = []
        began = time.monotonic()
        while trainer.step < steps:
            rates = trainer.rates()
            reports.append(train_step(trainer, batches))
            progress.advance(stage=rates.name, loss=f"{reports[-1].loss:.3f}")
            if folder is not None and (trainer.step % recipe.log_every == 0 or trainer.step == 1):
                log_steps(folder, trainer, rates, reports, time.monotonic() - began)
                reports, began = [], time.monotonic()
            if recipe.validate_every and trainer.step % recipe.validate_every == 0 and trainer.step < steps:
                score = score_of(validate(trainer, judged))
                progress.say(summary(trainer, score))
                if folder is not None:
                    log_score(folder, trainer, score)
            if folder is not None and trainer.step % recipe.checkpoint_every == 0 and trainer.step < steps:
                save_checkpoint(folder.checkpoints, snapshot(trainer), keep=recipe.keep)


def train_step(trainer: Trainer, batches: Iterator[Batch]) -> StepReport:
    """Take one optimizer step.

    Raises:
        UserError: The gradient was not finite too many times in a row.
    """
    recipe, accelerator = trainer.recipe, trainer.accelerator
    apply_rates(trainer.rates(), trainer.model, trainer.optimizer)
    # Dropout follows from the step, as the samples do, so a resumed run needs no generator's state.
    torch.manual_seed(recipe.train.seed + trainer.step * accelerator.num_processes + accelerator.process_index)

    sums = torch.zeros(4, device=accelerator.device)
    for part in range(recipe.train.accumulate):
        batch = next(batches).to(accelerator.device)
        last = part == recipe.train.accumulate - 1
        with nullcontext() if last else accelerator.no_sync(trainer.parallel):
            output = trainer.parallel(batch.x_BCDHW.to(memory_format=torch.channels_last_3d))
            losses = finetune_loss(output, batch.targets, recipe.loss)
            accelerator.backward(losses.total / recipe.train.accumulate)
        sums += torch.stack(losses).detach() / recipe.train.accumulate

    limit = recipe.train.clip if recipe.train.clip > 0 else math.inf
    norm = float(accelerator.clip_grad_norm_(trainer.parallel.parameters(), limit))
    finite = math.isfinite(norm)
    trainer.non_finite = 0 if finite else trainer.non_finite + 1
    if trainer.non_finite >= recipe.train.non_finite_patience:
        raise UserError(f"step {trainer.step}: {trainer.non_finite} non-finite gradients in a row; lower the rates")
    # The scaler of fp16 must see a bad step to shrink its scale; it leaves the weights alone by itself.
    if finite or accelerator.scaler is not None:
        trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    if trainer.ema is not None:
        trainer.ema.update(trainer.model)
    trainer.step += 1
    total, labels, presence, territory = sums.tolist()
    return StepReport(total, labels, presence, territory, norm)


def validate(trainer: Trainer, judged: RegionStore) -> pd.DataFrame:
    """Predictions for the held-out series of all ranks, ordered by id; on every rank."""
    trainer.judged.eval()
    with trainer.accelerator.autocast():
        own = predict_cases(trainer.judged, judged, trainer.data, trainer.accelerator.device)
    return pd.concat(gather_object([own])).sort_values("scan_id", ignore_index=True)


def log_steps(folder: RunFolder, trainer: Trainer, rates: Rates, reports: Sequence[StepReport], seconds: float) -> None:
    """Write a line with the means of the steps since the last one."""
    means = {name: sum(values) / len(values) for name, *values in zip(StepReport._fields, *reports, strict=True)}
    encoder_rates = [rate for rate in rates.encoder if rate is not None]
    folder.log(
        {
            "step": trainer.step,
            "stage": rates.name,
            **means,
            "lr_head": rates.head,
            "lr_encoder": max(encoder_rates, default=0.0),
            "layers": len(encoder_rates),
            "seconds": round(seconds, 3),
        }
    )


def log_score(folder: RunFolder, trainer: Trainer, score: Score) -> None:
    """Write the line of a validation."""
    folder.log({"step": trainer.step, "stage": trainer.last_stage(), **score.headline()})


def summary(trainer: Trainer, score: Score) -> str:
    """One line for a person."""
    note = f" ({score.note()})" if score.note() else ""
    return (
        f"step {trainer.step} ({trainer.last_stage()}): AUC present {score.auc_present:.3f}, "
        f"mean of locations {score.auc_mean_locations:.3f}, score {score.score:.3f}{note}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m finetune.train``."""
    return run_command(_command, sys.argv[1:] if argv is None else argv)


def _command(argv: Sequence[str]) -> int:
    parser = recipe_parser(Recipe, prog="finetune.train", description=__doc__ or "")
    parser.add_argument("--corpus", type=Path, required=True, help="folder that `harmonize rsna` wrote")
    parser.add_argument("--encoder", type=str, default=None, help="pretrained encoder: folder or Hub repository")
    parser.add_argument(
        "--brain-model", type=Path, default=None, help="SynthStrip's weights, if the corpus was made with --apply-brain"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an unfinished one is taken up")
    recipe, options = parse_recipe(parser, Recipe, argv)
    train(
        recipe,
        corpus=Corpus.open(options.corpus),
        encoder_folder=options.encoder,
        out=options.out,
        brain_model=options.brain_model,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
