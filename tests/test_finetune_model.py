"""The classifier's head, its pooling, and the losses it is trained by."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from finetune.losses import (
    IGNORE,
    LossConfig,
    Targets,
    count,
    denominators,
    finetune_loss,
    heat_loss,
    label_loss,
    territory_loss,
)
from finetune.models.assemble import PRESENCE_PRIOR, AneurysmClassifier, HeadConfig, Output, coordinates, pool
from finetune.tasks.aneurysm import WEIGHTS
from harmonize.errors import UserError
from headspark.encoder import EncoderConfig, build_encoder

TINY = EncoderConfig(features=(4, 8, 8), blocks=(1, 1, 1), strides=(1, 2, 2))


def model(**head: object) -> AneurysmClassifier:
    torch.manual_seed(0)
    return AneurysmClassifier(build_encoder(TINY), HeadConfig(**({"stride": 4, "width": 8} | head)))  # type: ignore[arg-type]


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_cells_have_the_chosen_stride(stride: int) -> None:
    output = model(stride=stride)(torch.randn(2, 3, 16, 12, 8))
    cells = (16 // stride, 12 // stride, 8 // stride)
    assert output.logits_B14.shape == (2, 14)
    assert output.presence_Bdhw.shape == (2, *cells)
    assert output.territory_B13dhw.shape == (2, 13, *cells)


def test_a_stride_that_the_encoder_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(UserError, match="1, 2, 4"):
        model(stride=8)


def test_an_untrained_cell_is_as_unlikely_as_the_prior_says() -> None:
    output = model()(torch.zeros(1, 3, 16, 16, 16))
    assert output.presence_Bdhw.sigmoid().mean().item() == pytest.approx(PRESENCE_PRIOR, rel=0.9)


def test_without_scaling_present_is_at_least_as_likely_as_any_place() -> None:
    logits = model()(torch.randn(3, 3, 16, 16, 16)).logits_B14
    assert (logits[:, 13:] >= logits[:, :13]).all()


@pytest.mark.parametrize("told", [False, True])
def test_left_and_right_places_can_only_be_told_apart_with_coordinates(told: bool) -> None:
    # Stride 1 throughout: a strided kernel would see the two sides at different offsets.
    encoder = build_encoder(dataclasses.replace(TINY, strides=(1, 1, 1)))
    classifier = AneurysmClassifier(encoder, HeadConfig(stride=1, width=8, coordinates=told))
    for parameter in classifier.parameters():
        if parameter.ndim == 5:  # kernels that look left as they look right
            parameter.data = (parameter + parameter.flip(2)) / 2
    x_BCDHW = torch.randn(1, 3, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    output = classifier((x_BCDHW + x_BCDHW.flip(2)) / 2)
    assert torch.allclose(output.presence_Bdhw, output.presence_Bdhw.flip(1), atol=1e-5)
    assert torch.allclose(output.territory_B13dhw, output.territory_B13dhw.flip(2), atol=1e-5) != told


def test_maps_beyond_the_coarsest_are_not_used() -> None:
    classifier = model(stride=1, coarsest=2)
    classifier(torch.randn(1, 3, 16, 16, 16)).logits_B14.sum().backward()
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
    assert pool(cells, HeadConfig(pooling="mean")).item() == 2.0
    assert pool(cells, HeadConfig(pooling="topk", top=1)).item() == 5.0
    assert pool(cells, HeadConfig(pooling="topk", top=99)).item() == 2.0
    expected = math.log(sum(math.exp(v) for v in (0, 1, 2, 5)) / 4)
    assert pool(cells, HeadConfig(pooling="logmeanexp")).item() == pytest.approx(expected)


def test_the_label_loss_weighs_labels_as_the_metric_does() -> None:
    logits, labels = torch.randn(5, 14), (torch.rand(5, 14) < 0.4).float()
    plain = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    weights = torch.tensor(WEIGHTS) / sum(WEIGHTS)
    config = LossConfig(positive_weight=1.0, present_weight=1.0)
    torch.testing.assert_close(label_loss(logits, labels, config), (plain * weights).sum(1).mean())


def test_positive_labels_weigh_more_and_easy_ones_count_less_with_focal() -> None:
    logits, labels = torch.full((1, 14), 3.0), torch.ones(1, 14)
    one = label_loss(logits, labels, LossConfig(positive_weight=1.0, present_weight=1.0))
    four = label_loss(logits, labels, LossConfig(positive_weight=4.0, present_weight=4.0))
    focal = label_loss(logits, labels, LossConfig(positive_weight=1.0, present_weight=1.0, focal=2.0))
    torch.testing.assert_close(four, 4 * one)
    assert focal < one * 0.01


def test_the_heat_loss_falls_when_the_centre_rises_and_forgives_its_neighbours() -> None:
    heat = torch.zeros(1, 1, 1, 5)
    heat[0, 0, 0] = torch.tensor([0.0, 0.8, 1.0, 0.8, 0.0])
    located = torch.tensor([True])

    def at(cell: int) -> float:
        logits = torch.full((1, 1, 1, 5), -4.0)
        logits[0, 0, 0, cell] = 4.0
        return heat_loss(logits, heat, located).item()

    assert at(2) < at(1) < at(0)


def test_a_series_without_localizers_is_left_out_of_the_heat_loss() -> None:
    logits = torch.randn(2, 2, 2, 2, requires_grad=True)
    heat_loss(logits, torch.zeros(2, 2, 2, 2), torch.tensor([True, False])).backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().min() > 0
    assert logits.grad[1].abs().max() == 0
    assert heat_loss(logits, torch.zeros(2, 2, 2, 2), torch.tensor([False, False])).item() == 0


def test_the_territory_loss_looks_only_where_the_place_is_known() -> None:
    logits = torch.randn(1, 13, 2, 2, 2)
    territory = torch.full((1, 2, 2, 2), IGNORE)
    assert territory_loss(logits, territory).item() == 0
    territory[0, 0, 0, 0] = 4
    expected = F.cross_entropy(logits[:, :, 0, 0, 0], torch.tensor([4]))
    torch.testing.assert_close(territory_loss(logits, territory), expected)


def test_the_total_is_the_weighted_sum_of_its_parts() -> None:
    output = Output(torch.randn(2, 14), torch.randn(2, 2, 2, 2), torch.randn(2, 13, 2, 2, 2))
    targets = Targets(
        torch.ones(2, 14),
        torch.rand(2, 2, 2, 2),
        torch.randint(-1, 13, (2, 2, 2, 2)),
        torch.tensor([True, True]),
    )
    losses = finetune_loss(output, targets, LossConfig(labels=2.0, presence=3.0, territory=0.25))
    torch.testing.assert_close(losses.total, 2 * losses.labels + 3 * losses.presence + 0.25 * losses.territory)


def test_the_losses_of_two_batches_of_a_step_add_up_to_that_of_their_samples_in_one() -> None:
    outputs = [Output(torch.randn(n, 14), torch.randn(n, 2, 2, 2), torch.randn(n, 13, 2, 2, 2)) for n in (1, 3)]
    heat_Bdhw = torch.rand(4, 2, 2, 2)
    heat_Bdhw[1:, 0, 0, 0] = 1  # centres of aneurysms, one of which is in a series that is left out
    territory_Bdhw = torch.randint(-1, 13, (4, 2, 2, 2))
    territory_Bdhw[0] = IGNORE
    whole = Targets(torch.randint(0, 2, (4, 14)).float(), heat_Bdhw, territory_Bdhw, torch.tensor([1, 1, 1, 0]).bool())
    parts = [Targets(*(tensor[:1] for tensor in whole)), Targets(*(tensor[1:] for tensor in whole))]
    together = Output(*(torch.cat(pair) for pair in zip(*outputs, strict=True)))
    counts_P4 = torch.stack([count(part) for part in parts])
    assert counts_P4.sum(0).tolist() == [4, 2, 3, (territory_Bdhw != IGNORE).sum()]
    shares_P3 = (denominators(counts_P4) / denominators(counts_P4.sum(0))).float()
    losses = [finetune_loss(*one, LossConfig(), share) for *one, share in zip(outputs, parts, shares_P3, strict=True)]
    expected = finetune_loss(together, whole, LossConfig())
    torch.testing.assert_close([sum(values) for values in zip(*losses, strict=True)], list(expected))
