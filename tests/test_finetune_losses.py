"""Every loss: what it says of cases that are computed by hand, that parts of a step add up, and that it teaches."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.losses import LOSSES, TotalLoss
from finetune.losses.base import TermConfig
from finetune.losses.dense import (
    DiceCrossEntropyConfig,
    DiceCrossEntropyLoss,
    SquaredErrorConfig,
    SquaredErrorLoss,
    TopKConfig,
    TopKLoss,
)
from finetune.losses.labels import AsymmetricConfig, AsymmetricLoss, HierarchyConfig, HierarchyLoss
from finetune.targets import IGNORE
from finetune.tasks import Link
from harmonize.errors import WrongUse

TASK: Any = SimpleNamespace(
    labels=("left", "right", "any"),
    places=2,
    any_label=2,
    label_weights=(1, 1, 2),
    link=Link.SIGMOID,
    class_weights=(1.0, 1.0, 2.0),
)
NUMBERS: Any = SimpleNamespace(**{**vars(TASK), "link": Link.IDENTITY})
EDGE = 8
KINDS = list(LOSSES)
WITHOUT_TRUTH = {"hierarchy"}
"""Losses that look at the output alone, and teach nothing by themselves."""

OF_WHOLE_SERIES = {"heat"} | {kind for kind, (config, _) in LOSSES.items() if config().of == "labels"}
"""Losses whose target is known of a series or not, and of no part of it."""


def toy_series() -> tuple[Tensor, dict[str, Tensor]]:
    """Eight volumes: intensity, and where left is; two have a bright cube on the left, two on the right, one both."""
    generator = torch.Generator().manual_seed(0)
    x = 0.1 * torch.rand(8, 2, EDGE, EDGE, EDGE, generator=generator)
    x[:, 1] = torch.linspace(-1, 1, EDGE)[:, None, None]
    targets = {
        "labels": torch.tensor([[1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1], [1, 1, 1], *[[0, 0, 0]] * 3]).float(),
        "territory": torch.full((8, EDGE, EDGE, EDGE), IGNORE),
        "vessels": torch.zeros(8, EDGE, EDGE, EDGE, dtype=torch.int64),
        **{name: torch.zeros(8, EDGE, EDGE, EDGE) for name in ("presence", "spheres", "blobs")},
    }
    for series, labels in enumerate(targets["labels"].tolist()):
        for place in range(2):
            cube = (series, slice(1 + 4 * place, 3 + 4 * place), slice(2, 4), slice(3, 5))
            if labels[place]:
                x[series, 0][cube[1:]] = 1
                targets["vessels"][cube] = 1 + place
                targets["spheres"][cube] = targets["blobs"][cube] = targets["presence"][cube] = 1
            targets["territory"][cube] = place
    return x, targets


class Toy(nn.Module):
    """Two convolutions for dense outputs; how high they are left, right and anywhere for labels."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of = of
        self.channels = {"territory": 2, "vessels": 3}.get(of, 1)
        self.layers = nn.Sequential(nn.Conv3d(2, 8, 1), nn.GELU(), nn.Conv3d(8, self.channels, 1))
        self.scale = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.layers(x)
        if self.of != "labels":
            return cells if self.channels > 1 else cells[:, 0]
        left, right, both = (half.flatten(1).logsumexp(1) for half in (*cells.chunk(2, 2), cells))
        return self.scale(torch.stack([left, right, both], 1))


def lowest(loss: TotalLoss, output_of: Any, parameters: list[Tensor], targets: dict[str, Tensor], of: str) -> float:
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(150):
        value, _ = loss({of: output_of()}, targets)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return float(loss({of: output_of()}, targets)[0].detach())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WITHOUT_TRUTH])
def test_a_network_gets_below_half_of_what_the_best_constant_answer_gets(kind: str) -> None:
    torch.manual_seed(0)
    config = LOSSES[kind][0]()
    loss, (x, targets) = TotalLoss([config], NUMBERS if config.kind == "numbers" else TASK), toy_series()
    network = Toy(config.of)
    shape = network(x).shape
    constant = torch.zeros(shape[1 : 2 if config.of in ("labels", "territory", "vessels") else 1], requires_grad=True)

    def same_everywhere() -> Tensor:
        return constant.view(1, -1, *[1] * (len(shape) - 2)).expand(shape) if constant.ndim else constant.expand(shape)

    bar = lowest(loss, same_everywhere, [constant], targets, config.of)
    assert lowest(loss, lambda: network(x), list(network.parameters()), targets, config.of) < bar / 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_a_step_add_up_to_its_series_in_one_batch_whatever_is_known_of_them(kind: str) -> None:
    torch.manual_seed(0)
    config, (x, targets) = LOSSES[kind][0](), toy_series()
    output = Toy(config.of)(x).detach() * 3
    targets = {config.wanted: targets[config.wanted], f"{config.wanted}_known": torch.arange(8) % 3 > 0}
    if targets[config.wanted].ndim > 2:
        targets[config.wanted][1, :5] = IGNORE  # part of one that is known
        targets[config.wanted][2] = IGNORE  # all of another
    loss = TotalLoss([config], NUMBERS if config.kind == "numbers" else TASK)
    cuts = [slice(0, 1), slice(1, 4), slice(4, 8)]
    parts = [{name: one[cut] for name, one in targets.items()} for cut in cuts]
    counts_Pn = torch.stack([loss.counts(part) for part in parts])
    shares_PT = (loss.denominators(counts_Pn) / loss.denominators(counts_Pn.sum(0))).float()
    found = [loss({config.of: output[cut]}, *rest) for cut, *rest in zip(cuts, parts, shares_PT, strict=True)]
    total, terms_T = loss({config.of: output}, targets)
    assert total > 0
    torch.testing.assert_close(sum(part for part, _ in found), total)
    torch.testing.assert_close(sum(terms for _, terms in found), terms_T)
    # What is said of series that are not known changes nothing.
    output[::3] = -output[::3]
    torch.testing.assert_close(loss({config.of: output}, targets)[0], total)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_in_which_nothing_is_known_has_no_loss_and_no_gradient(kind: str) -> None:
    config, (x, targets) = LOSSES[kind][0](), toy_series()
    network = Toy(config.of)
    unknown = {config.wanted: targets[config.wanted], f"{config.wanted}_known": torch.zeros(8, dtype=torch.bool)}
    total, _ = TotalLoss([config], NUMBERS if config.kind == "numbers" else TASK)({config.of: network(x)}, unknown)
    total.backward()
    assert total == 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in network.parameters())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OF_WHOLE_SERIES])
