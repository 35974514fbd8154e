"""A pretrained encoder for other CT windows: MRI is seen as before, CT through what was kept."""

from __future__ import annotations

import pytest
import torch

from headspark.channels import CtWindow, as_window
from headspark.encoder import EncoderConfig, MaskableEncoder, build_encoder
from headspark.encoder.stem import changes, channel_sources, spread, stem_name, with_windows

SHAPES = [
    EncoderConfig(features=(4, 8), blocks=(1, 1), strides=(1, 2)),
    EncoderConfig(kind="segresnet", features=(8, 16), blocks=(1, 1), strides=(1, 2)),
    EncoderConfig(kind="mednext", features=(4, 8), blocks=(1, 1), strides=(1, 2)),
]
OLD = ["brain", "blood", "bone"]
CHANGES = [
    [*OLD, "vessel"], ["vessel", "bone", "brain", "blood"], ["brain", "blood", "vessel"], ["blood"],
    ["bone", "brain", "blood"], ["vessel"], ["vessel", "vessel", "brain"],
]  # fmt: skip


def windows(names: list[str]) -> list[CtWindow]:
    return [as_window(name) for name in names]


def made(config: EncoderConfig) -> MaskableEncoder:
    torch.manual_seed(0)
    encoder = build_encoder(config).eval()
    encoder.preprocessing = {"ct_windows": OLD, "spacing_mm": [1.0] * 3}
    return encoder


@pytest.mark.parametrize("config", SHAPES, ids=lambda config: config.kind)
@pytest.mark.parametrize("names", CHANGES, ids="-".join)
def test_an_mri_gives_what_it_gave(config: EncoderConfig, names: list[str]) -> None:
    encoder = made(config)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    adapted = with_windows(encoder, windows(OLD), windows(names))
    assert adapted.config.in_channels == len(names)
    assert adapted.preprocessing == {"ct_windows": names, "spacing_mm": [1.0] * 3}
    image_1DHW = torch.randn(1, 16, 16, 16)
    with torch.no_grad():
        maps = encoder(image_1DHW.expand(1, len(OLD), -1, -1, -1))
        for one, other in zip(adapted(image_1DHW.expand(1, len(names), -1, -1, -1)), maps, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("config", SHAPES, ids=lambda config: config.kind)
def test_the_same_windows_leave_the_encoder_alone(config: EncoderConfig) -> None:
    encoder = made(config)
    assert with_windows(encoder, windows(OLD), windows(OLD)) is encoder
    assert changes(windows(OLD), windows(OLD)) is None


@pytest.mark.parametrize("config", SHAPES, ids=lambda config: config.kind)
def test_kept_windows_have_the_share_that_they_had(config: EncoderConfig) -> None:
    encoder = made(config)
    adapted = with_windows(encoder, windows(OLD), windows(["vessel", "bone", "brain", "blood"]))
    name = stem_name(config)
    old, new = encoder.state_dict()[name], adapted.state_dict()[name]
    torch.testing.assert_close(new[:, 1:], old[:, [2, 0, 1]] * 3 / 4)
    torch.testing.assert_close(new[:, 0], old.mean(1) * 3 / 4)


def test_a_window_in_the_place_of_another_takes_its_weights() -> None:
    weight = torch.randn(4, 3, 3, 3, 3)
    torch.testing.assert_close(spread(weight, [0, 1, None]), weight)
    kept = weight[:, 0] * 3 / 2
    torch.testing.assert_close(spread(weight, [None, 0]), torch.stack([weight.sum(1) - kept, kept], dim=1))
    assert torch.equal(spread(weight, [2, 0, 1]), weight[:, [2, 0, 1]])


def test_windows_are_the_same_by_what_they_cut_and_not_by_their_name() -> None:
    mine = [as_window({"name": "mine", "width": 80, "level": 40}), as_window({"name": "bony", "width": 90, "level": 6})]
    assert channel_sources(windows(OLD), mine) == [0, None]
    assert channel_sources(windows(["bone", "bone"]), windows(["bone", "bone", "bone"])) == [0, 1, None]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([*OLD, "vessel"], "vessel is new and begins with the mean of the others"),
        (["brain", "blood", "vessel"], "vessel is new and takes the place of bone"),
        (["blood"], "brain, bone is left out, what it had is spread over the others"),
        (["bone", "brain", "blood"], "in another order"),
    ],
)
def test_what_is_done_is_said(names: list[str], said: str) -> None:
    assert changes(windows(OLD), windows(names)) == said
