"""Fine-tune an encoder in stages: ``accelerate launch -m finetune.train --config ... --corpus ... --out ...``."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from functools import partial
from pathlib import Path

from harmonize.launcher import end_with_launcher

if __name__ == "__main__":
    end_with_launcher()

# isort: split
import torch
from accelerate.utils import gather_object

from finetune import disagreements
from finetune.cohort import TRAINED_ON, cohort_of_run
from finetune.evaluation.predictions import has_finite
from finetune.folds import FOLDS, began_with_version_0_1_0, keep_folds, write_folds
from finetune.metrics import Score
from finetune.model_folder import irreproducible, save_bundle, settings_of
from finetune.origin import EPOCH_STEPS, FINE_TUNING, began_with, read_given, rebuilt, recipe_of
from finetune.pseudo import read_pseudo_labels
from finetune.recipe import Recipe
from finetune.regions import RegionDecoder, RegionStore
from finetune.report import REPORT, RESULTS, write_report
from finetune.samples import DrawnBatch, TrainingSamples, check_patch, training_batches
from finetune.segmentation import said_columns
from finetune.series import Case, Region
from finetune.sources import Sources, add_sources
from finetune.stages import apply_rates, steps_of_epoch
from finetune.state import FinetuneState, begin_decoders, notes, prepare, stages_of_run
from finetune.tasks import make_task
from finetune.validation import evaluate, predict_held_out, score_facts, summary, write_held_out
from harmonize.corpus import Corpus
from harmonize.errors import EXIT_INTERRUPTED, WrongUse
from headspark.config import parse_recipe, recipe_parser, run_command
from headspark.data.cache import cached
from headspark.data.stores import Store
from headspark.run.device import agree, device_name, enter_on_main, local_ranks, make_accelerator, say_once
from headspark.run.folder import FINISHED, INTERRUPTED, SAMPLES_PER_STEP, RunFolder, open_run
from headspark.run.interrupt import Interrupt, Interrupted, interrupts, say_nothing_to_save
from headspark.run.metrics_log import MetricsLog
from headspark.run.resume import check_result, resume, save
from headspark.run.state import StepResult, counts, due


def train(
    recipe: Recipe,
    *,
    corpus: Corpus,
    encoder_folder: str | None,
    out: Path,
    brain_model: Path | None = None,
    pseudo_labels: Path | None = None,
    labels: Path | None = None,
) -> Score | None:
    """Run all stages, or what is left of them, and write the model and its predictions for the validation fold.

    Args:
        recipe: The run's.
        corpus: With labelled series of the task.
        encoder_folder: Folder or Hub repository of a pretrained encoder; None trains the recipe's from scratch.
        out: The run's folder.
        brain_model: SynthStrip's weights, for a corpus that was made with ``--apply-brain``.
        pseudo_labels: Predictions of another model, for series of the corpus that nobody labelled.
        labels: A table of labels, for tasks that take one; None takes the corpus's.

    Returns:
        The score on the validation fold; None after a signal, when what was done has been saved.

    Raises:
        UserError: The run cannot start or go on.
    """
    sources = Sources(
        corpus=corpus,
        encoder=encoder_folder,
        brain_model=brain_model,
        pseudo_labels=pseudo_labels,
        labels=labels,
    )
    try:
        with interrupts() as interrupt:
            return _train(recipe, sources, out, interrupt)
    except Interrupted:
        say_nothing_to_save(out)
        return None


def _train(recipe: Recipe, sources: Sources, out: Path, interrupt: Interrupt) -> Score | None:
    corpus, recipe = sources.corpus, recipe.settled(sources.corpus, sources.labels, run=out)
    settings = recipe.train
    accelerator = make_accelerator(precision=settings.precision, threads=settings.threads, out=out, frozen_parts=True)
    # A pretrained encoder says its stride when it is loaded.
    check_patch(recipe.data, recipe.scratch.cumulative_strides[-1] if sources.encoder is None else 1, corpus.spacing)
    old = began_with_version_0_1_0(out)
    task = make_task(recipe.task)
    pseudo = None if sources.pseudo_labels is None else read_pseudo_labels(sources.pseudo_labels, task.labels)
    selection = task.cases(corpus, labels=sources.labels, every_label=old)
    note = partial(say_once, accelerator, stream=sys.stderr)
    fault = irreproducible(corpus, task, selection.cases, brain_model=sources.brain_model)
    if fault is not None and not old:
        raise WrongUse(f"{corpus.path}: {fault}")
    cohort = cohort_of_run(selection, corpus, task, recipe, out, pseudo=pseudo)
    for line in cohort.notes:
        note(f"note: {line}")
    training, held_out, folds = cohort.training, cohort.held_out, cohort.folds
    recipe = recipe.fitted(training)
    task = make_task(recipe.task)
    if fault is not None:
        note(f"note: the finished model will not harmonize as its corpus was: {fault}")
    harmonized = settings_of(corpus, task.sources, brain_model=sources.brain_model)
    given = read_given(sources.encoder, decoder=recipe.has_decoder, recipe=recipe)
    recipe = recipe_of(recipe, out, given)
    own_folds = partial(write_folds, out / FOLDS, folds) if old else None
    rank, ranks = accelerator.process_index, accelerator.num_processes
    epoch = steps_of_epoch(len(training), settings.batch * settings.accumulate * ranks)
    origin = partial(
        began_with,
        folder=out,
        corpus=corpus.manifest_sha256(),
        ranks=ranks,
        given=given,
        epoch=epoch,
        pseudo=None if pseudo is None else pseudo.sha256,
    )
    hold = partial(open_run, out, recipe, FINE_TUNING, began_with=origin, first=own_folds)
    with ExitStack() as stack:
        run = enter_on_main(accelerator, stack, hold)
        encoder = given.network
        if given.fault is not None:
            note(f"note: {given.fault}; the run's checkpoint holds its weights")
            encoder = rebuilt(agree({} if run is None else run.state["origin"]["encoder"] or {}))
        epoch = agree(epoch if run is None else run.state[EPOCH_STEPS])
        if any(stage.epochs is not None for stage in recipe.stages):
            note(f"note: an epoch of {len(training)} training series is {epoch} steps")
        state = prepare(recipe, stages_of_run(recipe, epoch=epoch), task, accelerator, encoder)
        state.legacy_noise = old
        for line in notes(state, corpus, encoder):
            note(f"note: {line}")
        if not resume(state, run, out):
            if given.fault is not None:
                raise given.fault
            for line in begin_decoders(state, given.decoder):
                note(f"note: {line}")
        if run is not None:
            run.note(**{SAMPLES_PER_STEP: state.plan.samples_per_step, "device": device_name(accelerator)})
        regions = stack.enter_context(fill_cache([*training, *held_out], state, out, note))
        seen = RegionStore(training, state.view, regions)
        own = range(len(training) + rank, len(training) + len(held_out), ranks)
        unseen = RegionStore(held_out[rank::ranks], state.view, regions, own)
        doubts = doubts_of_run(state, cohort.labelled, seen, corpus)
        for line in disagreements.lines(doubts):
            note(f"note: {line}")
        if run is not None and not folds.stored and not old:
            keep_folds(folds, corpus, task.sources[0] if task.shares_folds else None, out)
        interrupt.begin()
        done = run_stages(state, seen, unseen, run, interrupt)
        predictions = predict_held_out(state, unseen, interrupt) if done else None
        if predictions is None:
            if run is not None:
                run.end(INTERRUPTED, step=state.step)
            return None
        check_result(state, finite_scores=has_finite(predictions, said_columns(task)))
        score = task.score(predictions)
        if run is not None:
            run.log_once(step=state.step, **score_facts(state, score))
            write_held_out(out, predictions)
            save_bundle(out, state.bundle(harmonized), state.eval_model.state_dict())
            counted = {
                "left_out": dict(cohort.left_out),
                "disagreements": dict(doubts),
                TRAINED_ON: cohort.trained_on(),
            }
            # Before the run is called finished: one that is killed while it draws its report is taken up, and draws it.
            run.note(**{RESULTS: {**score.headline(), "held_out_series": len(predictions), **counted}})
            write_report(out, corpus)
            run.end(FINISHED)
        say_once(accelerator, summary(state, score))
        say_once(accelerator, f"{out / REPORT}: the report")
    accelerator.end_training()
    return score


def doubts_of_run(state: FinetuneState, labelled: Sequence[Case], seen: RegionStore, corpus: Corpus) -> Counter[str]:
    """How many series have labels, points and masks that do not agree, by how."""
    spacing = corpus.spacing if state.data.spacing is None else [state.data.spacing]
    cell_mm = max(state.unwrapped.cells.values(), default=0) * max(spacing)
    places = state.task.places
    return disagreements.in_tables(labelled, places=places, cell_mm=cell_mm) + disagreements.in_masks(seen.masked())


def fill_cache(
    cases: Sequence[Case], state: FinetuneState, out: Path, say: Callable[[str], object]
) -> AbstractContextManager[Store[Region]]:
    """Cut the regions of series to where the recipe wants them, and say so."""
    return cached(
        cases,
        state.data,
        decoder=RegionDecoder(state.view),
        run_name=str(out.resolve()),
        local_rank=state.accelerator.local_process_index,
        local_ranks=local_ranks(),
        agree=agree,
        wait=state.accelerator.wait_for_everyone,
        say=say,
    )


def run_stages(
    state: FinetuneState, seen: RegionStore, unseen: RegionStore, run: RunFolder | None, interrupt: Interrupt
) -> bool:
    """Take the steps that are left, with validations, log lines and checkpoints on the way.

    Args:
        state: At the step to go on from.
        seen: Training series.
        unseen: This rank's held-out series.
        run: Where the main process writes; None on the others.
        interrupt: Whether the run was asked to stop.

    Returns:
        Whether all are taken; False after a signal, when the last one has been saved.
    """
    recipe, settings, plan = state.recipe, state.recipe.train, state.plan
    samples = TrainingSamples(
        seen, state.task, state.data, recipe.augment, seed=settings.seed, legacy_noise=state.legacy_noise
    )
    with (
        closing(training_batches(samples, plan, state.data, first_step=state.step)) as batches,
        MetricsLog(state, run, label="fine-tune") as log,
    ):
        # First the validation that a run which was asked to stop had left out.
        stop = not evaluate(state, log, unseen, interrupt)
        log.begin()
        while state.step < plan.steps and not stop:
            result = train_step(state, batches, interrupt)
            stop = result.stop
            if run is not None:
                run.claim.keep()
            record(state, log, result)
            with log.pause():
                # Whoever sent a signal does not wait long.
                stop = stop or not evaluate(state, log, unseen, interrupt)
                if stop or state.step == plan.steps or due(state.step, settings.checkpoint_every):
                    save(state, run, keep=settings.keep)
    return not stop


def train_step(state: FinetuneState, batches: Iterator[DrawnBatch], interrupt: Interrupt) -> StepResult:
    """One optimizer step over the samples of the plan.

    The loss is that of all samples of the step in one batch, however they are dealt out to forward passes and ranks:
    what its means are divided by is counted before the first pass.
    """
    recipe, accelerator, plan = state.recipe, state.accelerator, state.plan
    apply_rates(state.rates(), state.unwrapped, state.optimizer)
    # Dropout follows from the step, as the samples do, so a resumed run needs no generator's state.
    torch.manual_seed(recipe.train.seed + state.step * plan.ranks + plan.rank)

    began = time.perf_counter()
    drawn = [next(batches) for _ in range(plan.accumulate)]
    waited = time.perf_counter() - began
    scan_ids = [scan_id for part in drawn for scan_id in part.scan_ids]
    drawn = [part.to(accelerator.device) for part in drawn]
    targets = [state.make_targets(part) for part in drawn]
    counts_Pn = torch.stack([state.loss.counts(one) for one in targets]).to(accelerator.device)
    counts_n = accelerator.reduce(counts_Pn.sum(0), "sum")
    shares_PT = (state.loss.denominators(counts_Pn) / state.loss.denominators(counts_n)).float()

    # The total and the terms; then whether any rank was asked to stop, and how long they waited.
    totals = torch.zeros(len(state.loss.names) + 1, device=accelerator.device)
    for part, shares_T in enumerate(shares_PT):
        last = part == plan.accumulate - 1
        with nullcontext() if last else accelerator.no_sync(state.model):
            outputs = state.model(*state.make_inputs(drawn[part]))
            total, terms_T = state.loss(outputs, targets[part], shares_T)
            accelerator.backward(total * plan.ranks)  # of several ranks' gradients the mean is taken
        totals += torch.cat([total[None], terms_T]).detach()

    # One small exchange a step; what it gives and the norm are read in one go.
    host = [totals.new_full((1,), number) for number in (float(bool(interrupt)), waited / plan.ranks)]
    totals = accelerator.reduce(torch.cat([totals, *host]), "sum")
    norm = accelerator.clip_grad_norm_(state.model.parameters(), recipe.train.clip or math.inf)
    *means, asked, waited, norm = torch.cat([totals, norm.float().view(1)]).tolist()
    numbers = dict(zip(state.measures, (*means, norm), strict=True))
    finite = counts(numbers)
    state.update(finite=finite)
    return StepResult(
        numbers=numbers,
        stop=asked > 0,
        waited=waited,
        skipped_scans=() if finite else tuple(sorted(set(gather_object(scan_ids)))),
    )


def record(state: FinetuneState, log: MetricsLog, result: StepResult) -> None:
    """Take a step into the log, and write a line where one is due.

    Raises:
        Diverged: Too many steps in a row were skipped.
    """
    settings, rates = state.recipe.train, state.last_rates()
    log.collect(result, patience=settings.non_finite_patience, stage=rates.name)
    if state.step == 1 or due(state.step, settings.log_every) or state.step == state.plan.steps:
        means = log.means()
        encoder = [rate for rate in rates.encoder if rate is not None]
        log.line(
            stage=rates.name,
            **{name: means[name] for name in means if name != "norm"},
            gradient_norm=means["norm"],
            lr_head=rates.head,
            lr_encoder=max(encoder, default=0.0),
            layers=len(encoder),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m finetune.train``."""
    return run_command(_command, sys.argv[1:] if argv is None else argv)


def _command(argv: Sequence[str]) -> int:
    parser = recipe_parser(Recipe, prog="finetune train", description="Fine-tune an encoder in stages.")
    add_sources(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an unfinished one is taken up")
    recipe, options = parse_recipe(parser, Recipe, argv)
    given = Sources.of(options)
    score = train(
        recipe,
        corpus=given.corpus,
        encoder_folder=given.encoder,
        out=options.out,
        brain_model=given.brain_model,
        pseudo_labels=given.pseudo_labels,
        labels=given.labels,
    )
    return EXIT_INTERRUPTED if score is None else 0


if __name__ == "__main__":
    sys.exit(main())
