"""The classifier's head, its pooling, and the losses it is trained by."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.losses import LOSSES, TotalLoss
from finetune.losses.base import Loss
from finetune.losses.cells import CrossEntropyConfig, CrossEntropyLoss, HeatConfig, HeatLoss
from finetune.losses.labels import BinaryConfig, FocalConfig
from finetune.models.assemble import Network
from finetune.models.heads.cells import PRESENCE_PRIOR, CellsConfig, pool
from finetune.models.neck import coordinates
from finetune.targets import IGNORE
from finetune.tasks.aneurysm import WEIGHTS, AneurysmTask
from harmonize.errors import UserError
from harmonize.labels import LABELS
from headspark.encoder import EncoderConfig, build_encoder

TINY = EncoderConfig(features=(4, 8, 8), blocks=(1, 1, 1), strides=(1, 2, 2))


def model(**head: object) -> Network:
    torch.manual_seed(0)
    return Network(build_encoder(TINY), CellsConfig(**({"stride": 4, "width": 8} | head)), (), AneurysmTask())  # type: ignore[arg-type]


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_cells_have_the_chosen_stride(stride: int) -> None:
    output = model(stride=stride)(torch.randn(2, 3, 16, 12, 8))
    cells = (16 // stride, 12 // stride, 8 // stride)
    assert output["labels"].shape == (2, 14)
    assert output["presence"].shape == (2, *cells)
    assert output["territory"].shape == (2, 13, *cells)


def test_a_stride_that_the_encoder_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(UserError, match="1, 2, 4"):
        model(stride=8)


def test_an_untrained_cell_is_as_unlikely_as_the_prior_says() -> None:
    output = model()(torch.zeros(1, 3, 16, 16, 16))
    assert output["presence"].sigmoid().mean().item() == pytest.approx(PRESENCE_PRIOR, rel=0.9)


def test_without_scaling_present_is_at_least_as_likely_as_any_place() -> None:
    logits = model()(torch.randn(3, 3, 16, 16, 16))["labels"]
    assert (logits[:, 13:] >= logits[:, :13]).all()


@pytest.mark.parametrize("told", [False, True])
def test_left_and_right_places_can_only_be_told_apart_with_coordinates(told: bool) -> None:
    # Stride 1 throughout: a strided kernel would see the two sides at different offsets.
    encoder = build_encoder(dataclasses.replace(TINY, strides=(1, 1, 1)))
    classifier = Network(encoder, CellsConfig(stride=1, width=8, coordinates=told), (), AneurysmTask())
    for parameter in classifier.parameters():
        if parameter.ndim == 5:  # kernels that look left as they look right
            parameter.data = (parameter + parameter.flip(2)) / 2
    x_BCDHW = torch.randn(1, 3, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    output = classifier((x_BCDHW + x_BCDHW.flip(2)) / 2)
    assert torch.allclose(output["presence"], output["presence"].flip(1), atol=1e-5)
    assert torch.allclose(output["territory"], output["territory"].flip(2), atol=1e-5) != told


def test_maps_beyond_the_coarsest_are_not_used() -> None:
    classifier = model(stride=1, coarsest=2)
    classifier(torch.randn(1, 3, 16, 16, 16))["labels"].sum().backward()
    used = {name.split(".blocks")[0] for name, p in classifier.encoder.named_parameters() if p.grad is not None}
    assert "stages.1" in used
    assert "stages.2" not in used


def test_a_coarsest_map_finer_than_the_cells_is_refused() -> None:
    with pytest.raises(UserError, match="coarsest"):
        model(stride=4, coarsest=2)


def test_coordinates_run_from_minus_one_to_one_through_the_middle() -> None:
    grid = coordinates((2, 4, 1), torch.zeros(()))
    assert grid.shape == (1, 3, 2, 4, 1)
    assert grid[0, 0, :, 0, 0].tolist() == [-0.5, 0.5]
    assert grid[0, 1, 0, :, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert grid[0, 2, 0, 0, 0] == 0


def test_pooling_by_its_definition() -> None:
    cells = torch.tensor([0.0, 1.0, 2.0, 5.0]).reshape(1, 1, 1, 2, 2)
    assert pool(cells, CellsConfig(pooling="mean")).item() == 2.0
    assert pool(cells, CellsConfig(pooling="topk", top=1)).item() == 5.0
    assert pool(cells, CellsConfig(pooling="topk", top=99)).item() == 2.0
    expected = math.log(sum(math.exp(v) for v in (0, 1, 2, 5)) / 4)
    assert pool(cells, CellsConfig(pooling="logmeanexp")).item() == pytest.approx(expected)


def test_the_label_loss_weighs_labels_as_the_metric_does() -> None:
    logits, labels = torch.randn(5, 14), (torch.rand(5, 14) < 0.4).float()
    plain = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    weights = torch.tensor(WEIGHTS) / sum(WEIGHTS)
    loss = label_loss(BinaryConfig(positive_weight=1.0))
    torch.testing.assert_close(loss(logits, labels, None), (plain * weights).sum(1).mean())
    known = torch.tensor([True, False, True, False, False])
    torch.testing.assert_close(loss(logits, labels, known), (plain * weights).sum(1)[[0, 2]].mean())


def test_positive_labels_weigh_more_and_easy_ones_count_less_with_focal() -> None:
    logits, labels = torch.full((1, 14), 3.0), torch.ones(1, 14)
    one = label_loss(BinaryConfig(positive_weight=1.0))(logits, labels, None)
    four = label_loss(BinaryConfig(positive_weight=4.0, present_weight=4.0))(logits, labels, None)
    focal = label_loss(FocalConfig(positive_weight=1.0))(logits, labels, None)
    torch.testing.assert_close(four, 4 * one)
    assert focal < one * 0.01


def test_a_label_may_have_a_weight_of_its_own() -> None:
    logits, labels = torch.full((1, 14), 3.0), torch.zeros(1, 14)
    labels[0, LABELS.index("Basilar Tip")] = 1
    plain = label_loss(BinaryConfig(positive_weight=1.0))(logits, labels, None)
    named = label_loss(BinaryConfig(positive_weight=1.0, positive_weights={"Basilar Tip": 11.0}))(logits, labels, None)
    torch.testing.assert_close(named - plain, 10 * F.softplus(torch.tensor(-3.0)) * WEIGHTS[0] / sum(WEIGHTS))
    with pytest.raises(UserError, match="Basilar Tap"):
        label_loss(BinaryConfig(positive_weights={"Basilar Tap": 2.0}))


def label_loss(config: BinaryConfig) -> Loss:
    return LOSSES[config.kind][1](config, AneurysmTask())


def test_the_heat_loss_falls_when_the_centre_rises_and_forgives_its_neighbours() -> None:
    heat = torch.zeros(1, 1, 1, 5)
    heat[0, 0, 0] = torch.tensor([0.0, 0.8, 1.0, 0.8, 0.0])
    located = torch.tensor([True])

    def at(cell: int) -> float:
        logits = torch.full((1, 1, 1, 5), -4.0)
        logits[0, 0, 0, cell] = 4.0
        return HeatLoss()(logits, heat, located).item()

    assert at(2) < at(1) < at(0)


def test_a_series_without_localizers_is_left_out_of_the_heat_loss() -> None:
    logits = torch.randn(2, 2, 2, 2, requires_grad=True)
    HeatLoss()(logits, torch.zeros(2, 2, 2, 2), torch.tensor([True, False])).backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().min() > 0
    assert logits.grad[1].abs().max() == 0
    assert HeatLoss()(logits, torch.zeros(2, 2, 2, 2), torch.tensor([False, False])).item() == 0


def test_the_territory_loss_looks_only_where_the_place_is_known() -> None:
    logits = torch.randn(1, 13, 2, 2, 2)
    territory = torch.full((1, 2, 2, 2), IGNORE)
    assert CrossEntropyLoss()(logits, territory, None).item() == 0
    territory[0, 0, 0, 0] = 4
    expected = F.cross_entropy(logits[:, :, 0, 0, 0], torch.tensor([4]))
    torch.testing.assert_close(CrossEntropyLoss()(logits, territory, None), expected)


def outputs_of(series: int) -> dict[str, Tensor]:
    return {
        "labels": torch.randn(series, 14),
        "presence": torch.randn(series, 2, 2, 2),
        "territory": torch.randn(series, 13, 2, 2, 2),
    }


def test_the_total_is_the_weighted_sum_of_its_terms() -> None:
    targets = {
        "labels": torch.ones(2, 14),
        "presence": torch.rand(2, 2, 2, 2),
        "territory": torch.randint(-1, 13, (2, 2, 2, 2)),
    }
    terms = (BinaryConfig(weight=2.0), HeatConfig(weight=3.0), CrossEntropyConfig(weight=0.25))
    total, each = TotalLoss(terms, AneurysmTask())(outputs_of(2), targets)
    torch.testing.assert_close(total, 2 * each[0] + 3 * each[1] + 0.25 * each[2])


def test_the_losses_of_two_batches_of_a_step_add_up_to_that_of_their_samples_in_one() -> None:
    outputs = [outputs_of(series) for series in (1, 3)]
    heat_Bdhw = torch.rand(4, 2, 2, 2)
    heat_Bdhw[1:, 0, 0, 0] = 1  # centres of aneurysms, one of which is in a series that is left out
    territory_Bdhw = torch.randint(-1, 13, (4, 2, 2, 2))
    territory_Bdhw[0] = IGNORE
    whole = {
        "labels": torch.randint(0, 2, (4, 14)).float(),
        "presence": heat_Bdhw,
        "presence_known": torch.tensor([1, 1, 1, 0]).bool(),
        "territory": territory_Bdhw,
    }
    parts = [{name: one[:1] for name, one in whole.items()}, {name: one[1:] for name, one in whole.items()}]
    together = {name: torch.cat([one[name] for one in outputs]) for name in outputs[0]}
    loss = TotalLoss((BinaryConfig(), HeatConfig(), CrossEntropyConfig()), AneurysmTask())
    counts_Pn = torch.stack([loss.counts(part) for part in parts])
    assert counts_Pn.sum(0).tolist() == [4, 2, 3, (territory_Bdhw != IGNORE).sum()]
    shares_PT = (loss.denominators(counts_Pn) / loss.denominators(counts_Pn.sum(0))).float()
    found = [loss(*one, shares) for *one, shares in zip(outputs, parts, shares_PT, strict=True)]
    total, terms_T = loss(together, whole)
    torch.testing.assert_close(sum(part for part, _ in found), total)
    torch.testing.assert_close(sum(terms for _, terms in found), terms_T)
