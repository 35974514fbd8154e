"""What a fine-tuning run says of the held-out series: on the way, at its end, and whether that is worth anything."""

from __future__ import annotations

import pandas as pd
from accelerate.utils import gather_object

from finetune.inference import has_finite, predict_cases, score_of
from finetune.run_folder import RunFolder
from finetune.samples import RegionStore
from finetune.stages import total_steps
from finetune.step_log import log_score, summary
from finetune.trainer import Trainer
from harmonize.progress import Progress
from headspark.run.diverged import Diverged, reason_at_end
from headspark.run.interrupt import Interrupt

ADVICE = "lower the rates of the stages or lengthen their warmup, and give --out a new folder"


def validate_if_due(
    trainer: Trainer, judged: RegionStore, folder: RunFolder | None, interrupt: Interrupt, progress: Progress
) -> bool:
    """Validate where the recipe asks for it, once a step; the end of the run has a validation of its own.

    Returns:
        Whether the run goes on; False after a signal, when it is left to the run that does.
    """
    step, every = trainer.step, trainer.recipe.train.validate_every
    if not every or step % every or step in (trainer.validated, total_steps(trainer.recipe.stages)):
        return True
    predictions = validate(trainer, judged, interrupt)
    if predictions is None:
        return False
    trainer.validated = step
    if not has_finite(predictions):
        progress.say(f"step {step}: what it says of held-out series is not finite; there is no score")
        return True
    score = score_of(predictions)
    progress.say(summary(trainer, score))
    if folder is not None:
        log_score(folder, trainer, score)
    return True


def validate(trainer: Trainer, judged: RegionStore, interrupt: Interrupt) -> pd.DataFrame | None:
    """Predictions for the held-out series of all ranks, ordered by id, on every rank; None after a signal."""
    trainer.judged.eval()
    device = trainer.accelerator.device
    with trainer.accelerator.autocast():
        own = predict_cases(trainer.judged, judged, trainer.data, device, asked=lambda: bool(interrupt))
    found = gather_object([(own, bool(interrupt))])
    if any(asked for _, asked in found):
        return None
    return pd.concat([table for table, _ in found]).sort_values("scan_id", ignore_index=True)


def check_result(trainer: Trainer, predictions: pd.DataFrame) -> None:
    """Refuse to call a run finished whose model says nothing.

    Raises:
        Diverged: It does not.
    """
    reason = reason_at_end(
        steps=total_steps(trainer.recipe.stages),
        skipped=trainer.skipped,
        skipped_in_a_row=trainer.non_finite,
        finite_weights=trainer.has_finite_weights(),
        finite_scores=has_finite(predictions),
    )
    if reason is not None:
        raise Diverged(trainer.step, reason, advice=ADVICE)
