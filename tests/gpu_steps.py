"""Training steps that go through a GPU that is not there; as a script, it counts them and writes JSON.

    python tests/gpu_steps.py CASE ...     in the environment that `fake_gpu.build` gives
    python tests/test_gpu_steps.py --account CASE ...    makes it, and lists what each line of the code costs

A case is a recipe and what the loader would hand over; its step is that of the run, `train_step`, taken twice: the
first makes the optimizer's state, the second is counted.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import fake_gpu
import numpy as np
import torch
from fake_gpu import FakeGpu

import finetune.state
import headspark.pretraining.state
import headspark.train
from finetune.augment import AugmentConfig, draw_pose, draw_variation
from finetune.losses import DEFAULT_LOSSES
from finetune.losses.dense import DiceCrossEntropyConfig
from finetune.models.heads.decoder import DecoderConfig
from finetune.models.heads.segmentation import SegmentationConfig
from finetune.recipe import Recipe as FinetuneRecipe
from finetune.recipe import TrainConfig as FinetuneTrainConfig
from finetune.samples import DataConfig as FinetuneDataConfig
from finetune.samples import Drawn, DrawnBatch
from finetune.series import Findings, Region
from finetune.stages import StageConfig
from finetune.tasks import make_task
from finetune.tasks.masks import MasksConfig
from finetune.train import train_step as finetune_step
from finetune.views.patches import PatchesConfig
from harmonize.voxels.stored import StoredVoxels
from headspark.data.augment import AugmentConfig as PretrainAugmentConfig
from headspark.data.augment import draw_variation as draw_pretrain_variation
from headspark.data.batches import stack
from headspark.data.config import DataConfig
from headspark.data.samples import Sample
from headspark.decoder import DecoderConfig as PretrainDecoderConfig
from headspark.encoder import PRESETS, EncoderConfig
from headspark.hybrid import HybridConfig
from headspark.masking import MaskConfig, draw_mask
from headspark.recipe import Recipe, TrainConfig
from headspark.run.device import make_accelerator
from headspark.run.interrupt import Interrupt
from headspark.vessels import VesselConfig

BATCH = 2
UPRIGHT = PretrainAugmentConfig(contrast=0.1, brightness=0.1)
VARIED = PretrainAugmentConfig(rotate=10.0, scale=0.1, contrast=0.1, brightness=0.1, noise=0.05)


class Stepped(NamedTuple):
    """A run at its first step: its state, and what takes a step of it."""

    state: Any
    step: Callable[[], object]


def pretraining(
    gpu: FakeGpu | None,
    encoder: EncoderConfig,
    *,
    patch: int = 32,
    decoder: str = "light",
    where: str = "all",
    augment: PretrainAugmentConfig = VARIED,
    checkpointing: bool = False,
    vessels: VesselConfig | None = None,
    hybrid: HybridConfig | None = None,
) -> Stepped:
    """A pretraining run in bf16 with a moving average; without a GPU that is pretended, on what there is."""
    vessels, hybrid = vessels or VesselConfig(), hybrid or HybridConfig()
    recipe = Recipe(
        data=DataConfig(patch=patch),
        augment=augment,
        encoder=encoder,
        mask=MaskConfig(ratio=0.75),
        decoder=PretrainDecoderConfig(kind=decoder, where=where),  # type: ignore[arg-type]
        vessels=vessels,
        hybrid=hybrid,
        train=TrainConfig(batch=BATCH, precision="bf16", ema=0.99, trackers=(), activation_checkpointing=checkpointing),
    )
    rng = np.random.default_rng(0)
    size = augment.read_size(patch)
    samples = [
        Sample(
            voxels=StoredVoxels(stored_XYZ=np.zeros((size, size, size), dtype=np.int16), slope=1.0, inter=0.0),
            unit=unit,
            scored_XYZ=np.ones((size, size, size), dtype=bool),
            mask_dhw=draw_mask(1, (patch // 16,) * 3, 0.75, torch.Generator().manual_seed(number))[0],
            variation=draw_pretrain_variation(rng, augment),
            scan_id=f"scan-{number}",
            steps_XYZ=np.full((size, size, size), number, dtype=np.uint8) if vessels.wanted else None,
            second_dhw=torch.arange((patch // 16) ** 3).view((patch // 16,) * 3) < 2 if hybrid.weight else None,
        )
        for number, unit in enumerate(["HU", "zscore"][:BATCH])
    ]
    with on_gpu(headspark.pretraining.state, "make_model") if gpu else nullcontext():
        state = headspark.pretraining.state.prepare(recipe, accelerator_of("bf16"))
    batches = repeat(page_locked(stack(samples, find_wanted=where == "scored"), gpu))
    if gpu:
        follow(gpu, state)
    return Stepped(state, lambda: headspark.train.train_step(state, batches, Interrupt()))


def finetuning(
    gpu: FakeGpu | None, encoder: EncoderConfig, *, patch: int = 32, masked: bool = False, **sections: Any
) -> Stepped:
    """A fine-tuning run in bf16 in which everything trains: of the default task and losses, if nothing else is said."""
    recipe = FinetuneRecipe(
        **sections,
        data=FinetuneDataConfig(patch=(patch,) * 3, spacing=1.0),
        augment=AugmentConfig(elastic=1.0),
        scratch=encoder,
        stages=(StageConfig(name="all", steps=10, head_lr=1e-3, encoder_lr=1e-3, layers="all"),),
        train=FinetuneTrainConfig(batch=BATCH, precision="bf16", ema=0.99),
    )
    task = make_task(recipe.task)
    rng, size = np.random.default_rng(0), round(1.2 * patch)
    mask_XYZ = torch.zeros((size,) * 3, dtype=torch.uint8) if masked else None
    drawn = [
        Drawn(
            region=Region(
                stored_XYZ=torch.zeros((size,) * 3, dtype=torch.int16),
                mask_XYZ=mask_XYZ,
                slope=1.0,
                inter=0.0,
                spacing=(1.0, 1.0, 1.0),
                fill=-1000.0,
                unit=unit,
                start=((size - patch) // 2,) * 3,
                findings=Findings(
                    points_K3=np.array([[size / 2] * 3]),
                    places_K=np.array([number]),
                    mask_XYZ=None,
                    labels_L=np.eye(len(task.labels))[number],
                ),
            ),
            pose=draw_pose(recipe.augment, rng, extent_mm=(patch,) * 3, more=rng),
            variation=draw_variation(recipe.augment, rng, np.random.default_rng(1)),
            scan_id=f"scan-{number}",
            modality="CTA",
            source="rsna",
        )
        for number, unit in enumerate(["HU", "zscore"][:BATCH])
    ]
    with on_gpu(finetune.state, "make_encoder", "make_model") if gpu else nullcontext():
        accelerator = accelerator_of("bf16", frozen_parts=True)
        state = finetune.state.prepare(recipe, recipe.stages, task, accelerator, None)
    batches = repeat(page_locked(DrawnBatch(tuple(drawn)), gpu))
    if gpu:
        follow(gpu, state)
    return Stepped(state, lambda: finetune_step(state, batches, Interrupt()))


GPU = FakeGpu()
"""One a process: templates of its tables stay."""

DEMO = PRESETS["demo"]
VESSELS = {"auxiliary": (DecoderConfig(gives=("vessels",)),), "losses": (*DEFAULT_LOSSES, DiceCrossEntropyConfig())}
MASKS = {
    "task": MasksConfig(labels={"left lesion": 1, "right lesion": 2}, modalities=("CTA",), sources=("rsna",)),
    "view": PatchesConfig(),
    "head": SegmentationConfig(stride=1, deep_supervision=1),
    "losses": tuple(DiceCrossEntropyConfig(of=name) for name in ("masks", "masks_2")),
}
CASES: dict[str, Callable[[FakeGpu], Stepped]] = {
    "demo": lambda gpu: pretraining(gpu, DEMO),
    "demo_group": lambda gpu: pretraining(gpu, replace(DEMO, norm="group")),
    "demo_batch": lambda gpu: pretraining(gpu, replace(DEMO, norm="batch")),
    "demo_drop_path": lambda gpu: pretraining(gpu, replace(DEMO, drop_path=0.2), checkpointing=True),
    "demo_unet": lambda gpu: pretraining(gpu, DEMO, decoder="unet"),
    "demo_scored": lambda gpu: pretraining(gpu, DEMO, decoder="unet", where="scored", augment=UPRIGHT),
    "demo_vessels": lambda gpu: pretraining(gpu, DEMO, vessels=VesselConfig(distance_weight=1.0)),
    "demo_hybrid": lambda gpu: pretraining(gpu, DEMO, hybrid=HybridConfig(weight=1.0)),
    "resenc_l": lambda gpu: pretraining(gpu, PRESETS["resenc_l"], patch=64),
    "finetune": lambda gpu: finetuning(gpu, DEMO),
    "finetune_vessels": lambda gpu: finetuning(gpu, DEMO, masked=True, **VESSELS),
    "finetune_masks": lambda gpu: finetuning(gpu, DEMO, masked=True, **MASKS),
    "resenc_l_160": lambda gpu: pretraining(gpu, PRESETS["resenc_l"], patch=160),
    "resenc_l_160_unet": lambda gpu: pretraining(gpu, PRESETS["resenc_l"], patch=160, decoder="unet"),
}


def count(case: str) -> dict[str, Any]:
    """What the second step of a case does on the GPU."""
    torch.manual_seed(0)
    with GPU, GPU.page_locking():
        run = CASES[case](GPU)
        run.step()
        GPU.counts, GPU.phase = fake_gpu.Counts(), "input"
        run.step()
    counts, GPU.counts = GPU.counts, fake_gpu.Counts()
    parameters = [(name, one) for name, one in run.state.unwrapped.named_parameters() if one.requires_grad]
    return {
        "launches": dict(counts.launches),
        "moved": dict(counts.moved),
        "kinds": dict(counts.kinds.most_common()),
        "places": counts.places,
        "waits": counts.waits,
        "pageable": counts.pageable,
        "mixed": counts.mixed,
        "other_layout": counts.other_layout,
        "elsewhere": [name for name, one in parameters if one.device.type != "cuda"],
    }


def page_locked(batch: Any, gpu: FakeGpu | None) -> Any:
    """A batch as the loader hands it over where there is a GPU, or one is pretended."""
    return batch.pin_memory() if gpu or torch.cuda.is_available() else batch


def accelerator_of(precision: str, *, frozen_parts: bool = False) -> Any:
    """The accelerator of a run without trackers."""
    folder = Path(tempfile.gettempdir())
    return make_accelerator(precision=precision, threads=1, out=folder, frozen_parts=frozen_parts)


@contextmanager
def on_gpu(module: Any, *names: str) -> Iterator[None]:
    """Let functions of a module make their networks on the GPU: a fake tensor cannot take a real one's place."""
    with mock.patch.multiple(module, **{name: _there(getattr(module, name)) for name in names}):
        yield


def _there(function: Callable[..., Any]) -> Callable[..., Any]:
    def on_gpu(*args: Any, **kwargs: Any) -> Any:
        with torch.device("cuda"):
            return function(*args, **kwargs)

    return on_gpu


def follow(gpu: FakeGpu, state: Any) -> None:
    """Tell the counter in which phase of the step what follows is."""
    backward = state.accelerator.backward

    def forward(*_: Any) -> None:
        gpu.phase = "forward"

    def followed(*args: Any) -> None:
        gpu.phase = "backward"
        backward(*args)
        gpu.phase = "update"

    state.model.register_forward_pre_hook(forward)
    state.accelerator.backward = followed
    zero_grad = state.optimizer.zero_grad

    def begin_again() -> None:
        zero_grad()
        gpu.phase = "after"

    state.optimizer.zero_grad = begin_again


def main(cases: list[str]) -> None:
    """Count the cases and write what was counted to standard output, by case."""
    fake_gpu.pretend()
    counted = {}
    for case in cases:
        began = time.process_time()
        counted[case] = {**count(case), "seconds": time.process_time() - began}
    json.dump(counted, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
