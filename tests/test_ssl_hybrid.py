"""Hybrid pretraining: a second masking of each head, packed as the first, whose embedding shall be like the first's."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist

import headspark.train as module
from harmonize.errors import WrongUse
from headspark.config import from_plain
from headspark.decoder import DecoderConfig
from headspark.encoder import EncoderConfig, build_encoder
from headspark.hub.export import export_run
from headspark.hybrid import COVARIANCE_WEIGHT, EmbeddingHead, HybridConfig, pooled, vicreg
from headspark.masking import draw_mask, draw_second_mask
from headspark.packed import MaskGeometry, PackedBlocks
from headspark.pretraining.pictures import figure_losses
from headspark.recipe import Recipe
from headspark.run.checkpoint import load_newest
from headspark.run.folder import read_metrics
from headspark.spark import SparK, SparKConfig
from headspark.train import train

WIDTH = 6


def toy(**changes: dict[str, object]) -> Recipe:
    sections: dict[str, dict[str, object]] = {
        "data": {"patch": 16, "workers": 0, "val_share": 0.3},
        "encoder": {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]},
        "mask": {"block": 4, "ratio": 0.5},
        "decoder": {"stop_stride": 2, "width": 8},
        "optim": {"lr": 5e-3},
        "hybrid": {"weight": 0.2, "share": 0.25, "width": 16},
        "train": {
            "steps": 6, "batch": 2, "accumulate": 2, "threads": 1, "log_every": 1, "checkpoint_every": 2,
            "validate_every": 3, "val_samples": 2, "picture_every": 0, "trackers": [],
        },
    }  # fmt: skip
    return from_plain(Recipe, {name: sections.get(name, {}) | changes.get(name, {}) for name in {*sections, *changes}})


def model_of(backend: str = "packed") -> SparK:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(in_channels=2, features=(4, 8), blocks=(1, 1), strides=(1, 2)))
    decoder = DecoderConfig(stop_stride=2, width=8)
    config = SparKConfig(backend=backend)  # type: ignore[arg-type]
    return SparK(encoder, decoder, config, in_channels=2, hybrid=HybridConfig(weight=0.5, width=WIDTH)).double()


def two_masks(batch: int) -> tuple[MaskGeometry, MaskGeometry]:
    draws = torch.Generator().manual_seed(0)
    first = draw_mask(batch, (4, 4, 4), 0.7, draws)
    second = torch.stack([draw_second_mask(one, torch.ones_like(one), 0.25, draws) for one in first])
    return MaskGeometry(first), MaskGeometry(torch.cat([first, second]))


def filled(memory: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 2, WIDTH, dtype=torch.float64), torch.tensor(memory)


@pytest.mark.parametrize("ratio", [0.3, 0.75, 0.9])
def test_a_second_masking_shows_few_blocks_that_the_first_hides_those_of_the_head_first(ratio: float) -> None:
    draws = torch.Generator().manual_seed(0)
    head = torch.zeros(5, 5, 5, dtype=torch.bool)
    head[1:4, 1:4, 1:4] = True
    for _ in range(30):
        first = draw_mask(1, (5, 5, 5), ratio, draws)[0]
        second = draw_second_mask(first, head, 0.2, draws)
        wanted = max(round(0.2 * int(first.sum())), 1)
        assert int(second.sum()) == wanted
        assert not (first & second).any()
        assert int((second & head).sum()) == min(wanted, int((head & ~first).sum()))


def test_the_term_is_that_of_vicreg() -> None:
    x, y = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    memory, held = filled(0)
    loss, spread = vicreg(torch.stack([x, y], 1), memory, held)
    expected, deviations = ((x - y) ** 2).mean(), []
    for branch in (x, y):
        covariance = torch.cov(branch.T)
        deviation = (covariance.diagonal() + 1e-4).sqrt()
        expected = expected + torch.relu(1 - deviation).mean()
        expected = (
            expected + COVARIANCE_WEIGHT * (covariance.square().sum() - covariance.diagonal().square().sum()) / WIDTH
        )
        deviations.append(deviation.mean())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(spread, torch.stack(deviations).mean())


def test_heads_seen_before_count_in_the_statistics_and_leave_the_gradient_as_large() -> None:
    memory, held = filled(3)
    new = torch.randn(2, 2, WIDTH, dtype=torch.float64)
    loss, _ = vicreg(new, memory, held)
    together, _ = vicreg(torch.cat([new, memory[:3]]), memory, torch.tensor(0))
    invariance = [((one[:, 0] - one[:, 1]) ** 2).mean() for one in (new, torch.cat([new, memory[:3]]))]
    torch.testing.assert_close(loss - invariance[0], together - invariance[1])

    def statistics(embedded: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        return vicreg(embedded, memory, count)[0] - ((embedded[:, 0] - embedded[:, 1]) ** 2).mean()

    alone = new.clone().requires_grad_()
    statistics(alone, held).backward()
    everyone = torch.cat([new, memory[:3]]).requires_grad_()
    statistics(everyone, torch.tensor(0)).backward()
    assert alone.grad is not None
    assert everyone.grad is not None
    torch.testing.assert_close(alone.grad, everyone.grad[:2] * 5 / 2)


def test_one_head_alone_has_no_statistics_and_collapsed_ones_have_a_large_loss() -> None:
    memory, held = filled(0)
    one = torch.randn(1, 2, WIDTH, dtype=torch.float64, requires_grad=True)
    loss, _ = vicreg(one, memory, held)
    torch.testing.assert_close(loss, ((one[:, 0] - one[:, 1]) ** 2).mean())
    loss.backward()
    assert one.grad is not None
    assert one.grad.isfinite().all()
    same = torch.ones(4, 2, WIDTH, dtype=torch.float64)
    loss, spread = vicreg(same, memory, held)
    assert loss > 1.9
    assert spread < 0.02


def test_pooling_is_the_mean_of_visible_cells() -> None:
    geometry = MaskGeometry(torch.tensor([[True, False, True], [False, False, True]]).view(2, 3, 1, 1))
    x = torch.randn(2, 4, 6, 2, 2)
    found = pooled(PackedBlocks.pack(x, geometry))
    torch.testing.assert_close(found[0], torch.cat([x[0, :, :2], x[0, :, 4:]], 1).mean((1, 2, 3)))
    torch.testing.assert_close(found[1], x[1, :, 4:].mean((1, 2, 3)))


def test_both_backends_give_the_same_terms_and_gradients() -> None:
    x, (first, twice) = torch.randn(3, 2, 16, 16, 16, dtype=torch.float64), two_masks(3)
    found = []
    for backend in ("packed", "emulated"):
        model = model_of(backend)
        out = model(x, first, None, None, None, twice)
        out.loss.backward()
        gradients = {name: one.grad for name, one in model.named_parameters()}
        assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
        found.append((out, torch.cat([one.flatten() for one in gradients.values() if one is not None])))
    (packed, gradient), (emulated, other) = found
    torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(packed.loss, packed.error + 0.5 * packed.terms["agreement"].value)
    torch.testing.assert_close(packed.loss, emulated.loss)


def test_what_is_not_finite_is_not_remembered_and_evaluation_remembers_nothing() -> None:
    head = EmbeddingHead(3, HybridConfig(weight=1.0, width=WIDTH))
    geometry = MaskGeometry(torch.ones(2, 1, 1, 1, dtype=torch.bool))
    maps = [PackedBlocks.pack(torch.randn(2, 3, 2, 2, 2), geometry) for _ in range(2)]
    voxels = torch.tensor(10)
    head(*maps, voxels)
    assert int(head.held) == 2
    kept = head.memory_M2K.clone()
    head(maps[0], PackedBlocks.pack(torch.full((2, 3, 2, 2, 2), torch.nan), geometry), voxels)
    assert int(head.held) == 2
    assert torch.equal(head.memory_M2K, kept)
    head.eval()(*maps, voxels)
    assert int(head.held) == 2


@pytest.mark.parametrize("scored_heads", [4, 2])
def test_two_ranks_have_the_gradient_of_one_with_all_heads(tmp_path: Path, scored_heads: int) -> None:
    """Also where one of them scores no voxel."""
    ranks = multiprocessing.get_context("fork")
    members = [ranks.Process(target=_gradient_of_rank, args=(rank, tmp_path, scored_heads)) for rank in range(2)]
    for member in members:
        member.start()
    for member in members:
        member.join(60)
        assert member.exitcode == 0
    x, (first, twice) = _four_heads()
    model = model_of()
    out = model(x, first, _scored(scored_heads), None, None, twice)
    out.summed_loss.backward()
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, parts[0][name] + parts[1][name], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sum(part["loss"] for part in parts), (out.loss * out.scored_voxels).detach())
    for part in parts:
        torch.testing.assert_close(part["agreement"], out.terms["agreement"].value.detach())
        torch.testing.assert_close(part["memory"], model.embed.memory_M2K)  # type: ignore[union-attr]


def _four_heads() -> tuple[torch.Tensor, tuple[MaskGeometry, MaskGeometry]]:
    return torch.randn(4, 2, 16, 16, 16, generator=torch.Generator().manual_seed(1)).double(), two_masks(4)


def _scored(heads: int) -> torch.Tensor:
    return (torch.arange(4) < heads).view(4, 1, 1, 1, 1).expand(4, 1, 16, 16, 16)


def _gradient_of_rank(rank: int, folder: Path, scored_heads: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    x, masks = _four_heads()
    mine = slice(2 * rank, 2 * rank + 2)
    first, second = masks[0].mask_Bdhw[mine], masks[1].mask_Bdhw[4:][mine]
    twice = MaskGeometry(torch.cat([first, second]))
    model = model_of()
    out = model(x[mine], MaskGeometry(first), _scored(scored_heads)[mine], None, None, twice)
    out.summed_loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    found |= {"loss": (out.loss * out.scored_voxels).detach()}
    found |= {"agreement": out.terms["agreement"].value.detach(), "memory": model.embed.memory_M2K}  # type: ignore[union-attr]
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_a_run_brings_maskings_together_keeps_heads_apart_and_resumes_bit_for_bit(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    recipe = toy(train={"steps": 60, "log_every": 5, "checkpoint_every": 20, "validate_every": 0, "ema": 0.9})
    assert train(recipe, corpus=tiny_corpus, out=tmp_path / "whole")
    lines = [line for line in read_metrics(tmp_path / "whole") if "agreement" in line]
    agreement, spread = ([line[name] for line in lines] for name in ("agreement", "embedding_std"))
    assert np.mean(agreement[-3:]) < 0.8 * agreement[0]
    assert np.mean(spread[-3:]) > 0.5
    assert len(figure_losses(read_metrics(tmp_path / "whole")).axes) == 3
    with pytest.MonkeyPatch.context() as patch:
        record = module.record

        def record_and_stop(state, log, result) -> None:  # type: ignore[no-untyped-def]
            record(state, log, result)
            if state.step == 47:
                signal.raise_signal(signal.SIGTERM)

        patch.setattr(module, "record", record_and_stop)
        assert train(recipe, corpus=tiny_corpus, out=tmp_path / "stopped") is False
    assert train(recipe, corpus=tiny_corpus, out=tmp_path / "stopped")
    whole, stopped = (load_newest(tmp_path / name / "checkpoints", say=print) for name in ("whole", "stopped"))
    assert whole is not None
    assert stopped is not None
    assert int(whole.model["embed.held"]) == 240
    assert [name for name, value in whole.model.items() if not torch.equal(value, stopped.model[name])] == []
    assert export_run(tmp_path / "whole").step == 60


def test_without_a_weight_nothing_is_drawn_or_built(tiny_corpus: Path, tmp_path: Path) -> None:
    for name, hybrid in (("none", {}), ("zero", {"share": 0.5, "weight": 0.0})):
        sections = {"hybrid": {"weight": 0.0, **hybrid}}
        assert train(toy(**sections), corpus=tiny_corpus, out=tmp_path / name)
    none, zero = (load_newest(tmp_path / name / "checkpoints", say=print) for name in ("none", "zero"))
    assert none is not None
    assert zero is not None
    assert not [name for name in none.model if name.startswith("embed")]
    assert all(torch.equal(value, zero.model[name]) for name, value in none.model.items())
    assert not any("agreement" in line for line in read_metrics(tmp_path / "none"))


def test_bf16_and_a_step_of_one_head_at_a_time_go_through(tiny_corpus: Path, tmp_path: Path) -> None:
    hybrid = model_of().float()
    x, masks = torch.randn(1, 2, 16, 16, 16), two_masks(1)
    with torch.autocast("cpu", torch.bfloat16):
        out = hybrid(x, masks[0], None, None, None, masks[1])
    out.loss.backward()
    assert all(one.grad is None or one.grad.isfinite().all() for one in hybrid.parameters())
    assert train(toy(train={"batch": 1, "accumulate": 2, "steps": 3}), corpus=tiny_corpus, out=tmp_path / "run")
    assert all(np.isfinite(line["agreement"]) for line in read_metrics(tmp_path / "run") if "agreement" in line)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"share": 2.0}, r"hybrid.share 2.0: must lie above 0, and be 1 at most; the nearest is 1"),
        ({"share": 0.0}, r"the nearest is 0.05"),
        ({"weight": -0.1}, r"hybrid.weight -0.1: must be 0 or more, and finite"),
        ({"width": 1}, r"hybrid.width 1: must lie in 2 to 8192; the nearest is 2"),
        ({"shares": 0.2}, r"did you mean hybrid.share"),
        ({"weight": 1.0, "share": 0.01}, r"one block is all that is seen .* the nearest that shows two is 0.03"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(section: dict[str, object], said: str) -> None:
    with pytest.raises(WrongUse, match=said):
        from_plain(Recipe, {"hybrid": section})
