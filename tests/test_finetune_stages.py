"""Stages: a table of steps, and what freezing does to gradients, modules and weights."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from finetune.models.assemble import Network, head_dropouts
from finetune.models.heads.cells import CellsConfig
from finetune.recipe import Recipe, TrainConfig
from finetune.stages import (
    HEAD,
    StageConfig,
    apply_rates,
    in_steps,
    parameter_groups,
    rates_at,
    steps_of_epoch,
    total_steps,
)
from finetune.state import make_optimizer
from finetune.tasks.aneurysm import AneurysmTask
from harmonize.errors import WrongUse
from headspark.config import from_plain, to_plain
from headspark.encoder import EncoderConfig, build_encoder

STAGES = (
    StageConfig(name="head", steps=4, head_lr=1.0, warmup=2),
    StageConfig(name="deep", steps=4, head_lr=1.0, encoder_lr=0.1, layers=2, layer_decay=0.5),
    StageConfig(name="all", steps=3, head_lr=0.5, encoder_lr=0.2, layers="all", final=0.0),
)
TINY = EncoderConfig(features=(4, 8, 8), blocks=(1, 1, 1), strides=(1, 2, 2))
FROZEN = None


def tiny_model(config: EncoderConfig = TINY) -> Network:
    torch.manual_seed(0)
    return Network(build_encoder(config), CellsConfig(stride=4, width=8), (), AneurysmTask())


@pytest.mark.parametrize(
    ("step", "stage", "head", "encoder"),
    [
        (0, "head", 0.5, (FROZEN, FROZEN, FROZEN)),
        (1, "head", 1.0, (FROZEN, FROZEN, FROZEN)),
        (3, "head", 1.0, (FROZEN, FROZEN, FROZEN)),
        (4, "deep", 1.0, (FROZEN, 0.05, 0.1)),
        (7, "deep", 1.0, (FROZEN, 0.05, 0.1)),
        (8, "all", 0.5, (0.2, 0.2, 0.2)),
        (9, "all", 0.25, (0.1, 0.1, 0.1)),
        (10, "all", 0.0, (0.0, 0.0, 0.0)),
        (500, "all", 0.0, (0.0, 0.0, 0.0)),
    ],
)
def test_the_rates_of_every_step_follow_from_the_step_alone(
    step: int, stage: str, head: float, encoder: Sequence[float | None]
) -> None:
    rates = rates_at(step, STAGES, depth=3)
    assert rates.name == stage
    assert rates.head == pytest.approx(head)
    assert [rate is None for rate in rates.encoder] == [rate is None for rate in encoder]
    assert [rate for rate in rates.encoder if rate is not None] == pytest.approx(
        [rate for rate in encoder if rate is not None]
    )


def test_more_layers_than_the_encoder_has_means_all_of_them() -> None:
    stage = StageConfig(name="deep", steps=1, head_lr=1.0, encoder_lr=0.1, layers=9)
    assert FROZEN not in rates_at(0, [stage], depth=3).encoder


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "steps"),
        ({"warmup": 5}, "warmup"),
        ({"layers": 1}, "encoder_lr and layers"),
        ({"encoder_lr": 0.1}, "encoder_lr and layers"),
        ({"layers": -1, "encoder_lr": 0.1}, "layers"),
        ({"final": 2.0}, "final"),
        ({"schedule": "constant", "final": 0.5}, "final"),
        ({"epochs": 1.0}, "in steps or in epochs"),
        ({"steps": None}, "in steps or in epochs"),
        ({"steps": None, "epochs": 0.0}, "epochs must be more than 0"),
        ({"steps": None, "epochs": float("nan")}, "epochs must be more than 0"),
        ({"steps": None, "epochs": 2.0, "warmup": 3}, "2.0 epochs"),
        ({"warmup": 0.5}, "whole steps"),
        ({"dropout": 1.0}, "dropout"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_impossible_stages_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(WrongUse, match=said):
        StageConfig(**({"name": "s", "steps": 4, "head_lr": 1.0} | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ({"steps": 4}, [1, 1, 1, 1]),
        ({"steps": 4, "schedule": "constant", "warmup": 2}, [0.5, 1, 1, 1]),
        ({"steps": 5, "schedule": "cosine"}, [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0]),
        ({"steps": 5, "warmup": 2, "final": 0.2}, [0.5, 1, 1, 0.6, 0.2]),
        ({"steps": 5, "warmup": 1, "schedule": "poly"}, [1, 1, 0.75**0.9, 0.5**0.9, 0.25**0.9]),
        ({"steps": 2, "schedule": "poly", "final": 0.5}, [1, 0.5 + 0.5 * 0.5**0.9]),
    ],
)
def test_a_schedule_gives_these_shares_of_the_peak(stage: dict[str, object], expected: list[float]) -> None:
    (config,) = from_plain(Recipe, {"stages": [{"name": "s", "head_lr": 1.0} | stage]}).stages
    assert [rates_at(step, [config], depth=1).head for step in range(len(expected))] == pytest.approx(expected)


def test_a_stage_is_the_same_after_writing_and_reading_however_it_was_spelt() -> None:
    for stage in ({"steps": 4}, {"steps": 4, "final": 0.1}, {"epochs": 3, "warmup": 0.5, "schedule": "poly"}):
        recipe = from_plain(Recipe, {"stages": [{"name": "s", "head_lr": 1.0} | stage]})
        assert from_plain(Recipe, to_plain(recipe)) == recipe


def test_epochs_become_steps_of_the_training_series() -> None:
    stages = [
        StageConfig(name="a", epochs=2, warmup=0.5, head_lr=1.0),
        StageConfig(name="b", steps=7, warmup=3, head_lr=1.0, dropout=0.3, weight_decay=0.0),
        StageConfig(name="c", epochs=0.01, warmup=0.01, head_lr=1.0),
    ]
    epoch = steps_of_epoch(41, 4)
    assert epoch == 11
    with pytest.raises(ValueError, match="in_steps"):
        total_steps(stages)
    first, second, third = in_steps(stages, epoch=epoch, weight_decay=0.01)
    assert [first.steps, second.steps, third.steps] == [22, 7, 1]
    assert [first.warmup, second.warmup, third.warmup] == [6, 3, 0]
    assert [first.dropout, second.dropout] == [None, 0.3]
    assert [first.weight_decay, second.weight_decay] == [0.01, 0.0]
    assert in_steps((first, second, third), epoch=99) == (first, second, third), "what is in steps stays"


def test_dropout_and_weight_decay_last_as_long_as_their_stage() -> None:
    model = Network(build_encoder(TINY), CellsConfig(stride=4, width=8, dropout=0.4), (), AneurysmTask())
    model.encoder.add_module("own", nn.Dropout(0.7))
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.1))
    stages = in_steps(
        [
            StageConfig(name="a", steps=1, head_lr=1.0),
            StageConfig(name="b", steps=1, head_lr=1.0, dropout=0.2, weight_decay=1e-4),
            StageConfig(name="c", steps=1, head_lr=1.0, dropout=0.0, weight_decay=0.0),
        ],
        epoch=1,
        weight_decay=0.1,
    )
    for step, dropout, decay in ((1, 0.2, 1e-4), (2, 0.0, 0.0), (0, 0.4, 0.1)):
        apply_rates(rates_at(step, stages, depth=4), model, optimizer)
        assert [module.p for module in model.head.modules() if isinstance(module, nn.Dropout3d)] == [dropout] * 2
        assert model.encoder.own.p == 0.7
        for group in optimizer.param_groups:
            assert group["weight_decay"] == (decay if group["params"][0].ndim > 1 else 0.0)


def test_every_head_has_its_own_dropout_back_after_a_stage_that_names_one() -> None:
    attention = nn.MultiheadAttention(4, 2, dropout=0.3)
    found = list(head_dropouts(nn.Sequential(nn.Dropout(0.1), attention, nn.Dropout3d(0.2))))
    assert [(name, own) for _, name, own in found] == [("p", 0.1), ("dropout", 0.3), ("p", 0.2)]
    model = tiny_model()
    model.dropouts = tuple(found)
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.1))
    stages = [StageConfig(name="a", steps=1, head_lr=1.0, dropout=0.5), StageConfig(name="b", steps=1, head_lr=1.0)]
    for step, shares in ((0, [0.5, 0.5, 0.5]), (1, [0.1, 0.3, 0.2])):
        apply_rates(rates_at(step, stages, depth=4), model, optimizer)
        assert [getattr(module, name) for module, name, _ in found] == shares
    assert attention.dropout == 0.3


def test_sgd_moves_as_nnunets_does_and_leaves_what_is_frozen() -> None:
    model = tiny_model()
    config = TrainConfig(optimizer="sgd")
    optimizer = make_optimizer(parameter_groups(model, weight_decay=0.0), config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(2):
        apply_rates(rates_at(2 + step, STAGES, depth=4), model, optimizer)
        model.head.shift_L.grad = torch.ones(14)
        optimizer.step()
        optimizer.zero_grad()
    # v1 = g, v2 = 0.99 v1 + g; each step moves by g + 0.99 v (Nesterov).
    assert torch.allclose(model.head.shift_L, -torch.full((14,), (1 + 0.99) + (1 + 0.99 * 1.99)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name != "head.shift_L")
    with pytest.raises(WrongUse, match=r"train\.momentum"):
        TrainConfig(optimizer="sgd", momentum=1.0)
    with pytest.raises(WrongUse, match=r"train\.optimizer"):
        from_plain(Recipe, {"train": {"optimizer": "adam"}})


def test_every_parameter_is_in_exactly_one_group_and_vectors_are_spared_the_decay() -> None:
    model = tiny_model()
    groups = parameter_groups(model, weight_decay=0.1)
    grouped = [id(p) for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert len(model.layers) == 4, "stem and three stages"
    for group in groups:
        for parameter in group["params"]:  # type: ignore[attr-defined]
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


def test_a_frozen_encoder_gets_no_gradient_keeps_no_graph_and_stays_bit_identical() -> None:
    model = tiny_model()
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.1))
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    for step in range(4):
        apply_rates(rates_at(step, STAGES, depth=4), model, optimizer)
        assert not model.encoder.training
        assert all(not map_.requires_grad for map_ in model.encoder(torch.randn(1, 3, 16, 16, 16)))
        model(torch.randn(2, 3, 16, 16, 16))["labels"].sum().backward()
        assert all(p.grad is None for p in model.encoder.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())
    assert not torch.equal(model.head.shift_L, torch.zeros(14))


def test_only_the_deepest_layers_train_in_the_second_stage() -> None:
    model = tiny_model()
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.0))
    rates = rates_at(4, STAGES, depth=4)
    apply_rates(rates, model, optimizer)
    model(torch.randn(2, 3, 16, 16, 16))["labels"].sum().backward()
    with_gradient = {name.split(".blocks")[0] for name, p in model.encoder.named_parameters() if p.grad is not None}
    assert with_gradient == {"stages.1", "stages.2"}
    for group in optimizer.param_groups:
        expected = rates.head if group["layer"] == HEAD else rates.encoder[group["layer"]] or 0.0
        assert group["lr"] == expected


class Normed(nn.Module):
    """An encoder whose norms have running statistics and no parameters."""

    channels, strides = (4, 4), (1, 4)

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv3d(3, 4, 1), nn.Conv3d(4, 4, 4, stride=4)])
        self.norm = nn.BatchNorm3d(4, affine=False)

    def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
        fine = self.norm(self.stages[0](x_BCDHW))
        return [fine, self.stages[1](fine)]

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        return {"blocks": [(r"^stages\.(\d+)", None)]}


def test_running_statistics_of_norms_stand_still_until_the_whole_encoder_trains() -> None:
    model = Network(Normed(), CellsConfig(stride=4, width=8), (), AneurysmTask())
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.0))
    stages = (STAGES[0], StageConfig(name="deep", steps=4, head_lr=1.0, encoder_lr=0.1, layers=1), STAGES[2])
    for step, moves in ((0, False), (4, False), (8, True)):
        apply_rates(rates_at(step, stages, depth=2), model, optimizer)
        norm = model.encoder.norm
        assert isinstance(norm, nn.BatchNorm3d)
        before = norm.running_mean.clone()
        model(torch.randn(2, 3, 8, 8, 8) + 3)
        assert torch.equal(before, norm.running_mean) != moves


def test_the_heads_momentum_survives_the_switch_of_stages() -> None:
    model = tiny_model()
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.0))
    moments = []
    for step in range(5):
        apply_rates(rates_at(step, STAGES, depth=4), model, optimizer)
        model(torch.ones(2, 3, 16, 16, 16))["labels"].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        moments.append(optimizer.state[model.head.shift_L]["step"].item())
    assert moments == [1, 2, 3, 4, 5]
    stem = model.encoder.stem.convs[0].conv.weight  # type: ignore[union-attr, index]
    assert stem not in optimizer.state, "what never trained has no moments"
