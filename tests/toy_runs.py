"""Recipes of runs that take a second: of pretraining, and of fine-tuning in three stages."""

from __future__ import annotations

from typing import Any

TIMES = {"seconds", "samples_per_second", "data_wait_share"}
"""What of a line of metrics.jsonl depends on how long things took."""

TRAIN: dict[str, Any] = {
    "batch": 1, "accumulate": 2, "threads": 1, "log_every": 4, "validate_every": 2, "checkpoint_every": 100, "ema": 0.5,
}  # fmt: skip
ENCODER: dict[str, Any] = {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]}
PRETRAINING: dict[str, Any] = {
    "data": {"patch": 16, "workers": 1, "val_share": 0.3},
    "augment": {"rotate": 20.0, "noise": 0.1, "contrast": 0.2},
    "encoder": {**ENCODER, "drop_path": 0.2},
    "mask": {"block": 8, "ratio": [0.3, 0.7]},
    "decoder": {"stop_stride": 2, "width": 8},
    "train": {**TRAIN, "steps": 6, "val_samples": 2, "picture_every": 0, "trackers": []},
}
FINE_TUNING: dict[str, Any] = {
    "data": {"patch": [16, 16, 16], "folds": 2, "mirror": False, "workers": 1},
    "scratch": ENCODER,
    "head": {"stride": 2, "width": 4, "top": 2, "dropout": 0.2},
    "stages": [
        {"name": "head", "steps": 2, "head_lr": 0.01},
        {"name": "deep", "steps": 2, "head_lr": 0.01, "encoder_lr": 0.001, "layers": 1},
        {"name": "all", "steps": 2, "head_lr": 0.01, "encoder_lr": 0.01, "layers": "all"},
    ],
    "train": TRAIN,
}
