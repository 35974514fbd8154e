"""Lines of metrics.jsonl and of the terminal: steps, steps that were skipped, validations."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.metrics import Score
from finetune.run_folder import RunFolder, plain
from finetune.stages import Rates
from finetune.trainer import StepReport, Trainer


def log_steps(folder: RunFolder, trainer: Trainer, rates: Rates, seconds: float) -> None:
    """Write a line with the means of the pending steps; where none of them counted, with what was seen instead."""
    counted = [report for report in trainer.pending if report.finite] or trainer.pending[-1:]
    means = {name: sum(values) / len(values) for name, *values in zip(StepReport._fields, *counted, strict=True)}
    encoder_rates = [rate for rate in rates.encoder if rate is not None]
    folder.log(
        {
            "step": trainer.step,
            "stage": rates.name,
            **means,
            "lr_head": rates.head,
            "lr_encoder": max(encoder_rates, default=0.0),
            "layers": len(encoder_rates),
            "skipped_steps": trainer.skipped,
            "seconds": round(seconds, 3),
        }
    )


def log_skip(folder: RunFolder, trainer: Trainer, reason: str, scans: Sequence[str]) -> None:
    """Write the line of a step that changed nothing."""
    folder.log({"step": trainer.step, "stage": trainer.last_stage(), "skipped": reason, "scans": list(scans)})


def log_score(folder: RunFolder, trainer: Trainer, score: Score) -> None:
    """Write the line of a validation; an area that has no value is null, and `undefined` names its label."""
    folder.log({"step": trainer.step, "stage": trainer.last_stage(), **plain(score.headline())})


def summary(trainer: Trainer, score: Score) -> str:
    """One line for a person."""
    note = f" ({score.note()})" if score.note() else ""
    return (
        f"step {trainer.step} ({trainer.last_stage()}): AUC present {score.auc_present:.3f}, "
        f"mean of locations {score.auc_mean_locations:.3f}, score {score.score:.3f}{note}"
    )
