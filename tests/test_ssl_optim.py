"""Optimizers, learning rates, and the batch that fits."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pytest
import torch
from timm.optim import list_optimizers
from torch import nn

from harmonize.errors import UserError, WrongUse
from headspark.optim import OptimConfig, make_optimizer, make_schedule
from headspark.pretraining.probe import knn_score
from headspark.run.fit import largest_batch
from headspark.run.plain_state import check_optimizer_state, load_plain


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


ELSEWHERE = "bnb", "fused"
"""Begin the names of those that are written for GPUs alone."""
COMPILED = "kron"
"""Begins the names of those that PyTorch compiles for a minute first."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(32, 3))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: Iterable[int]) -> None:
    for number in numbers:
        torch.manual_seed(number)
        model(torch.randn(2, 1, 4, 4, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    "name", [str(name) for name in list_optimizers() if not str(name).startswith((*ELSEWHERE, COMPILED, "adahessian"))]
)
def test_a_run_goes_on_from_what_is_kept_of_each_of_timms_optimizers(name: str) -> None:
    config = OptimConfig(name=name)
    model = network()
    optimizer = make_optimizer(model, config)
    steps(model, optimizer, range(3))
    kept, weights = io.BytesIO(), {key: value.clone() for key, value in model.state_dict().items()}
    torch.save({"optimizer": optimizer.state_dict()}, kept)
    steps(model, optimizer, range(3, 6))

    again = network()
    another = make_optimizer(again, config)
    again.load_state_dict(weights)
    state = load_plain(kept.getvalue())["optimizer"]
    assert check_optimizer_state(state, another)
    another.load_state_dict(state)
    steps(again, another, range(3, 6))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_an_optimizer_that_cannot_work_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WrongUse, match=r"optim\.name adahessian: wants second derivatives"):
        make_optimizer(network(), OptimConfig(name="adahessian"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(WrongUse, match=r"optim\.name fusedadam: CUDA required"):
        make_optimizer(network(), OptimConfig(name="fusedadam"))


@pytest.mark.parametrize("name", ["AdamW", "adam_w"])
def test_a_misspelt_optimizer_is_answered_with_the_nearest(name: str) -> None:
    with pytest.raises(WrongUse, match=rf"optim\.name {name}: timm knows none of that name; did you mean adamw\?"):
        OptimConfig(name=name)


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
