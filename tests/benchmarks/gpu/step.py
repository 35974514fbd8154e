"""Whole pretraining steps: ours, of dense networks, and nnssl's."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import bench_pretrain_step as steps
import torch
from torch import Tensor, nn

from gpu.setting import Figures, NotMeasured, Setting
from headspark.data.config import DataConfig
from headspark.decoder import DecoderConfig, UNetDecoder, build_decoder
from headspark.encoder import PRESETS, build_encoder
from headspark.masking import expand_cells
from headspark.pretraining.state import prepare
from headspark.recipe import Recipe, TrainConfig
from headspark.run.device import make_accelerator
from headspark.spark import masked_mse

REPEATS_DENSE = 3
"""Of steps that take several times as long."""


def ours(setting: Setting, size: str) -> Iterator[Figures]:
    """Time and memory of the packed step, its mask's geometry made within it, and of the same by dense emulation."""
    variants = {"light": steps.packed_light, "unet": steps.packed_unet, "emulated unet": steps.emulated_unet}
    for name, variant in variants.items():
        is_dense = name.startswith("emulated")
        yield {name: of_step(setting, partial(variant, setting.arguments(size)), dense=is_dense)}


def dense(setting: Setting, size: str) -> Iterator[Figures]:
    """Time and memory of a masked autoencoder that computes everything: the network of `unet`, as it is."""
    yield {"unet": of_step(setting, lambda: dense_mae(setting, size), dense=True)}


def nnssl(setting: Setting, size: str) -> Iterator[Figures]:
    """Time and memory of nnssl's step with the same network, mask and optimizer."""
    if setting.peer is None:
        raise NotMeasured("no checkout of nnssl (--peer)")
    yield {"unet": of_step(setting, lambda: steps.nnssl(setting.arguments(size)), dense=True)}


def of_step(setting: Setting, make: Callable[[], Callable[[], None]], *, dense: bool = False) -> Figures:
    """Time of a step, crops a second, and the memory with weights, gradients and momentum."""
    with setting.peak() as peak:
        times = setting.timed(make(), repeats=REPEATS_DENSE if dense else 7, warm=2 if dense else 3)
    return {**times, "crops_per_second": round(2e3 / times["ms"], 3), **peak}


def dense_mae(setting: Setting, size: str) -> Callable[[], None]:
    """The step of the dense masked autoencoder."""
    arguments = setting.arguments(size)
    model = steps.to_device(DenseAutoencoder(arguments), arguments)
    x, mask = steps.patch_and_mask(arguments)
    seen = expand_cells(mask, tuple(x.shape[2:])).to(x.device)
    return steps.train_step(arguments, model, lambda: model(x, seen))


class DenseAutoencoder(nn.Module):
    """Plain encoder and decoder: hidden voxels are zero in the input, and the loss is of them."""

    def __init__(self, arguments: object) -> None:
        super().__init__()
        self.encoder = build_encoder(steps.encoder_config(arguments))  # type: ignore[arg-type]
        decoder = build_decoder(DecoderConfig(kind="unet"), self.encoder.channels, self.encoder.strides, 3)
        assert isinstance(decoder, UNetDecoder)
        self.decoder = decoder

    def forward(self, x_BCDHW: Tensor, seen_B1DHW: Tensor) -> Tensor:
        """Return the loss."""
        return masked_mse(self.decoder(self.encoder(x_BCDHW * seen_B1DHW)), x_BCDHW, ~seen_B1DHW)[0]


def of_a_run(setting: Setting) -> Iterator[Figures]:
    """The step of `headspark pretrain` itself: input, variations, loss, clipping, update, moving average."""
    from gpu_steps import pretraining

    for decoder in ("light", "unet"):
        with setting.peak() as peak:
            run = pretraining(None, PRESETS[setting.preset], patch=setting.patch("160"), decoder=decoder)
            times = setting.timed(run.step)
        yield {decoder: {**times, "crops_per_second": round(2e3 / times["ms"], 3), **peak}}
        del run


def largest_batch(setting: Setting) -> Iterator[Figures]:
    """Which batch the run finds to fit, and how long it takes to find it."""
    recipe = Recipe(
        data=DataConfig(patch=setting.patch("160")),
        encoder=PRESETS[setting.preset],
        train=TrainConfig(batch=256, precision="bf16", trackers=()),
    )
    with tempfile.TemporaryDirectory() as folder, setting.peak() as peak:
        accelerator = make_accelerator(precision="bf16", threads=None, out=Path(folder))
        began = time.perf_counter()
        state = prepare(recipe, accelerator)
        took = time.perf_counter() - began
    yield {"light": {"asked_for": 256, "found": state.plan.batch, "seconds": round(took, 1), **peak}}
    torch.cuda.empty_cache()
