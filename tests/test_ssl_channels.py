"""Network input: CT windows, MRI in every channel."""

from __future__ import annotations

import pytest
import torch

from harmonize.errors import UserError
from headspark.channels import to_network_input


def test_ct_becomes_three_windows_from_minus_one_to_one() -> None:
    x = to_network_input(torch.tensor([[-1024.0, 0.0], [40.0, 80.0]]), "HU")
    assert x.shape == (3, 2, 2)
    assert x[0].tolist() == [[-1.0, -1.0], [0.0, 1.0]]  # brain: width 80, level 40
    assert x[1, 1, 1] == 0.0  # blood: width 200, level 80
    assert x[2, 1, 0] == pytest.approx((40 - 600) / 1400)  # bone: width 2800, level 600


def test_integers_as_stored_are_taken() -> None:
    stored = torch.tensor([-1000, 40, 3000], dtype=torch.int16)
    assert torch.equal(to_network_input(stored, "HU"), to_network_input(stored.float(), "HU"))


def test_mri_stands_in_every_channel_and_is_clipped() -> None:
    x = to_network_input(torch.tensor([-2.0, 0.5, 40.0]), "zscore")
    assert x.tolist() == [[-2.0, 0.5, 6.0]] * 3


def test_other_windows_give_other_channels_for_both_modalities() -> None:
    for unit in ("HU", "nyul"):
        assert to_network_input(torch.zeros(4, 4, 4), unit, ["blood"]).shape == (1, 4, 4, 4)


def test_baked_windows_give_what_windows_cut_now_give() -> None:
    hu = torch.linspace(-1000, 2000, 50)
    cut = to_network_input(hu, "HU")
    assert torch.allclose(to_network_input(((cut + 1) / 2).movedim(0, -1), "window"), cut, atol=1e-6)


def test_baked_windows_that_are_not_those_asked_for_are_refused() -> None:
    with pytest.raises(UserError, match="--bake-windows"):
        to_network_input(torch.zeros(2, 3), "window", ["brain"])


def test_intensities_without_a_scale_are_refused() -> None:
    with pytest.raises(UserError, match="--mri-norm"):
        to_network_input(torch.zeros(2), "arbitrary")
