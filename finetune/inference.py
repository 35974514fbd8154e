"""Predictions: the 14 probabilities of a patch, and the table of a set of series."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.metrics import Score
from finetune.samples import DataConfig, RegionStore, network_input
from finetune.tasks.aneurysm import competition_score
from finetune.views.box import Region, pose_patch
from harmonize.errors import UserError
from harmonize.labels import LABELS, MIRRORED
from harmonize.parquet import read_parquet

LEFT_RIGHT = 2
"""Axis of a batch x_BCDHW that runs from left to right: volumes are RAS, so it is the first of the three."""

PREDICTIONS = "predictions.parquet"
"""The table of a finished run."""

TARGET_PREFIX = "target: "
"""Before a label's name: the column of its truth in predictions.parquet."""


def read_predictions(path: Path) -> pd.DataFrame:
    """The table of a finished run.

    Raises:
        UserError: It is damaged, or another's.
    """
    try:
        table = read_parquet(path).to_pandas()
        targets = [name for label in LABELS if (name := f"{TARGET_PREFIX}{label}") in table]
        if not np.isfinite(table[[*LABELS, *targets]].to_numpy(np.float64)).all():
            raise ValueError("not finite")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged, or not written by finetune.train ({_fault(error)}); train again") from error
    return table


def _fault(error: Exception) -> str:
    return " ".join(str(error.strerror if isinstance(error, OSError) else error).split())[:120]


@torch.inference_mode()
def classify(model: nn.Module, x_BCDHW: Tensor, *, mirror: bool) -> Tensor:
    """The 14 probabilities of each patch.

    Args:
        model: An `AneurysmClassifier` in eval mode.
        x_BCDHW: Network input on the model's device.
        mirror: Average with the flipped patch, whose left labels are the right ones.

    Returns:
        (B, 14) float32, columns as `LABELS`.
    """
    x_BCDHW = x_BCDHW.to(memory_format=torch.channels_last_3d)
    probabilities_B14 = model(x_BCDHW).logits_B14.float().sigmoid()
    if mirror:
        flipped_B14 = model(x_BCDHW.flip(LEFT_RIGHT)).logits_B14.float().sigmoid()
        probabilities_B14 = (probabilities_B14 + flipped_B14[:, list(MIRRORED)]) / 2
    return probabilities_B14


def predict_region(model: nn.Module, region: Region, config: DataConfig, device: torch.device) -> dict[str, float]:
    """The probabilities of a series by label, in the competition's order."""
    x_CDHW = network_input(pose_patch(region, config.patch), config)
    probabilities_14 = classify(model, x_CDHW[None].to(device), mirror=config.mirror)[0].tolist()
    return dict(zip(LABELS, probabilities_14, strict=True))


def predict_cases(
    model: nn.Module,
    store: RegionStore,
    config: DataConfig,
    device: torch.device,
    *,
    asked: Callable[[], bool] = lambda: False,
) -> pd.DataFrame:
    """Predictions and truth of labelled series: the columns of predictions.parquet.

    Args:
        model: In eval mode.
        store: The series.
        config: How their patches are cut.
        device: The model's.
        asked: Whether to stop; then the table ends there.
    """
    rows = []
    for number, case in enumerate(store.cases):
        if asked():
            break
        targets = {f"{TARGET_PREFIX}{label}": value for label, value in zip(LABELS, case.labels, strict=True)}
        predicted = predict_region(model, store[number], config, device)
        who = {"scan_id": case.scan_id, "subject": case.subject, "modality": case.modality}
        rows.append({**who, **predicted, **targets, "fold": config.fold})
    return pd.DataFrame(rows)


def targets_and_predictions(predictions: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Truth and probabilities of a table as `predict_cases` makes it, (N, 14) each."""
    targets = predictions[[f"{TARGET_PREFIX}{label}" for label in LABELS]].to_numpy(dtype=np.int64)
    return targets, predictions[list(LABELS)].to_numpy(dtype=np.float64)


def has_finite(predictions: pd.DataFrame) -> bool:
    """Whether every probability of such a table is a number."""
    return bool(np.isfinite(predictions[list(LABELS)].to_numpy(dtype=np.float64)).all())


def score_of(predictions: pd.DataFrame) -> Score:
    """The competition's score of such a table."""
    return competition_score(*targets_and_predictions(predictions))
