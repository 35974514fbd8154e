"""What a fine-tuning run says of the held-out series, on the way and at its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate.utils import gather_object
from torch import nn

from finetune import candidates
from finetune.evaluation.predictions import BOX, FOLD, ID, PREDICTIONS, has_finite
from finetune.inference import predicted
from finetune.metrics import Score
from finetune.regions import RegionStore
from finetune.samples import DataConfig
from finetune.segmentation import said_columns, segmented
from finetune.series import BY_OUTLINE
from finetune.state import FinetuneState
from finetune.tasks import MASKS, Task
from harmonize.files import atomic_path
from harmonize.progress import Progress
from headspark.run.device import say_once
from headspark.run.folder import without_odd_numbers
from headspark.run.interrupt import Interrupt
from headspark.run.metrics_log import MetricsLog
from headspark.run.state import due


def evaluate(state: FinetuneState, log: MetricsLog, held_out: RegionStore, interrupt: Interrupt) -> bool:
    """Validate where the recipe asks for it, once a step; the end of the run has a validation of its own.

    Returns:
        Whether the run goes on; False after a signal, when it is left to the run that does.
    """
    step = state.step
    if not due(step, state.recipe.train.validate_every) or step in (0, state.evaluated, state.plan.steps):
        return True
    predictions = predict_held_out(state, held_out, interrupt)
    if predictions is None:
        return False
    state.evaluated = step
    if not has_finite(predictions, said_columns(state.task)):
        log.say(f"step {step}: what it says of held-out series is not finite; there is no score")
        return True
    score = state.task.score(predictions)
    log.say(summary(state, score))
    log.write(**score_facts(state, score))
    return True


def predict_held_out(state: FinetuneState, held_out: RegionStore, interrupt: Interrupt) -> pd.DataFrame | None:
    """Predictions for the held-out series of all ranks, ordered by id, on every rank; None after a signal.

    Args:
        state: Whose model predicts.
        held_out: This rank's series.
        interrupt: Whether the run was asked to stop.
    """
    with state.accelerator.autocast():
        own = predict_cases(
            state.eval_model.eval(),
            held_out,
            state.data,
            state.task,
            state.accelerator.device,
            asked=lambda: bool(interrupt),
            shown=state.accelerator.is_main_process,
        )
    found = gather_object([(own, bool(interrupt))])
    if any(asked for _, asked in found):
        return None
    table = pd.concat([table for table, _ in found]).sort_values("scan_id", ignore_index=True)
    if BOX in table:
        counts = table[BOX].value_counts()
        for laid, why in BY_OUTLINE.items():
            if counts.get(laid, 0):
                note = f"note: in {counts[laid]} of {len(table)} held-out series the head's outline laid the box: {why}"
                say_once(state.accelerator, note, stream=sys.stderr)
    return table


def predict_cases(
    model: nn.Module,
    store: RegionStore,
    config: DataConfig,
    task: Task,
    device: torch.device,
    *,
    asked: Callable[[], bool] = lambda: False,
    shown: bool = False,
) -> pd.DataFrame:
    """What is said of labelled series, and the truth: the columns of predictions.parquet.

    Where the network says where it sees something, `finetune.candidates.CANDIDATES` has the rows of each series.

    Args:
        model: In eval mode.
        store: The series.
        config: How their patches are cut.
        task: What is asked.
        device: The model's.
        asked: Whether to stop; then the table ends there.
        shown: Whether this process tells how far it is.
    """
    rows = []
    with Progress("validate", total=len(store.cases), unit="series") if shown else nullcontext() as progress:
        for number, case in enumerate(store.cases):
            if asked():
                break
            region = store[number]
            said: Mapping[str, object] = (
                segmented(model, region, config, task, store.view, device)
                if task.answers == MASKS
                else predicted(model, case, region, config, task, store.view, device)
            )
            who = {"scan_id": case.scan_id, "subject": case.subject, "modality": case.modality}
            rows.append({**who, **said, "fold": config.fold})
            if progress is not None:
                progress.advance()
    return pd.DataFrame(rows)


def write_held_out(folder: Path, predictions: pd.DataFrame) -> None:
    """Write the predictions of a run, and the candidates in them beside them.

    Args:
        folder: The run's.
        predictions: As `predict_cases` gives them.
    """
    found = candidates.table_of(predictions, (ID, FOLD))
    if found is None:
        (folder / candidates.TABLE).unlink(missing_ok=True)
    else:
        with atomic_path(folder / candidates.TABLE) as temporary:
            found.to_parquet(temporary, index=False)
    with atomic_path(folder / PREDICTIONS) as temporary:
        predictions.drop(columns=candidates.CANDIDATES, errors="ignore").to_parquet(temporary, index=False)


def score_facts(state: FinetuneState, score: Score) -> dict[str, Any]:
    """A validation's line of metrics.jsonl; an area that has no value is null, and `undefined` names its label."""
    facts: dict[str, Any] = without_odd_numbers(score.headline())
    return {"stage": state.last_rates().name, **facts}


def summary(state: FinetuneState, score: Score) -> str:
    """One line for a person."""
    return f"step {state.step} ({state.last_rates().name}): {score.line()}"
