"""The kernels written in Triton, run on a CPU by its interpreter, against plain PyTorch.

``test_ssl_kernels.py`` runs these tests in a process of their own: the interpreter must be asked for before Triton is
imported. By hand: ``TRITON_INTERPRET=1 python -m pytest tests/kernels_interpreted.py``.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from headspark.decoder.norm_act import norm_act, norm_act_of_blocks
from headspark.encoder import EncoderConfig, build_encoder
from headspark.packed import MaskGeometry, PackedBlocks, encode_visible, kernels
from headspark.packed.kernels import Norm, Samples, tiles
from headspark.packed.layout import Triple
from headspark.packed.normed import Normed
from headspark.packed.windows import gather_columns, gather_windows, sum_columns

EPS, SLOPE = 1e-5, 0.1
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Relative, of the whole of a tensor."""


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few rows already take several tiles and parts."""
    monkeypatch.setattr(tiles, "TILE", 256)
    monkeypatch.setattr(tiles, "AT_ONCE", 0)


def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "take", lambda map_: False)


def error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-9))


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def geometry_of(*counts: int) -> MaskGeometry:
    """A mask of 2 x 3 x 2 blocks a sample, of which so many are visible."""
    mask = torch.zeros(len(counts), 12, dtype=torch.bool)
    for sample, count in enumerate(counts):
        mask[sample, torch.randperm(12, generator=torch.Generator().manual_seed(sample))[:count]] = True
    return MaskGeometry(mask.view(-1, 2, 3, 2))


def reference(
    rows: Tensor,
    lengths: list[int],
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    head: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Norm, sum, activation and head in PyTorch's own layers."""
    normed = [
        F.instance_norm(part.t()[None], weight=weight, bias=bias, eps=EPS)[0].t()
        for part in rows.split(lengths)
        if len(part)
    ]
    y = torch.cat(normed)
    y = F.leaky_relu(y if residual is None else y + residual, SLOPE)
    return y if head is None else F.linear(y, *head)


@pytest.mark.parametrize(
    ("dtype", "channels", "extra"),
    [
        (torch.float32, 70, "none"),
        (torch.float32, 3, "residual"),
        (torch.float32, 3, "head"),
        (torch.bfloat16, 3, "no weight"),
        (torch.bfloat16, 70, "residual"),
        (torch.bfloat16, 3, "head"),
    ],
)
@pytest.mark.usefixtures("small_tiles")
def test_norm_and_activation_and_their_gradients(dtype: torch.dtype, channels: int, extra: str) -> None:
    counts, voxels = [1, 0, 3], 11
    lengths = [count * voxels for count in counts]
    first = torch.tensor([0, 1, 1, 4], dtype=torch.int32)
    samples = Samples(first=first, voxels=voxels, longest=max(lengths))
    rows = (numbers(sum(lengths), channels) * 2 + 3).to(dtype)
    weight, bias = (None, None) if extra == "no weight" else (numbers(channels, seed=1) + 1, numbers(channels, seed=2))
    residual = numbers(*rows.shape, seed=3, dtype=dtype) if extra == "residual" else None
    head = (numbers(5, channels, seed=4, dtype=dtype), numbers(5, seed=5, dtype=dtype)) if extra == "head" else None

    norm = Norm(*kernels.moments(rows, samples, EPS), weight, bias, SLOPE)
    out = kernels.apply(rows, samples, norm, residual=residual, head=head)
    grad = numbers(*out.shape, seed=6, dtype=dtype)
    active = out if residual is not None else None
    found = kernels.gradients(grad, rows, samples, norm, active=active, head=head and head[0])

    wide = [None if one is None else one.double().requires_grad_() for one in (rows, weight, bias, residual)]
    wide_head = tuple(one.double().requires_grad_() for one in head) if head else None
    expected = reference(wide[0], lengths, wide[1], wide[2], wide[3], wide_head)  # type: ignore[arg-type]
    expected.backward(grad.double())
    assert out.dtype == found.rows.dtype == dtype
    assert error(out, expected) < TOLERANCE[dtype]
    for actual, one in zip((found.rows, found.weight, found.bias, found.residual), wide, strict=True):
        if one is not None:
            assert error(actual, one.grad) < TOLERANCE[dtype]  # type: ignore[arg-type]
    if wide_head is not None:
        assert error(found.head, wide_head[0].grad) < TOLERANCE[dtype]  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_tiles")
def test_deviations_far_from_zero_are_not_lost() -> None:
    rows = numbers(200, 4) * 0.1 + 1000
    samples = Samples(first=torch.tensor([0, 1], dtype=torch.int32), voxels=200, longest=200)
    mean, scale = kernels.moments(rows, samples, 0.0)
    assert mean[0] == pytest.approx(rows.double().mean(0).float(), rel=1e-6)
    assert 1 / scale[0] == pytest.approx(rows.double().std(0, correction=0).float(), rel=1e-3)


