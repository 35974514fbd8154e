"""Recorded losses: a change that should be neutral must give the same curve, for every kind of encoder.

``python tests/test_ssl_golden.py`` records them anew; do that only for a change that is meant to change training.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from headspark.decoder import DecoderConfig
from headspark.encoder import EncoderConfig, build_encoder
from headspark.masking import draw_mask
from headspark.optim import OptimConfig, make_optimizer, make_schedule
from headspark.packed import MaskGeometry
from headspark.spark import SparK

GOLDEN = Path(__file__).with_name("golden") / "pretrain_losses.json"
STEPS = 50
TOLERANCE = 0.02
"""Relative; kernels differ between processors and versions of torch, and 50 steps let that grow."""

ENCODERS = {
    "resenc": EncoderConfig(features=(4, 8, 16), blocks=(1, 1, 1), strides=(1, 2, 2)),
    "segresnet": EncoderConfig(kind="segresnet", features=(8, 16, 32), blocks=(1, 1, 1), strides=(1, 2, 2)),
    "mednext": EncoderConfig(kind="mednext", features=(4, 8, 16), blocks=(1, 1, 1), strides=(1, 2, 2)),
}

LIGHT = DecoderConfig(stop_stride=2, width=8, max_width=16)
MODELS = {kind: (config, LIGHT) for kind, config in ENCODERS.items()} | {
    "resenc, unet": (ENCODERS["resenc"], DecoderConfig(kind="unet")),
    "resenc, unet of scored blocks": (ENCODERS["resenc"], DecoderConfig(kind="unet", where="scored")),
}


def curve(encoder: EncoderConfig, decoder: DecoderConfig) -> list[float]:
    """Losses of `STEPS` steps on two balls that swell and shrink; the corners of the cube are background."""
    torch.manual_seed(0)
    model = SparK(build_encoder(encoder), decoder)
    optim = OptimConfig(lr=5e-3, warmup=5)
    optimizer = make_optimizer(model, optim)
    schedule = make_schedule(optimizer, optim, steps=STEPS)
    draws = torch.Generator().manual_seed(1)
    line = torch.linspace(-1, 1, 16)
    radius = torch.stack(torch.meshgrid(line, line, line, indexing="ij")).square().sum(0).sqrt()
    losses = []
    for step in range(STEPS):
        schedule.step_update(step)
        sizes_B = 0.4 + 0.5 * torch.rand(2, generator=draws)
        x_BCDHW = torch.tanh(6 * (sizes_B.view(2, 1, 1, 1, 1) - radius)).expand(2, 3, 16, 16, 16).contiguous()
        geometry = MaskGeometry(draw_mask(2, (4, 4, 4), 0.6, draws))
        scored_B1DHW = (radius < 1.1).expand(2, 1, 16, 16, 16) if decoder.kind == "unet" else None
        loss = model(x_BCDHW, geometry, scored_B1DHW).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(loss.item(), 6))
    return losses


@pytest.mark.parametrize("kind", MODELS)
def test_training_gives_the_recorded_losses(kind: str) -> None:
    assert curve(*MODELS[kind]) == pytest.approx(json.loads(GOLDEN.read_text())[kind], rel=TOLERANCE)


if __name__ == "__main__":
    torch.set_num_threads(1)
    GOLDEN.parent.mkdir(exist_ok=True)
    lines = [f'  "{kind}": {json.dumps(curve(*models))}' for kind, models in MODELS.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