def test_what_is_said_of_a_cell_that_nothing_is_known_about_changes_nothing(kind: str) -> None:
    config, (x, targets) = LOSSES[kind][0](), toy_series()
    output = Toy(config.of)(x).detach()
    targets[config.wanted][:, :, 5:] = IGNORE
    other = output.clone()
    other[..., 5:, :] += 7
    loss = TotalLoss([config], NUMBERS if config.kind == "numbers" else TASK)
    before, after = (loss({config.of: one}, targets)[0] for one in (output, other))
    torch.testing.assert_close(before, after)


def test_easy_negatives_count_nothing_and_positives_as_much_as_their_weight_with_asymmetric() -> None:
    config = AsymmetricConfig(gamma_positive=0.0, positive_weights={"left": 4.0})
    loss = AsymmetricLoss(config, TASK)
    easy = torch.full((1, 3), math.log(0.04 / 0.96))
    assert loss(easy, torch.zeros(1, 3), None) == 0
    expected = -(4 * math.log(0.04) + math.log(0.04) + 2 * math.log(0.04)) / 4
    assert loss(easy, torch.ones(1, 3), None).item() == pytest.approx(expected)
    hard = torch.full((1, 3), 2.0)
    p = 1 / (1 + math.exp(-2.0)) - 0.05
    assert loss(hard, torch.zeros(1, 3), None).item() == pytest.approx(-(p**4) * math.log(1 - p), rel=1e-5)


def test_hierarchy_pushes_a_place_and_the_label_above_it_together_and_is_refused_without_such_a_label() -> None:
    logits = torch.tensor([[2.0, -3.0, -1.0], [-1.0, -2.0, 3.0]], requires_grad=True)
    loss = HierarchyLoss(HierarchyConfig(), TASK)
    value = loss(logits, torch.zeros(2, 3), None)
    place, above = (1 / (1 + math.exp(-x)) for x in (2.0, -1.0))
    assert value.item() == pytest.approx((place - above) ** 2 / 2)
    value.backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] > 0 > logits.grad[0, 2]
    assert logits.grad[0, 1] == 0
    assert logits.grad[1].abs().max() == 0
    with pytest.raises(WrongUse, match="hierarchy"):
        HierarchyLoss(HierarchyConfig(), SimpleNamespace(any_label=None))  # type: ignore[arg-type]


def test_topk_is_a_mean_over_the_hardest_share_of_the_cells_of_each_series() -> None:
    logits = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    target = (logits > 1).float().flip(0)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1)
    expected = torch.stack([one.sort(descending=True).values[:10].mean() for one in each]).mean()
    torch.testing.assert_close(TopKLoss(TopKConfig(share=0.1))(logits, target, None), expected)


def test_dice_and_cross_entropy_of_a_series_by_their_definition() -> None:
    logits = torch.randn(2, 3, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(2, 2, 3, 4, dtype=torch.int64)
    target[0, 0, 0] = 2  # the second series has no class but the first
    p = logits.softmax(1)
    both = p[0, 2][target[0] == 2].sum()
    dice = (2 * both + 1) / (p[0, 2].sum() + 4 + 1)
    expected = F.cross_entropy(logits, target) + 0.5 * (1 - dice) / 2
    loss = DiceCrossEntropyLoss(DiceCrossEntropyConfig(dice=0.5))
    torch.testing.assert_close(loss(logits, target, None), expected)


def test_the_squared_error_weighs_cells_of_blobs_more() -> None:
    logits, target = torch.zeros(1, 10), torch.tensor([[1.0, 0.75, *[0.0] * 8]])
    expected = (9 * 0.25 + 9 * 0.0625 + 8 * 0.25) / (9 + 9 + 8)
    loss = SquaredErrorLoss(SquaredErrorConfig(positive_weight=9.0))
    assert loss(logits, target, None).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("topk", {"share": 0.0}),
        ("topk", {"share": 1.5}),
        ("dice_ce", {"dice": -1.0}),
        ("mse", {"positive_weight": 0.0}),
        ("asymmetric", {"clip": 1.0}),
        ("asymmetric", {"gamma_negative": -1.0}),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_with_its_key(kind: str, values: dict[str, float]) -> None:
    with pytest.raises(WrongUse, match=next(iter(values))):
        LOSSES[kind][0](**values)


def test_all_losses_name_themselves() -> None:
    assert all(issubclass(config, TermConfig) for config, _ in LOSSES.values())
    assert [config().kind for config, _ in LOSSES.values()] == KINDS
