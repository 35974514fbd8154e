"""Heads, conditions and adversaries: each learns from eight toy series, and knows left from right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.inference import classify
from finetune.losses import TotalLoss
from finetune.losses.cells import CrossEntropyConfig
from finetune.losses.labels import BinaryConfig
from finetune.models.assemble import Network
from finetune.models.condition import CONDITIONS, HeaderCondition, NoCondition, PredictedCondition
from finetune.models.heads import AUXILIARY, HEADS
from finetune.models.heads.attention import AttentionConfig, positions
from finetune.models.heads.cells import CellsConfig
from finetune.models.heads.domain import DomainConfig, DomainHead
from finetune.models.heads.global_pool import GlobalConfig, GlobalHead
from finetune.models.heads.masked import MaskedConfig, MaskedHead, on_grid
from finetune.models.heads.modality import ModalityConfig
from finetune.models.maps import Maps
from finetune.models.neck import Pyramid
from finetune.recipe import Recipe, TrainConfig
from finetune.series import Findings, Sample, groups_of
from finetune.stages import Rates, apply_rates, parameter_groups
from finetune.state import make_model
from finetune.targets import IGNORE, class_targets
from finetune.tasks.aneurysm import AneurysmTask
from harmonize.errors import WrongUse
from harmonize.scan import HU
from headspark.encoder import EncoderConfig, build_encoder

TINY = EncoderConfig(in_channels=1, features=(4, 8, 8), blocks=(1, 1, 1), strides=(1, 2, 2))
EDGE, MOST_STEPS = 12, 200
MIRROR = (1, 0, 2)
SIDES = [(1, 0), (0, 1), (1, 1), (0, 0), (1, 0), (0, 1), (1, 1), (0, 0)]


class SidesTask(AneurysmTask):
    """Is there a sac on the left, on the right, anywhere?"""

    labels: tuple[str, ...] = ("left", "right", "any")
    mirror: tuple[int, ...] | None = MIRROR
    places: int = 2
    any_label: int | None = 2
    label_weights: tuple[float, ...] = (1.0, 1.0, 2.0)
    mask_values: tuple[int, ...] = (1, 2)
    modalities: tuple[str, ...] = ("bright", "dark")
    sources: tuple[str, ...] = ("here", "there")


TASK = SidesTask()


def toy_series(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise with a bright sac left or right or both or none; x_BCDHW and labels (B, 3)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(SIDES), 1, EDGE, EDGE, EDGE, generator=generator) * 0.2
    for number, sides in enumerate(SIDES):
        for sac, start in zip(sides, (2, EDGE - 5), strict=True):
            y, z = torch.randint(3, EDGE - 6, (2,), generator=generator).tolist()
            x[number, 0, start : start + 3, y : y + 3, z : z + 3] += 4.0 * sac
    return x, torch.tensor([(*sides, max(sides)) for sides in SIDES]).float()


def network(head: Any, auxiliary: Sequence[Any] = (), condition: Any = NoCondition()) -> Network:  # noqa: B008
    torch.manual_seed(0)
    return Network(build_encoder(TINY), head, auxiliary, TASK, condition)


def fit(
    model: Network,
    losses: Sequence[Any],
    x: Tensor,
    targets: dict[str, Tensor],
    goal: float,
    group_B: Tensor | None = None,
) -> float:
    """Train on the series and their mirror images until the goal is reached; the total loss at the end."""
    loss, optimizer = TotalLoss(losses, TASK), torch.optim.AdamW(model.parameters(), lr=1e-2)
    x = torch.cat([x, x.flip(2)])
    mirrored = targets | {"labels": targets["labels"][:, list(MIRROR)]}
    targets = {name: torch.cat([targets[name], mirrored[name]]) for name in targets}
    group_B = None if group_B is None else group_B.repeat(2)
    for _ in range(MOST_STEPS):
        total, _ = loss(model(x, group_B), targets)
        if total < goal:
            break
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return total.item()


def best_constant(labels_BL: Tensor) -> float:
    """Loss of the answer that says how frequent each label is."""
    share_L = labels_BL.mean(0)
    entropy_L = F.binary_cross_entropy(share_L, share_L, reduction="none")
    weights_L = torch.tensor(TASK.label_weights, dtype=torch.float32)
    return float((entropy_L * weights_L).sum() / weights_L.sum())


def labels_loss() -> BinaryConfig:
    return BinaryConfig(positive_weight=1.0)


def small(kind: str, **keys: Any) -> Any:
    """The configuration of a head that fits the toy encoder, without dropout."""
    config: Any = HEADS[kind][0]
    names = {name: value for name, value in {"width": 16, "dropout": 0.0}.items() if name in config.__slots__}
    return config(**(names | keys))


@pytest.mark.parametrize("kind", sorted(set(HEADS) - {"segmentation"}))  # which answers masks: test_finetune_masks.py
def test_a_head_learns_and_its_mirrored_input_gives_swapped_labels(kind: str) -> None:
    x, labels = toy_series()
    model = network(small(kind))
    half = best_constant(labels) / 2
    # So low that no answer lies on the wrong side.
    assert fit(model, [labels_loss()], x, {"labels": labels}, half / 20) < half
    model.eval()
    said = classify(model, x, mirror=None)
    swapped = classify(model, x.flip(2), mirror=None)
    assert torch.equal((said > 0.5).float(), labels)
    assert torch.equal((swapped > 0.5).float(), labels[:, list(MIRROR)])


def test_conditions_of_every_kind_change_nothing_at_first_and_are_told_apart_then() -> None:
    x, _ = toy_series()
    for kind, config in CONDITIONS.items():
        for of in ("maps", "labels"):
            told = config() if kind == "none" else config(of=of)
            model, plain = (
                network(small("cells"), [ModalityConfig()], told),
                network(small("cells"), [ModalityConfig()]),
            )
            model.load_state_dict(plain.state_dict(), strict=False)
            group_B = torch.zeros(len(x), dtype=torch.int64)
            one, other = group_B, group_B + 1
            if kind == "spacing":  # the same group, in voxels of 1 mm and of 2 mm
                one, other = torch.zeros(len(x), 4), torch.tensor([0.0, *[math.log(2)] * 3]).expand(len(x), 4)
            assert torch.equal(model(x, one)["labels"], plain(x)["labels"]), (kind, of)
            if kind in ("header", "spacing"):
                for parameter in model.condition.parameters():
                    nn.init.normal_(parameter)
                assert not torch.allclose(model(x, one)["labels"], model(x, other)["labels"]), (kind, of)


@pytest.mark.parametrize("of", ["maps", "labels"])
def test_a_network_that_is_told_the_header_learns_what_the_voxels_do_not_show(of: Any) -> None:
    x, _ = toy_series()
    x = x[:1].expand(2, -1, -1, -1, -1)  # one head twice: only the header tells the series apart
    group_B = torch.tensor([0, 1])
    labels = group_B[:, None].expand(-1, 3).float()
    half = best_constant(labels) / 2
    model = network(small("cells"), condition=HeaderCondition(of=of))
    assert fit(model, [labels_loss()], x, {"labels": labels}, half, group_B) < half
    model.eval()
    found = classify(model, x, mirror=MIRROR, group_B=group_B)
    assert torch.equal((found > 0.5).float(), labels)


def test_a_network_that_wants_to_be_told_and_is_not_says_so() -> None:
    with pytest.raises(ValueError, match="wants to know"):
        network(small("cells"), condition=HeaderCondition())(toy_series()[0])


def test_the_modality_is_learned_and_told_to_the_head_of_the_labels() -> None:
    x, labels = toy_series()
    modality = torch.arange(8) % 2
    x = x * torch.where(modality == 0, 1.0, -1.0).view(-1, 1, 1, 1, 1)
    model = network(small("cells"), [ModalityConfig()], PredictedCondition(of="labels"))
    losses = [labels_loss(), CrossEntropyConfig(of="modality")]
    half = (best_constant(labels) + 0.693) / 2
    assert fit(model, losses, x, {"labels": labels, "modality": modality}, half / 2) < half
    model.eval()
    output = model(x)
    assert torch.equal(output["modality"].argmax(1), modality)
    # What it was told is what it saw: shifting the answer of one modality moves its series alone.
    with torch.no_grad():
        model.condition.labels.shift[0][1] += 100.0
    moved = (model(x)["labels"] - output["labels"]).abs().min(1).values > 50
    assert torch.equal(moved, modality == 1)


def test_what_a_head_or_a_condition_makes_use_of_must_be_given() -> None:
    with pytest.raises(WrongUse, match=r"condition.kind predicted: makes use of modality, .* under auxiliary"):
        network(small("cells"), condition=PredictedCondition())
    with pytest.raises(WrongUse, match=r"head.kind masked: makes use of vessels"):
        network(small("masked", territories="vessels"))


def test_the_adversary_learns_while_the_encoder_gets_the_gradient_reversed() -> None:
    x, _ = toy_series()
    target = torch.arange(8) % 2

    def gradients(strength: float) -> tuple[Tensor, Tensor]:
        model = network(small("cells"), [DomainConfig(strength=strength, width=8)])
        F.cross_entropy(model(x)["domain"], target).backward()
        guess = next(model.auxiliary[0].parameters()).grad
        stem = next(model.encoder.parameters()).grad
        assert guess is not None
        assert stem is not None
        return guess, stem

    guess, stem = gradients(1.0)
    again, weaker = gradients(0.25)
    torch.testing.assert_close(again, guess)
    torch.testing.assert_close(weaker, stem / 4)
    model = network(small("cells"), [DomainConfig(width=8)])
    adversary, maps = model.auxiliary[0], model.encoder(x)
    assert isinstance(adversary, DomainHead)
    straight = adversary.guess(maps[-1].mean((2, 3, 4)))
    torch.testing.assert_close(straight, model(x)["domain"])
    F.cross_entropy(straight, target).backward()
    plain = next(model.encoder.parameters()).grad
    assert plain is not None
    torch.testing.assert_close(stem, -plain)


def test_the_adversary_learns_and_a_step_of_the_encoder_makes_it_guess_worse() -> None:
    x, labels = toy_series()
    modality = torch.arange(8) % 2
    x = x * torch.where(modality == 0, 1.0, -1.0).view(-1, 1, 1, 1, 1)
    model = network(small("cells"), [DomainConfig(width=8)])
    losses = [replace(labels_loss(), weight=0.0), CrossEntropyConfig(of="domain", target="modality")]
    targets = {"labels": labels, "modality": modality}
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(False)  # against an encoder that stands still
    assert fit(model, losses, x, targets, 0.3) < 0.3 < 0.693 / 2
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(True)
    before = F.cross_entropy(model(x)["domain"], modality)
    before.backward()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.1)
    assert F.cross_entropy(model(x)["domain"], modality) > before


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (CrossEntropyConfig(of="domain"), r"losses\[0\]: domain can only be compared with modality"),
        (
            CrossEntropyConfig(of="presence", target="vesels"),
            r"losses\[0\].target 'vesels': the task makes none; there is",
        ),
    ],
)
def test_a_loss_whose_target_is_not_there_is_refused(term: CrossEntropyConfig, said: str) -> None:
    recipe = Recipe(auxiliary=(DomainConfig(),), losses=(term,))
    with pytest.raises(WrongUse, match=said):
        make_model(recipe, TASK, build_encoder(TINY))


def test_there_must_be_something_to_guess() -> None:
    with pytest.raises(WrongUse, match="all series of this task are rsna; there is nothing to guess"):
        Network(build_encoder(TINY), small("cells"), [DomainConfig(of="source")], AneurysmTask())
    assert network(small("cells"), [DomainConfig(of="source")]).only_targets == {"domain": "source"}


def test_the_class_of_a_series_is_its_place_among_the_tasks_and_unknown_ones_are_ignored() -> None:
    findings = Findings(points_K3=torch.zeros(0, 3).numpy(), places_K=torch.zeros(0).numpy(), mask_XYZ=None,
                        labels_L=torch.zeros(0).numpy())  # fmt: skip
    sample = Sample(findings=findings, shape=(8, 8, 8), spacing=(1, 1, 1), modality="dark", source="elsewhere")
    targets = class_targets(sample, modalities=TASK.modalities, sources=TASK.sources)
    assert {name: one.item() for name, one in targets.items()} == {"modality": 1, "source": IGNORE}
    assert AneurysmTask.modalities == ("CTA", "MRA", "T2w", "T1post")
    assert groups_of([HU, "zscore"]).tolist() == [0, 1]


def said_elsewhere(cells: int, at: tuple[int, int, int]) -> dict[str, Tensor]:
    """What a decoder would say: the first place is one cell of its grid, the second all others; so are findings."""
    vessels = torch.full((1, 3, cells, cells, cells), -20.0)
    vessels[:, 2] = 20.0
    vessels[0, :, *at] = torch.tensor([-20.0, 20.0, -20.0])
    spheres = torch.full((1, cells, cells, cells), -20.0)
    spheres[0, *at] = 20.0
    return {"vessels": vessels, "spheres": spheres}


@pytest.mark.parametrize(("cells", "at"), [(3, (0, 1, 2)), (6, (0, 2, 4))])
@pytest.mark.parametrize(("findings", "label"), [("none", "left"), ("spheres", "left"), ("spheres", "any")])
def test_a_label_is_read_off_the_cells_under_its_mask_alone(
    cells: int, at: tuple[int, int, int], findings: str, label: str
) -> None:
    torch.manual_seed(0)
    config = MaskedConfig(territories="vessels", findings=findings, width=16)  # type: ignore[arg-type]
    head = MaskedHead(config, Maps(strides=(4,), channels=(8,)), TASK)
    map_ = torch.randn(1, 8, 3, 3, 3, requires_grad=True)
    head([map_], said_elsewhere(cells, at))["labels"][0, TASK.labels.index(label)].backward()
    assert map_.grad is not None
    felt = map_.grad.abs().sum((0, 1))
    assert felt[0, 1, 2] > 0.99 * felt.sum() > 0


def test_probabilities_of_a_finer_grid_are_averaged_and_those_of_a_coarser_one_interpolated() -> None:
    fine = torch.zeros(1, 1, 4, 4, 4)
    fine[..., :2, :2, 0] = 1.0
    assert on_grid(fine, (2, 2, 2))[0, 0, 0, 0, 0] == pytest.approx(0.5)
    assert on_grid(torch.full((1, 1, 2, 2, 2), 0.25), (4, 4, 4)).eq(0.25).all()
    assert on_grid(fine, (4, 4, 4)).min() > 0


class Decoder(nn.Module):
    """Segments the toy heads by one layer."""

    outputs = ("vessels",)
    cells: Mapping[str, int] = {}

    def __init__(self, config: Any, maps: Maps, task: Any) -> None:
        super().__init__()
        self.last = nn.Conv3d(maps.channels[0], task.places + 1, 1)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"vessels": self.last(maps[0])}


def test_what_an_auxiliary_head_segments_is_there_at_prediction_and_not_trained_by_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(AUXILIARY, "toy", (SimpleNamespace, Decoder))
    x, labels = toy_series()
    model = network(small("masked", territories="vessels"), [SimpleNamespace(kind="toy"), ModalityConfig()])
    half = best_constant(labels) / 2
    assert fit(model, [labels_loss()], x, {"labels": labels}, half) < half
    assert all(parameter.grad is None for parameter in model.auxiliary[0].parameters())
    model.eval()
    assert model(x).keys() == {"labels", "presence", "vessels"}
    wide = network(small("masked", territories="vessels"), [SimpleNamespace(kind="toy")])
    wide.auxiliary[0].last = nn.Conv3d(4, 7, 1)
    with pytest.raises(ValueError, match="7 classes, and nothing and 2 places were expected"):
        wide(x)


def test_dilated_convolutions_look_as_far_as_they_say() -> None:
    torch.manual_seed(0)
    x = torch.zeros(1, 4, 15, 3, 3)
    changed = x.clone()
    changed[0, :, 7, 1, 1] = torch.tensor([1.0, -1.0, 2.0, 0.0])

    def seen(*dilations: int) -> list[int]:
        neck = Pyramid((4,), 8, dilations)
        return ((neck([changed]) - neck([x])).abs().sum((0, 1, 3, 4)) > 1e-6).nonzero().flatten().tolist()

    assert seen() == [7]
    assert seen(2) == [5, 7, 9]
    assert seen(1, 4) == [2, 3, 4, 6, 7, 8, 10, 11, 12]


def test_heads_take_the_maps_that_they_are_told_and_refuse_what_they_cannot_do() -> None:
    model = network(GlobalConfig(stride=2, pooling="mean_max", dropout=0.0))
    assert isinstance(model.head, GlobalHead)
    assert model.head.linear.in_features == 2 * (8 + 8)
    with pytest.raises(WrongUse, match=r"head.stride 8: this encoder has maps at 1, 2, 4"):
        network(AttentionConfig(stride=8))
    with pytest.raises(WrongUse, match=r"head.width 30: must be a multiple of head.attention_heads 4"):
        AttentionConfig(width=30)
    with pytest.raises(WrongUse, match=r"head.dilations: 0"):
        CellsConfig(dilations=(1, 0))
    with pytest.raises(WrongUse, match="strength -1"):
        DomainConfig(strength=-1)


def test_each_label_of_an_attention_finds_a_place_of_its_own() -> None:
    assert positions((2, 3, 4), torch.zeros(())).unique(dim=0).shape[0] == 24


@pytest.mark.parametrize("frozen", [0, 2])
def test_activation_checkpointing_keeps_less_and_gives_the_same_gradients(frozen: int) -> None:
    x, labels = toy_series()

    def trained(checkpointing: bool) -> tuple[list[Tensor | None], int]:
        recipe = Recipe(
            head=CellsConfig(width=8),
            losses=(labels_loss(),),
            train=TrainConfig(activation_checkpointing=checkpointing),
        )
        torch.manual_seed(0)
        model = make_model(recipe, TASK, build_encoder(TINY))
        rates = Rates(stage=0, name="", head=1.0, encoder=(None,) * frozen + (1.0,) * (len(model.layers) - frozen))
        apply_rates(rates, model, torch.optim.SGD(parameter_groups(model, weight_decay=0.0)))
        kept: list[int] = []

        def keep(one: Tensor) -> Tensor:
            kept.append(one.nbytes)
            return one

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
            maps = model.encoder(x)
        F.binary_cross_entropy_with_logits(model.head(maps)["labels"], labels).backward()
        return [parameter.grad for parameter in model.parameters()], sum(kept)

    (plain, all_kept), (again, kept) = trained(False), trained(True)
    assert kept < 0.7 * all_kept
    assert any(one is not None for one in plain[:8]) == (frozen == 0)
    for one, other in zip(plain, again, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert torch.equal(one, other)
