"""What would go wrong on a GPU only, watched for on a CPU: what operations are handed, and what a run starts with."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from packaging.requirements import Requirement
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import checkpoint

import headspark.pretraining.state
from headspark.data.config import DataConfig
from headspark.encoder import EncoderConfig, build_encoder
from headspark.masking import MaskConfig, draw_mask
from headspark.optim import OptimConfig, make_optimizer
from headspark.packed import MaskGeometry, encode_visible
from headspark.recipe import Recipe, TrainConfig
from headspark.run import fit
from headspark.run.device import make_accelerator

ROOT = Path(__file__).resolve().parents[1]
SMALL = EncoderConfig(features=(8, 16), blocks=(1, 1), strides=(1, 2))
ALLOCATION_FAILURES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory"),
]


@pytest.fixture
def accelerator(tmp_path: Path) -> Accelerator:
    return make_accelerator(precision="fp32", threads=1, out=tmp_path)


def step_of(encoder: nn.Module) -> None:
    """Forward in bf16, backward outside of autocast, as a run does."""
    x, mask = torch.randn(2, 3, 16, 16, 16), draw_mask(2, (2, 2, 2), 0.5, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        maps = encode_visible(encoder, x, MaskGeometry(mask))
        total = sum(map_.data.float().square().mean() for map_ in maps)
    total.backward()


def test_group_norm_has_operands_of_one_type_forward_and_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[set[torch.dtype], bool]] = []
    norm = F.group_norm

    def watched(x: Any, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Any:
        if isinstance(x, Tensor):
            seen.append(({x.dtype, weight.dtype, bias.dtype}, torch.is_autocast_enabled("cpu")))
        return norm(x, groups, weight, bias, eps)

    monkeypatch.setattr("headspark.packed.norm.F", SimpleNamespace(group_norm=watched))
    step_of(build_encoder(replace(SMALL, norm="group")))
    assert len(seen) > 3  # norms of more channels than groups, and those that are made again
    assert seen == [({torch.bfloat16}, False)] * len(seen)


def test_group_norm_in_bf16_is_that_of_float32_rounded() -> None:
    from headspark.packed.norm import group_norm

    data, weight, bias = torch.randn(2, 4, 4, 4, 16), torch.rand(16) + 0.5, torch.randn(16)
    exact = group_norm(data.bfloat16().float(), (1, 1), 4, weight, bias, 1e-5)
    rounded = group_norm(data.bfloat16(), (1, 1), 4, weight, bias, 1e-5)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.06


def test_checkpointing_is_shown_the_tensor_whose_gpu_draws_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[Tensor]] = []
    infer = checkpoint._infer_device_type

    def watched(*args: Any) -> Any:
        shown.append([one for one in args if isinstance(one, Tensor)])
        return infer(*args)

    monkeypatch.setattr(checkpoint, "_infer_device_type", watched)
    encoder = build_encoder(replace(SMALL, drop_path=0.5))
    encoder.set_grad_checkpointing(True)
    step_of(encoder)
    assert len(shown) >= sum(SMALL.blocks)
    assert all(shown)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_sync_batch_norm_gets_rows_also_when_a_block_is_recomputed(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[torch.Size] = []
    monkeypatch.setattr(nn.SyncBatchNorm, "_check_input_dim", lambda norm, x: shapes.append(x.shape))
    encoder = nn.SyncBatchNorm.convert_sync_batchnorm(build_encoder(replace(SMALL, norm="batch")))
    encoder.set_grad_checkpointing(checkpointing)
    step_of(encoder)
    assert len(shapes) == (11 if checkpointing else 6)  # all but the stem's twice
    assert {len(shape) for shape in shapes} == {2}


@pytest.mark.parametrize("error", ALLOCATION_FAILURES, ids=str)
def test_the_batch_is_halved_whoever_runs_out_of_memory(error: Exception, accelerator: Accelerator) -> None:
    tried = []

    def try_step(batch: int) -> None:
        tried.append(batch)
        if batch > 2:
            raise error

    assert fit.largest_batch(8, 1, lambda batch: fit._fits_everywhere(accelerator, try_step, batch)) == (2, 4)
    assert tried == [8, 4, 2]


def test_another_fault_of_the_trial_is_not_taken_for_want_of_memory(accelerator: Accelerator) -> None:
    def try_step(batch: int) -> None:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM")

    with pytest.raises(RuntimeError, match="BAD_PARAM"):
        fit._fits_everywhere(accelerator, try_step, 2)


def test_the_reported_peak_is_not_that_of_failed_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    gpu = SimpleNamespace(device=torch.device("cuda"), process_index=0, num_processes=1, print=lambda *a, **k: None)
    monkeypatch.setattr(fit, "_fits_everywhere", lambda accelerator, try_step, batch: done.append("tried") or True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: done.append("reset"))
    fit.fit_plan(gpu, steps=1, batch=2, accumulate=1, try_step=lambda batch: None)  # type: ignore[arg-type]
    assert done == ["tried", "reset"]


def test_a_trial_step_holds_what_a_later_step_holds(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(
        data=DataConfig(patch=16),
        encoder=SMALL,
        mask=MaskConfig(block=8),
        train=TrainConfig(ema=0.9),
    )
    module, held, averages = headspark.pretraining.state, [], []
    make_model, make_optimizer, average = module.make_model, module.make_optimizer, module.ModelEmaV3

    def watched_model(recipe: Recipe) -> nn.Module:
        model = make_model(recipe)
        model.register_forward_pre_hook(lambda *_: held.append(all(p.grad is not None for p in model.parameters())))
        return model

    def watched_optimizer(model: nn.Module, config: OptimConfig, **options: Any) -> torch.optim.Optimizer:
        optimizer = make_optimizer(model, config, **options)
        model.register_forward_pre_hook(lambda *_: held.append(len(optimizer.state) == len(list(model.parameters()))))
        return optimizer

    def watched_average(*args: Any, **options: Any) -> nn.Module:
        averages.append(average(*args, **options))
        return averages[-1]

    for name, watched in (
        ("make_model", watched_model), ("make_optimizer", watched_optimizer), ("ModelEmaV3", watched_average)
    ):  # fmt: skip
        monkeypatch.setattr(module, name, watched)
    module.try_step(recipe, accelerator, 1)
    assert held == [True, True]
    assert len(averages) == 1


def test_several_ranks_share_one_copy_of_the_gradients_and_wait_for_whoever_decodes(tmp_path: Path) -> None:
    for frozen in (False, True):
        accelerator = make_accelerator(precision="fp32", threads=1, out=tmp_path, frozen_parts=frozen)
        assert accelerator.ddp_handler.gradient_as_bucket_view
        assert accelerator.ddp_handler.find_unused_parameters == frozen
        assert accelerator.init_handler.timeout >= timedelta(hours=1)


def test_lamb_takes_gradients_as_train_clip_leaves_them() -> None:
    layer = nn.Linear(4, 1, bias=False)
    optimizer = make_optimizer(layer, OptimConfig(name="lamb", lr=0.1, weight_decay=0.0, betas=(0.9, 0.999)))
    layer.weight.grad = torch.full((1, 4), 50.0)
    optimizer.step()
    (state,) = optimizer.state.values()
    torch.testing.assert_close(state["exp_avg"], torch.full((1, 4), 5.0))


def test_the_versions_of_pytorch_without_cudnns_3d_convolutions_are_left_out() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch_,) = [one for one in map(Requirement, project["dependencies"]) if one.name == "torch"]
    wanted = {"2.8.0": True, "2.9.0": False, "2.9.1": False, "2.10.0": True}
    assert {version: version in torch_.specifier for version in wanted} == wanted