WINDOWS: list[tuple[Triple, Triple, Triple]] = [
    ((2, 2, 2), (1, 1, 1), (1, 1, 1)),
    ((4, 2, 1), (1, 0, 1), (0, 1, 1)),
    ((1, 1, 1), (2, 1, 0), (2, 1, 0)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("block", "low", "high"), WINDOWS)
def test_windows_hold_what_the_neighbours_lend(
    block: Triple, low: Triple, high: Triple, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = geometry_of(5, 0, 4)
    data = numbers(geometry.blocks, *block, 5, dtype=dtype)
    samples = geometry.samples(block)
    norm = Norm(*kernels.moments(data.view(-1, 5), samples, EPS), numbers(5, seed=1), numbers(5, seed=2), SLOPE)
    normed = Normed(data, samples, norm, geometry.sample_of_block())

    gathered = gather_windows(data, geometry, low, high)
    on_the_way = gather_windows(data, geometry, low, high, normed=normed)
    made = normed.made()
    plainly(monkeypatch)
    assert torch.equal(gathered, gather_windows(data, geometry, low, high))
    assert torch.equal(on_the_way, gather_windows(made, geometry, low, high))


def test_columns_and_their_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    block: Triple = (1, 2, 1)
    geometry, kernel, low = geometry_of(2, 3), (3, 3, 2), (1, 1, 0)
    data = numbers(geometry.blocks, *block, 3)
    columns = gather_columns(data, geometry, kernel, low)
    products = numbers(len(columns) * 18, 3, seed=1)
    summed = sum_columns(products, geometry, block, kernel, low)
    plainly(monkeypatch)
    assert torch.equal(columns, gather_columns(data, geometry, kernel, low))
    assert torch.allclose(summed, sum_columns(products, geometry, block, kernel, low), atol=1e-5)


def encoded(*, checkpointing: bool = False) -> dict[str, Tensor]:
    """Maps of a small encoder and the gradients of its weights, by name."""
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(features=(3, 6), blocks=(1, 1), strides=(1, 2)))
    encoder.set_grad_checkpointing(checkpointing)
    for module in encoder.modules():
        if isinstance(module, torch.nn.InstanceNorm3d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    mask = torch.tensor([[True, False], [True, True]]).view(2, 1, 1, 2)
    maps = encode_visible(encoder, numbers(2, 3, 4, 4, 8), MaskGeometry(mask))
    sum((map_.data.square().sum() for map_ in maps), torch.zeros(())).backward()
    gradients = {name: one.grad for name, one in encoder.named_parameters() if not name.endswith("conv.bias")}
    return {str(scale): map_.data for scale, map_ in enumerate(maps)} | gradients  # type: ignore[operator]


def test_an_encoder_gives_the_same_with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    with_kernels, checkpointed = encoded(), encoded(checkpointing=True)
    plainly(monkeypatch)
    expected = encoded()
    for name, one in with_kernels.items():
        assert error(one, expected[name]) < 1e-4, name
        assert torch.equal(checkpointed[name], one), name


def test_a_norm_is_of_what_was_there_when_it_was_asked_for() -> None:
    x = PackedBlocks(numbers(4, 2, 2, 2, 3), geometry_of(2, 2))
    before = x.data.clone()
    normed = F.instance_norm(x)  # type: ignore[arg-type]
    twice = F.leaky_relu(normed, 0.5)
    x += 7.0
    expected = torch.cat([reference(part.view(-1, 3), [16], None, None, None, None) for part in before.split(2)])
    assert torch.equal(x.data, before + 7)
    plain = torch.where(normed.data > 0, normed.data, normed.data * SLOPE)
    assert error(plain.view(-1, 3), expected) < 1e-5
    assert error(twice.data, torch.where(normed.data > 0, normed.data, normed.data * 0.5)) < 1e-5  # type: ignore[union-attr]


@pytest.mark.parametrize("blocks", [False, True])
def test_norm_act_of_the_decoder(blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = geometry_of(1, 2)
    given = [numbers(3 if blocks else 2, 2, 4, 3, 6), numbers(6, seed=1) + 1, numbers(6, seed=2), numbers(2, 6, seed=3)]

    def step() -> list[Tensor]:
        x, weight, bias, head = (one.clone().requires_grad_() for one in given)
        function = partial(norm_act_of_blocks, geometry=geometry) if blocks else norm_act
        out = function(x * 1, weight=weight, bias=bias, head=(head, None), eps=EPS, slope=SLOPE)
        out.backward(numbers(*out.shape, seed=4))
        return [out, *(one.grad for one in (x, weight, bias, head))]  # type: ignore[list-item]

    with_kernels = step()
    plainly(monkeypatch)
    for actual, expected in zip(with_kernels, step(), strict=True):
        assert error(actual, expected) < 1e-5
