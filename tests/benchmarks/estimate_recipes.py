"""What each recipe costs on a GPU, reckoned without one: multiplications and memory of a step, on empty tensors.

    python tests/benchmarks/estimate_recipes.py --json docs/benchmarks/recipe_costs.json

Nothing is computed: networks and inputs live on PyTorch's `meta` device, which knows shapes alone. Counted are the
floating-point operations of a forward pass of a sample, and what a forward pass of a batch keeps for the way back, in
the recipe's precision. From these follow

- `gpu_gib`: weights, gradients, optimizer, moving average and what is kept, and a quarter more for what comes and goes;
- `gpu_hours`: three forward passes a sample (one forward, two backward), at `TFLOPS` sustained. Validation is left out.

Of pretraining the encoder counts by the share of blocks that is visible. docs/recipes.md shows the figures, as
estimates.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import finetune.recipe
import headspark.recipe
from finetune.models.assemble import Network
from finetune.models.encoders import make_encoder
from finetune.stages import in_steps
from finetune.tasks import make_task
from finetune.tasks.masks import MasksConfig
from finetune.tasks.table import TableConfig
from finetune.views import make_view
from finetune.views.box import BoxConfig
from finetune.views.roi import ResizedConfig, RoiConfig
from headspark.config import read_recipe
from headspark.decoder import build_decoder
from headspark.encoder import build_encoder
from headspark.packed import PackedBlocks, TokenMap

ROOT = Path(__file__).resolve().parents[2]
TFLOPS = 30.0
"""Sustained; a tenth of what an A100 names for bf16. 3D convolutions of few channels reach no more."""

TRANSIENT = 1.25
"""Of the counted memory: workspaces of kernels, gradients of maps, fragments."""

SERIES = {
    "rsna": 3478, "rsna_phantom": 192, "demo_rsna": 64, "transfer_finetune": 128, "table": 1000, "table_demo": 16,
    "topcow": 100, "amos_organs": 288, "amos_to_brain": 200, "brain_demo": 8, "masks_demo": 8,
    "masks_segmentation": 142,
}  # fmt: skip
"""Training series that are assumed, by the beginning of a recipe's name: what four folds of five have."""

ORGANS, PLACES = 15, 13
Count = tuple[float, float]


