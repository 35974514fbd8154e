"""Network input: CT windows, MRI in every channel."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from harmonize.errors import UserError
from harmonize.phantom.acquisition import Grid, make_grid, scan_head
from harmonize.phantom.anatomy import Head, make_head
from harmonize.phantom.contrast import CONTRASTS
from harmonize.pipeline import harmonize_scan
from harmonize.scan import Scan
from harmonize.settings import Settings
from harmonize.voxels import nyul
from headspark.channels import MriScaling, to_network_input


def test_ct_becomes_three_windows_from_minus_one_to_one() -> None:
    x = to_network_input(torch.tensor([[-1024.0, 0.0], [40.0, 80.0]]), "HU")
    assert x.shape == (3, 2, 2)
    assert x[0].tolist() == [[-1.0, -1.0], [0.0, 1.0]]  # brain: width 80, level 40
    assert x[1, 1, 1] == 0.0  # blood: width 200, level 80
    assert x[2, 1, 0] == pytest.approx((40 - 600) / 1400)  # bone: width 2800, level 600


def test_integers_as_stored_are_taken() -> None:
    stored = torch.tensor([-1000, 40, 3000], dtype=torch.int16)
    assert torch.equal(to_network_input(stored, "HU"), to_network_input(stored.float(), "HU"))


def test_mri_stands_in_every_channel_and_is_as_it_is_where_tissue_lies() -> None:
    values = torch.tensor([-4.0, -2.0, 0.0, 0.3, 4.0])
    x = to_network_input(values, "zscore")
    assert all(torch.equal(channel, values) for channel in x)


def test_bright_mri_keeps_its_order_and_its_shades_and_metal_does_not_reach_far() -> None:
    values = torch.linspace(4.0, 200.0, 2000)
    x = to_network_input(values, "zscore", ["blood"])[0]
    assert (x.diff() > 0).all()
    assert float(x[1] - x[0]) == pytest.approx(float(values[1] - values[0]), rel=0.02)  # no edge at the knee
    flow = to_network_input(torch.tensor([7.0, 9.3, 12.0]), "zscore", ["blood"])[0]
    assert flow.tolist() == pytest.approx([4 * (1 + math.log(value / 4)) for value in (7.0, 9.3, 12.0)])
    assert x[-1] < 21
    assert torch.equal(to_network_input(-values, "zscore", ["blood"])[0], -x)


@pytest.mark.parametrize(("scaling", "seen"), [("clip", [-6.0, 0.5, 6.0]), ("linear", [-9.0, 0.5, 40.0])])
def test_other_scalings_of_mri(scaling: MriScaling, seen: list[float]) -> None:
    x = to_network_input(torch.tensor([-9.0, 0.5, 40.0]), "zscore", ["brain", "bone"], scaling)
    assert x.tolist() == [seen] * 2


def test_an_unknown_scaling_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="mri_scaling sqrt: use one of soft, clip, linear"):
        to_network_input(torch.zeros(2), "zscore", mri_scaling="sqrt")  # type: ignore[arg-type]


def test_the_vessel_window_tells_contrast_from_marrow() -> None:
    x = to_network_input(torch.tensor([-100.0, 250.0, 350.0, 450.0, 600.0]), "HU", ["vessel"])[0]
    assert x[[0, 1, 4]].tolist() == [-1.0, 0.0, 1.0]
    assert float(x[3] - x[2]) == pytest.approx(200 / 700)  # a tenth of the range would be 0.2
    old = to_network_input(torch.tensor([350.0, 450.0]), "HU")
    assert (old[:, 1] - old[:, 0]).max() < 0.1


def test_any_window_is_taken_by_width_and_level() -> None:
    x = to_network_input(torch.tensor([-150.0, 50.0, 250.0]), "HU", [{"name": "sinus", "width": 400, "level": 50}])
    assert x.tolist() == [[-1.0, 0.0, 1.0]]


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


@pytest.fixture(scope="module")
def mra() -> tuple[Head, Scan]:
    """A time-of-flight angiogram of the circle of Willis with three sacs."""
    places = ("Anterior Communicating Artery", "Left Middle Cerebral Artery", "Basilar Tip")
    head = make_head("sacs", resolution_mm=2.0, locations=places)
    centre = np.mean([aneurysm.centre_mm for aneurysm in head.vessels.aneurysms], axis=0)
    grid = make_grid(extent_mm=(120, 120, 60), spacing_mm=(1.0, 1.0, 1.0), centre_mm=centre)
    voxels = scan_head(head, grid, CONTRASTS["MRA"], np.random.default_rng(0))
    return head, Scan(voxels_XYZ=voxels, affine=grid.affine, modality="MRA")


@pytest.mark.parametrize("norm", ["zscore", "nyul", "fcm"])
def test_the_flow_in_a_sac_lies_on_no_bound(norm: str, mra: tuple[Head, Scan], tmp_path: Path) -> None:
    head, scan = mra
    if norm == "nyul":
        voxels = np.asarray(scan.voxels_XYZ)
        histogram = nyul.fit([nyul.landmarks(voxels[voxels > voxels.mean()])])
        nyul.save(nyul.histogram_path(tmp_path, "MRA"), histogram)
    found = harmonize_scan(scan, Settings(mri_norm=norm, nyul_folder=tmp_path if norm == "nyul" else None))
    values = torch.from_numpy(found.volume.values())
    grid = Grid(shape=values.shape, affine=found.volume.affine)
    at_XYZ3 = np.moveaxis(np.indices(values.shape), 0, -1) * grid.spacing + grid.affine[:3, 3]
    inside_XYZ = np.zeros(values.shape, dtype=bool)
    for aneurysm in head.vessels.aneurysms:
        inside_XYZ |= np.linalg.norm(at_XYZ3 - aneurysm.centre_mm, axis=-1) <= aneurysm.diameter_mm / 2
    assert inside_XYZ.sum() > 50

    def on_a_bound(scaling: MriScaling) -> float:
        x = to_network_input(values, found.unit, ["brain"], scaling)[0]
        sac = x[torch.from_numpy(inside_XYZ)]
        return float(((sac == x.max()) | (sac == x.min())).float().mean())

    assert on_a_bound("soft") <= 0.01
    if norm != "fcm":  # which leaves flow below 6
        assert on_a_bound("clip") > 0.5
