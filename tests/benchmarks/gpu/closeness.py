"""How near the numbers of a small step are: on a GPU and on the CPU, in bf16, with kernels in Triton and without."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from gpu.setting import Figures, NotMeasured, Setting
from headspark.decoder import DecoderConfig
from headspark.encoder import EncoderConfig, build_encoder
from headspark.masking import draw_mask
from headspark.packed import Backend, MaskGeometry
from headspark.spark import SparK, SparKConfig

SMALL = EncoderConfig(features=(8, 16, 32), blocks=(1, 2, 1), strides=(1, 2, 2))
PATCH = 64
KERNELS = "HEADSPARK_KERNELS"
"""Environment variable that turns kernels in Triton off."""

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def backends(setting: Setting) -> Iterator[Figures]:
    """Packed against the dense emulation, on the device that is measured."""
    for kind in ("light", "unet"):
        emulated, packed = (gradients(kind, setting, setting.device, backend=one) for one in ("emulated", "packed"))
        yield {kind: apart(packed, emulated)}


def devices(setting: Setting) -> Iterator[Figures]:
    """A GPU against the CPU: float32 without TF32, and bf16 on either."""
    for kind in ("light", "unet"):
        exact = gradients(kind, setting, CPU)
        yield {
            kind: {
                "fp32 on the GPU": apart(gradients(kind, setting, GPU), exact),
                "bf16 on the CPU": apart(gradients(kind, setting, CPU, bf16=True), exact),
                "bf16 on the GPU": apart(gradients(kind, setting, GPU, bf16=True), exact),
            }
        }


def kernels(setting: Setting) -> Iterator[Figures]:
    """Kernels in Triton against plain PyTorch: numbers of a small step, and time of a whole one."""
    import bench_pretrain_step as steps

    if find_spec("headspark.packed.kernels") is None:
        raise NotMeasured("there are none")
    for kind in ("light", "unet"):
        taken = gradients(kind, setting, GPU, bf16=True)
        with plain():
            left = gradients(kind, setting, GPU, bf16=True)
        yield {f"{kind}, small step": apart(taken, left)}
    for kind, variant in {"light": steps.packed_light, "unet": steps.packed_unet}.items():
        step = variant(setting.arguments("160"))
        found = {"kernels": setting.timed(step)}
        with plain():
            found["plain"] = setting.timed(step)
        yield {kind: found}
        del step


def gradients(
    kind: str, setting: Setting, device: torch.device, *, bf16: bool = False, backend: Backend = "packed"
) -> tuple[Tensor, Tensor]:
    """Loss and gradients of a small step, the same weights and input everywhere."""
    torch.manual_seed(0)
    patch = 32 if setting.reduced else PATCH
    decoder = DecoderConfig(kind=kind, stop_stride=2, width=16)  # type: ignore[arg-type]
    model = SparK(build_encoder(SMALL), decoder, SparKConfig(backend=backend))
    for parameter in model.parameters():
        # Norms of residual branches and predictions begin as zeros, behind which nothing is seen.
        nn.init.normal_(parameter, 0.5, 0.2) if parameter.dim() == 1 else nn.init.normal_(parameter, std=0.05)
    x = torch.randn(2, 3, patch, patch, patch)
    mask = draw_mask(2, (patch // 16,) * 3, 0.6, torch.Generator().manual_seed(1))
    model, x = model.to(device), x.to(device)
    with no_tf32(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        loss = model(x, MaskGeometry(mask)).loss
        loss.backward()
    # A bias before a norm has a true gradient of zero: only rounding is left of it.
    parts = [p.grad.double().flatten().cpu() for n, p in model.named_parameters() if p.grad is not None and p.dim() > 1]
    return loss.detach().double().cpu(), torch.cat(parts)


def apart(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> Figures:
    """Relative distance of loss and gradients."""
    return {
        name: float((one - other).norm() / other.norm())
        for name, one, other in zip(("loss", "gradient"), found, expected, strict=True)
    }


@contextmanager
def no_tf32() -> Iterator[None]:
    """Let float32 be float32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def plain() -> Iterator[None]:
    """Leave all to PyTorch."""
    before = os.environ.get(KERNELS)
    os.environ[KERNELS] = "off"
    try:
        yield
    finally:
        del os.environ[KERNELS]
        if before is not None:
            os.environ[KERNELS] = before