def main() -> None:
    """Write the figures of all recipes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    arguments = parser.parse_args()
    runs = [path for path in sorted(ROOT.glob("recipes/*.yaml")) if "arms" not in yaml.safe_load(path.read_text())]
    recipes = {path.stem: cost(path) for path in runs}
    found = {"torch": torch.__version__.split("+")[0], "tflops": TFLOPS, "transient": TRANSIENT, "recipes": recipes}
    arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def cost(path: Path) -> dict[str, Any]:
    """The figures of a recipe."""
    if "stages" in yaml.safe_load(path.read_text(encoding="utf-8")):
        return of_fine_tuning(path)
    return of_pretraining(path)


def of_pretraining(path: Path) -> dict[str, Any]:
    """The figures of a recipe of pretraining."""
    recipe = read_recipe(headspark.recipe.Recipe, path)
    train, edge = recipe.train, recipe.data.patch
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    with torch.device("meta"):
        encoder = build_encoder(recipe.encoder).to(dtype)
        channels = recipe.encoder.in_channels
        predicted = channels + (recipe.vessels.distance_weight > 0)
        decoder = build_decoder(recipe.decoder, encoder.channels, encoder.strides, predicted).to(dtype)
        encoder.set_grad_checkpointing(train.activation_checkpointing)
        x = torch.empty((1, channels, edge, edge, edge), dtype=dtype)
        ratio = recipe.mask.ratio
        visible = 1 - (ratio if isinstance(ratio, float | int) else sum(ratio) / 2)
        visible *= 1 + (recipe.hybrid.share if recipe.hybrid.weight > 0 else 0)  # what is seen the second time
        skips = [
            torch.empty((1, width, *[edge // encoder.strides[scale]] * 3), dtype=dtype, requires_grad=True)
            for scale, width in zip(decoder.scales, decoder.widths, strict=True)
        ]
    seen, decoded = counted(lambda: encoder(x)), counted(lambda: decoder([whole(skip) for skip in skips]))
    flops, kept = (visible * one + other for one, other in zip(seen, decoded, strict=True))
    parts = (encoder, decoder)
    return figures(
        parts, flops, kept, batch=train.batch, samples=train.batch * train.accumulate, steps=train.steps,
        states=1 if recipe.optim.name == "sgd" else 2, average=train.ema is not None,
    )  # fmt: skip


def whole(map_BCDHW: Tensor) -> TokenMap:
    """A map without hidden cells, as decoders take it."""
    return TokenMap(PackedBlocks.whole(map_BCDHW))


def of_fine_tuning(path: Path) -> dict[str, Any]:
    """The figures of a recipe of fine-tuning."""
    recipe = read_recipe(finetune.recipe.Recipe, path)
    train, named = recipe.train, recipe.task
    if isinstance(named, TableConfig):
        kinds = {"classification": "multiclass", "regression": "regression"}
        names = ("grade: 1", "grade: 2", "grade: 3") if named.question == "classification" else ("age",)
        named = replace(named, asks=kinds[named.question], labels=names, columns=(names[0].split(":")[0],))  # type: ignore[arg-type]
    if isinstance(named, MasksConfig) and not named.labels:
        named = replace(named, labels={f"structure {value}": value for value in range(1, 1 + (
            ORGANS if path.stem == "amos_organs" else PLACES))})  # fmt: skip
    if hasattr(named, "modalities"):
        named = replace(named, modalities=("CT", "T1w"))
    task = make_task(named)
    data = recipe.data.completed(recipe.data.windows, "soft")
    view = recipe.view if not isinstance(recipe.view, RoiConfig | ResizedConfig) else BoxConfig()
    shape = make_view(view, data, task).input_shape
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    with torch.device("meta"):
        encoder = make_encoder(recipe.scratch, weights=False)
        network = Network(encoder, recipe.head, recipe.auxiliary, task, recipe.condition).to(dtype)
        encoder.set_grad_checkpointing(train.activation_checkpointing)
        x = torch.empty((1, *shape), dtype=dtype)
        told = torch.zeros((1, 4)) if recipe.condition.kind == "spacing" else torch.zeros(1, dtype=torch.int64)
    flops, kept = counted(lambda: network(x, told))
    samples = train.batch * train.accumulate
    prefix = max((name for name in SERIES if path.stem.startswith(name)), key=len)
    stages = in_steps(recipe.stages, epoch=math.ceil(SERIES[prefix] / samples))
    steps = sum(stage.steps or 0 for stage in stages)
    states = 1 if train.optimizer == "sgd" else 2
    return figures(
        (network,), flops, kept, batch=train.batch, samples=samples, steps=steps, states=states,
        average=train.ema is not None,
    )  # fmt: skip


def figures(
    parts: tuple[nn.Module, ...], flops: float, kept: float, *, batch: int, samples: int, steps: int, states: int,
    average: bool,
) -> dict[str, Any]:  # fmt: skip
    """What follows from the counts of one sample."""
    parameters = sum(parameter.numel() for part in parts for parameter in part.parameters())
    held = parameters * 4 * (2 + states + average)
    return {
        "parameters": parameters,
        "forward_tflop": round(flops / 1e12, 4),
        "kept_gib": round(kept / 2**30, 3),
        "samples_per_step": samples,
        "steps": steps,
        "gpu_gib": round(TRANSIENT * (held + batch * kept) / 2**30, 2),
        "gpu_hours": round(3 * flops * samples * steps / (TFLOPS * 1e12) / 3600, 2),
    }


def counted(forward: Callable[[], object]) -> Count:
    """Operations of a forward pass, and bytes that it keeps for the way back."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
            held.append(storage)  # or another takes its address
        return tensor

    held: list[Any] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one)
    no_autocast = {"is_autocast_enabled": lambda *_: False, "autocast": lambda *_, **__: nullcontext()}
    with FlopCounterMode(display=False) as counter, hooks, mock.patch.multiple(torch, **no_autocast):
        forward()  # the device knows no autocast
    return float(counter.get_total_flops()), float(sum(kept.values()))


if __name__ == "__main__":
    main()
