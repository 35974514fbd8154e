"""Fine-tuning's step, and the prediction of a series from its DICOM files on."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from finetune.model_folder import Bundle, save_bundle
from finetune.models.assemble import Network
from finetune.models.heads.cells import CellsConfig
from finetune.predict import Predictor
from finetune.samples import DataConfig
from finetune.tasks.aneurysm import AneurysmTask
from gpu.setting import Figures, Setting
from harmonize import phantom
from harmonize.settings import Settings
from headspark.encoder import PRESETS, build_encoder


def step(setting: Setting) -> Iterator[Figures]:
    """The step of `finetune train` itself, with its samples made: of labels and cells, of vessels, and of masks."""
    from gpu_steps import MASKS, VESSELS, finetuning

    kinds: dict[str, dict[str, Any]] = {"cells": {}, "vessels": VESSELS, "masks": MASKS}
    for name, sections in kinds.items():
        with setting.peak() as peak:
            encoder, masked = PRESETS[setting.preset], name != "cells"
            run = finetuning(None, encoder, patch=setting.patch("160"), masked=masked, **sections)
            times = setting.timed(run.step, repeats=5)
        yield {name: {**times, "series_per_second": round(2e3 / times["ms"], 3), **peak}}
        del run


def prediction(setting: Setting) -> Iterator[Figures]:
    """Milliseconds from the folder of a series to its probabilities: read, harmonize, cut, and two forward passes."""
    spacing, patch, size = (4.0, 32, 32) if setting.reduced else (0.5, 192, 160)
    encoder = PRESETS[setting.preset]
    with tempfile.TemporaryDirectory() as name:
        raw, folder = Path(name) / "raw", Path(name) / "model"
        phantom.write("rsna", raw, scans=1, size=size, seed=0, difficulty="easy")
        series = next((raw / "rsna" / "series").iterdir())
        torch.manual_seed(0)
        head, data = CellsConfig(), DataConfig(patch=(patch,) * 3, spacing=spacing)
        folder.mkdir()
        save_bundle(
            folder,
            Bundle(encoder=encoder, head=head, data=data, settings=Settings(spacing=(spacing,) * 3)),
            Network(build_encoder(encoder), head, (), AneurysmTask()).state_dict(),
        )
        predictor = Predictor(folder, device=setting.device, precision="bf16")
        for label in ("first", "next"):
            with setting.peak() as peak:
                began = time.perf_counter()
                predictor.answer(series)
                setting.synchronise()
                found = {"ms": round(1e3 * (time.perf_counter() - began), 1), **peak}
            yield {label: found, "files": len(list(series.iterdir()))}
