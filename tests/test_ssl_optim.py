"""Optimizers, learning rates, and the batch that fits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harmonize.errors import UserError
from headspark.optim import OptimConfig, make_optimizer, make_schedule
from headspark.pretraining.probe import knn_score
from headspark.run.fit import largest_batch


def rates(config: OptimConfig, steps: int) -> list[float]:
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    schedule = make_schedule(optimizer, config, steps=steps)
    found = []
    for step in range(steps):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_rate_rises_then_falls_to_its_end() -> None:
    for schedule in ("cosine", "poly"):
        curve = rates(OptimConfig(lr=1.0, warmup=10, schedule=schedule), 100)
        assert 0 < curve[0] < 0.2
        assert max(curve) == curve[10] == pytest.approx(1.0)
        assert curve[10:] == sorted(curve[10:], reverse=True)
        assert curve[-1] < 0.05


def test_poly_is_nnunets() -> None:
    curve = rates(OptimConfig(name="sgd", lr=0.01, schedule="poly"), 50)
    assert curve == pytest.approx([0.01 * (1 - step / 50) ** 0.9 for step in range(50)])


def test_constant_stays() -> None:
    assert rates(OptimConfig(lr=0.1, warmup=2, schedule="constant"), 100)[2:] == pytest.approx([0.1] * 98)


def test_the_rate_of_a_step_does_not_depend_on_those_before() -> None:
    config = OptimConfig(lr=1.0, warmup=5)
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    make_schedule(optimizer, config, steps=100).step_update(40)
    assert optimizer.param_groups[0]["lr"] == rates(config, 100)[40]


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "muon", "adan"])
def test_timms_optimizers_move_the_weights(name: str) -> None:
    model = nn.Conv3d(1, 2, 3)
    before = model.weight.detach().clone()
    optimizer = make_optimizer(model, OptimConfig(name=name, lr=0.1))
    model(torch.rand(1, 1, 4, 4, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.weight)


def test_biases_and_norms_do_not_decay() -> None:
    optimizer = make_optimizer(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), OptimConfig(weight_decay=0.3))
    decays = {group["weight_decay"]: len(group["params"]) for group in optimizer.param_groups}
    assert decays == {0.3: 1, 0.0: 3}


def test_the_batch_is_halved_until_it_fits_and_the_effective_batch_stays() -> None:
    assert largest_batch(8, 1, lambda batch: batch <= 2) == (2, 4)
    assert largest_batch(6, 2, lambda batch: batch <= 4) == (3, 4)
    assert largest_batch(5, 1, lambda batch: batch <= 4) == (1, 5)
    assert largest_batch(4, 3, lambda batch: True) == (4, 3)


def test_a_sample_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(UserError, match=r"data\.patch"):
        largest_batch(4, 1, lambda batch: False)


def test_the_probe_tells_apart_what_features_tell_apart() -> None:
    features = torch.cat([torch.randn(20, 4) + 6, torch.randn(20, 4) - 6]).numpy()
    labels = ["CT"] * 20 + ["T1w"] * 20
    held_out = [index % 2 == 0 for index in range(40)]
    assert knn_score(features, labels, held_out) == (1.0, 0.5)
    assert knn_score(features, ["CT"] * 40, held_out) is None
