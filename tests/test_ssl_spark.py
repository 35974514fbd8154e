"""SparK: what is scored, what is finite, what is learned, and that both backends agree."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headspark.decoder import DecoderConfig, LightDecoder
from headspark.encoder import EncoderConfig, build_encoder
from headspark.masking import draw_mask, expand_cells
from headspark.packed import MaskGeometry
from headspark.spark import SparK, SparKConfig, masked_mse, normalise_patches

SHAPE = EncoderConfig(features=(4, 6, 8), blocks=(1, 1, 1), strides=(1, 2, 2), in_channels=2)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def model_of(kind: str = "light", where: str = "all", **config: object) -> SparK:
    torch.manual_seed(0)
    decoder = DecoderConfig(kind=kind, stop_stride=2, width=8, where=where)  # type: ignore[arg-type]
    model = SparK(build_encoder(SHAPE), decoder, SparKConfig(**config), in_channels=2)  # type: ignore[arg-type]
    for parameter in model.encoder.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5, 0.2)
    if isinstance(model.decoder, LightDecoder):
        nn.init.normal_(model.decoder.predict.weight, std=0.1)  # predictions begin as zeros
    return model


def batch(size: int = 2) -> tuple[torch.Tensor, MaskGeometry]:
    mask = draw_mask(size, (4, 4, 6), 0.7, torch.Generator().manual_seed(0))
    return torch.randn(size, 2, 16, 16, 24), MaskGeometry(mask)


@pytest.mark.parametrize(("kind", "where"), [("light", "all"), ("unet", "all"), ("unet", "scored")])
@pytest.mark.parametrize("normalise", [False, True])
def test_both_backends_give_the_same_loss_and_gradients(kind: str, where: str, normalise: bool) -> None:
    x, geometry = batch()
    scored_B1DHW = torch.zeros(2, 1, 16, 16, 24, dtype=torch.bool)
    scored_B1DHW[:, :, 3:, 2:11] = True
    results = []
    for backend in ("packed", "emulated"):
        model = model_of(kind, where, backend=backend, normalise_targets=normalise).double()
        out = model(x.double(), geometry, scored_B1DHW)
        out.loss.backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((out.loss.detach(), out.prediction_BCDHW.detach(), grads))
    for packed, emulated in zip(*results, strict=True):
        torch.testing.assert_close(packed, emulated, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("kind", "where"), [("light", "all"), ("unet", "all"), ("unet", "scored")])
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_every_parameter_that_wants_a_gradient_gets_one(kind: str, where: str, share: float) -> None:
    x, geometry = batch()
    model = model_of(kind, where)
    loss = model(x, geometry, torch.rand(2, 1, 16, 16, 24) < share).loss
    loss.backward()
    assert (loss == 0) == (share == 0)
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    # The light decoder does not read the finest maps, which still have a later stage behind them.
    assert missing == []


def test_the_loss_is_the_mean_error_of_hidden_scored_voxels() -> None:
    x, geometry = batch()
    scored = torch.rand(2, 1, 16, 16, 24) < 0.5
    out = model_of()(x, geometry, scored)
    counted = (~expand_cells(geometry.mask_Bdhw, (16, 16, 24))) & scored
    error = (out.prediction_BCDHW - x).square()[counted.expand_as(x)]
    torch.testing.assert_close(out.loss, error.mean())
    assert out.scored_voxels == counted.sum()


def test_visible_and_unscored_voxels_get_no_gradient_from_the_loss() -> None:
    prediction, target = torch.randn(1, 2, 4, 4, 4, requires_grad=True), torch.randn(1, 2, 4, 4, 4)
    scored = torch.zeros(1, 1, 4, 4, 4, dtype=torch.bool)
    scored[..., :2] = True
    target[..., 2:] = torch.nan
    loss, count = masked_mse(prediction, target, scored)
    loss.backward()
    assert loss.isfinite()
    assert count == 32
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()
    assert prediction.grad[..., 2:].count_nonzero() == 0


def test_a_batch_without_scored_voxels_costs_nothing_and_stays_finite() -> None:
    x, geometry = batch()
    model = model_of(normalise_targets=True)
    out = model(x, geometry, torch.zeros(2, 1, 16, 16, 24))
    out.loss.backward()
    assert out.loss == 0
    assert out.scored_voxels == 0
    assert all(
        p.grad.isfinite().all() and p.grad.count_nonzero() == 0 for p in model.parameters() if p.grad is not None
    )


def test_hidden_voxels_do_not_influence_the_prediction() -> None:
    x, geometry = batch()
    model = model_of()
    changed = torch.where(expand_cells(geometry.mask_Bdhw, (16, 16, 24)), x, x + 100)
    assert torch.equal(model.predict(x, geometry), model.predict(changed, geometry))


def test_a_constant_volume_has_finite_normalised_targets() -> None:
    model = model_of(normalise_targets=True)
    out = model(torch.ones(2, 2, 16, 16, 24), batch()[1])
    out.loss.backward()
    assert out.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_patches_are_normalised_each_by_itself_and_can_be_brought_back() -> None:
    x = torch.randn(2, 3, 8, 8, 12) * 5 + 3
    normalised, mean, deviation = normalise_patches(x, (2, 2, 3))
    first = normalised[1, 2, :4, 4:, 8:]
    torch.testing.assert_close(first.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(first.std(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalised * deviation + mean, x)


@pytest.mark.parametrize("normalise", [False, True])
def test_a_reconstruction_keeps_what_was_seen(normalise: bool) -> None:
    x, geometry = batch()
    model = model_of(normalise_targets=normalise)
    picture = model.reconstruct(x, geometry)
    seen = expand_cells(geometry.mask_Bdhw, (16, 16, 24)).expand_as(x)
    assert torch.equal(picture[seen], x[seen])
    assert not torch.allclose(picture[~seen], x[~seen])
    assert not picture.requires_grad


def test_the_loss_falls_when_it_is_trained() -> None:
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, edge) for edge in (16, 16, 24)], indexing="ij"))
    x = torch.stack([grid.sum(0), (grid**2).sum(0) - 1]).expand(2, -1, -1, -1, -1)
    geometry = batch()[1]
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(x, geometry).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_half_precision_gives_a_loss_in_single() -> None:
    x, geometry = batch()
    model = model_of()
    exact = model(x, geometry).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x, geometry).loss
    loss.backward()
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)
