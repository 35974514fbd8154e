"""Views of pictures: what they show, that a network of timm learns from each, and that a mirror image is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from finetune.augment import AugmentConfig, draw_pose, draw_variation, vary_pictures
from finetune.inference import look_at
from finetune.losses import TotalLoss
from finetune.losses.labels import AsymmetricConfig, BinaryConfig
from finetune.models.assemble import Network
from finetune.models.heads.cells import CellsConfig
from finetune.models.heads.global_pool import GlobalConfig
from finetune.models.heads.mil import MilConfig, product_logit
from finetune.models.pictures import PictureEncoder, TimmConfig
from finetune.recipe import Recipe
from finetune.regions import RegionDecoder
from finetune.samples import DataConfig
from finetune.series import Findings, Pose, Region
from finetune.tasks import KNOWN
from finetune.tasks.aneurysm import AneurysmTask
from finetune.views import View, make_view
from finetune.views.bone import bone_of, dilated
from finetune.views.dual_stream import DualStreamConfig, DualStreamView
from finetune.views.mip import MipConfig, MipView
from finetune.views.pictures import PicturesView
from finetune.views.posing import pose_slabs, pose_values
from finetune.views.stack import StackConfig
from finetune.views.top_slices import TopSlicesConfig, TopSlicesView
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from harmonize.scan import HU
from harmonize.voxels.vesselness import laplacian_of_gaussian
from headspark.channels import CtWindow

BACKBONE = "test_efficientnet_gn"
EDGE, SIZE, MOST_STEPS = 24, 32, 60
MIRROR = (1, 0, 2)
SIDES = [(1, 0), (0, 1), (1, 1), (0, 0), (1, 0), (0, 1), (1, 1), (0, 0)]
LEFT, RIGHT = 5.0, 18.0
VESSEL = (CtWindow("vessel", 700.0, 250.0),)
MIRRORED = Pose(linear=np.diag([-1.0, 1.0, 1.0]))


class SidesTask(AneurysmTask):
    """Is there a sac on the left, on the right, anywhere?"""

    labels: tuple[str, ...] = ("left", "right", "any")
    mirror: tuple[int, ...] | None = MIRROR
    places: int = 2
    any_label: int | None = 2
    label_weights: tuple[float, ...] = (1.0, 1.0, 2.0)
    mask_values: tuple[int, ...] = (1, 2)


TASK = SidesTask()
CONFIGS: dict[str, Any] = {
    "mip": MipConfig(size=SIZE),
    "dual_stream": DualStreamConfig(size=SIZE, hidden=0.5),
    "stack": StackConfig(size=SIZE, slices=8),
    "top_slices": TopSlicesConfig(size=SIZE, slices=6),
}


def region_of(hu_XYZ: Tensor, *, points: Any = (), places: Any = (), labels: Any = (), unit: str = HU) -> Region:
    return Region(
        stored_XYZ=hu_XYZ.round().to(torch.int16),
        mask_XYZ=None,
        slope=1.0,
        inter=0.0,
        spacing=(1.0, 1.0, 1.0),
        fill=-1000.0,
        unit=unit,
        start=(0, 0, 0),
        findings=Findings(
            points_K3=np.array(points, dtype=np.float64).reshape(-1, 3),
            places_K=np.array(places, dtype=np.int64),
            mask_XYZ=None,
            labels_L=np.array(labels, dtype=np.float64),
        ),
    )


def toy_regions() -> list[Region]:
    """Noise of soft tissue with an enhanced sac left or right or both or none."""
    generator, regions = torch.Generator().manual_seed(0), []
    for sides in SIDES:
        hu = 40 + 20 * torch.randn(EDGE, EDGE, EDGE, generator=generator)
        points, places = [], []
        for place, (sac, at) in enumerate(zip(sides, (LEFT, RIGHT), strict=True)):
            y, z = torch.randint(5, EDGE - 5, (2,), generator=generator).tolist()
            if sac:
                hu[int(at) - 2 : int(at) + 3, y - 2 : y + 3, z - 2 : z + 3] = 400
                points.append((at, y, z))
                places.append(place)
        labels = (*sides, max(sides))
        regions.append(region_of(hu, points=points, places=places, labels=labels))
    return regions


def view_of(kind: str, *, windows: Any = VESSEL, patch: int = EDGE, **keys: Any) -> PicturesView:
    data = DataConfig(patch=(patch,) * 3, ct_windows=tuple(windows)).completed(tuple(windows), "soft")
    view = make_view(replace(CONFIGS[kind], **keys), data, TASK)
    assert isinstance(view, PicturesView)
    return view


def network(view: View, head: Any, **keys: Any) -> Network:
    torch.manual_seed(0)
    streams, channels = CONFIGS_STREAMS[type(view).__name__], view.input_shape[1]
    config = TimmConfig(backbone=BACKBONE, in_channels=channels, streams=streams, **keys)
    return Network(PictureEncoder(config), head, (), TASK)


CONFIGS_STREAMS = {"MipView": 1, "DualStreamView": 2, "StackView": 1, "TopSlicesView": 1}


def batch_of(view: View, regions: list[Region], step: int) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """What training shows of each region and of its mirror image: inputs, labels, and which of these are known."""
    seen, told, labels, known = [], [], [], []
    for number, region in enumerate(regions):
        for mirrored in (False, True):
            drawn = view.draw(region, np.random.default_rng([step, number, mirrored]), number)
            pose = MIRRORED if mirrored else Pose()
            findings = view.findings(drawn, pose)
            seen.append(view.sample(drawn, pose))
            told.append(view.where(drawn, pose))
            labels.append(torch.from_numpy(findings.labels_L).float())
            known.append(findings.labels_known is not False)
    where = None if told[0] is None else torch.stack(told)  # type: ignore[arg-type]
    inputs = (torch.stack(seen), torch.zeros(len(seen), dtype=torch.int64), *(() if where is None else (where,)))
    return inputs, torch.stack(labels), torch.tensor(known)


def best_constant(labels_BL: Tensor) -> float:
    """Loss of the answer that says how frequent each label is."""
    share_L = labels_BL.mean(0)
    entropy_L = torch.special.entr(share_L) + torch.special.entr(1 - share_L)
    weights_L = torch.tensor(TASK.label_weights)
    return float((entropy_L * weights_L).sum() / weights_L.sum())


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_a_view_teaches_a_network_and_its_mirrored_input_gives_swapped_labels(kind: str) -> None:
    view = view_of(kind)
    regions = [view.prepared(region) for region in toy_regions()]
    head: Any = MilConfig(width=16, dropout=0.0) if kind == "top_slices" else GlobalConfig(dropout=0.0)
    model = network(view, head, coordinates=8 if kind == "dual_stream" else 0)
    loss = TotalLoss([BinaryConfig(positive_weight=1.0)], TASK)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    truth = torch.tensor([region.findings.labels_L.tolist() for region in regions])
    half = best_constant(truth) / 2
    totals: list[float] = []
    inputs, labels, known = batch_of(view, regions, 0)
    for step in range(MOST_STEPS):
        if kind == "dual_stream":  # draws another window each time
            inputs, labels, known = batch_of(view, regions, step)
        total, _ = loss(model(*inputs), {"labels": labels, f"labels{KNOWN}": known})
        totals.append(total.item())
        if max(totals[-3:]) < half / 8:
            break
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert max(totals[-3:]) < half, totals
    model.eval()
    config = DataConfig(patch=(EDGE,) * 3, mirror=False)

    def answers(some: list[Region], config: DataConfig) -> torch.Tensor:
        found = look_at(model, some, config, TASK, view, torch.device("cpu"), where=False)
        return torch.stack([one.values_L for one in found])

    said = answers(regions, config)
    flipped = [view.prepared(replace(region, stored_XYZ=region.stored_XYZ.flip(0))) for region in regions]
    swapped = answers(flipped, config)
    assert torch.equal((said > 0.5).float(), truth.float())
    assert torch.equal((swapped > 0.5).float(), truth[:, list(MIRROR)].float())
    both = answers(regions, replace(config, mirror=True))
    if kind != "dual_stream":  # of which the surest window is asked, each with its own mirror image
        torch.testing.assert_close(both, (said + swapped[:, list(MIRROR)]) / 2, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
@pytest.mark.parametrize("unit", [HU, "zscore"])
def test_a_mirrored_pose_and_a_mirrored_bag_show_the_same(kind: str, unit: str) -> None:
    view = view_of(kind, **({"slabs": 3} if kind == "mip" else {}))
    region = view.prepared(replace(toy_regions()[0], unit=unit))
    x = view.sample(region)
    assert x.shape == view.input_shape
    assert x.min() >= -1
    assert x.max() <= 1
    torch.testing.assert_close(view.mirrored(x[None])[0], view.sample(region, MIRRORED), atol=1e-4, rtol=0)


def test_slabs_of_a_pose_are_parts_of_the_whole() -> None:
    region = toy_regions()[0]
    generator = np.random.default_rng(3)
    config = AugmentConfig(rotate=20, scale=0.2, shift=3, elastic=3)
    turned = draw_pose(config, generator, extent_mm=(64, 64, 64), more=generator)
    for pose in (Pose(), MIRRORED, Pose(shift=(2.0, 0.0, 1.0)), turned):
        whole = pose_values(region, (20, 18, 16), pose)
        parts = list(pose_slabs(region, (20, 18, 16), pose, [(0, 5), (5, 6), (6, 16)]))
        torch.testing.assert_close(torch.cat(parts, -1), whole, atol=2e-2, rtol=0)
    (beyond,) = pose_slabs(region, (20, 18, 16), Pose(), [(-2, 3)])
    assert beyond[..., :2].eq(-1000).all()
    assert beyond[..., 2:].equal(pose_values(region, (20, 18, 16))[..., :3])


def skull_and_artery(edge: int = 40, mm: float = 1.0) -> Tensor:
    """Two layers of dense bone with marrow between, an artery of 400 HU, and a calcified speck in its wall."""
    hu = torch.full((edge, edge, edge), 40.0)
    hu[2:4], hu[4:7], hu[7:9] = 1200.0, 400.0, 1200.0
    hu[20:24, 20:24, :] = 400.0
    hu[24:26, 21:23, 10:12] = 900.0
    return hu


def test_bone_is_known_by_density_and_shape_and_arteries_of_the_same_density_stay() -> None:
    hu = skull_and_artery()
    bone = bone_of(hu, (1.0, 1.0, 1.0))
    assert bone[2:9].all()  # marrow too
    assert not bone[10:].any()  # neither the artery nor the speck


def test_bone_of_half_millimetres_is_that_of_millimetres() -> None:
    coarse = skull_and_artery()
    fine = coarse.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    found = bone_of(fine, (0.5, 0.5, 0.5))
    assert found.equal(
        bone_of(coarse, (1.0, 1.0, 1.0)).repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    )
    thin = torch.full((40, 40, 40), 40.0)
    thin[20:22] = 1200.0  # of a millimetre
    thin[22:26] = 300.0  # its blurred edge, of which a millimetre goes
    bone = bone_of(thin, (0.5, 0.5, 0.5))
    assert bone.flatten(1).all(1).nonzero().flatten().tolist() == [20, 21, 22, 23]
    assert bone.flatten(1).any(1).sum() == 4


def test_a_dilation_is_scipys() -> None:
    marked = torch.rand(13, 11, 9, generator=torch.Generator().manual_seed(0)) > 0.97
    for mm, edges in ((1.0, (3, 3, 3)), (2.5, (11, 5, 5)), (4.0, (17, 9, 9))):
        theirs = ndimage.binary_dilation(marked.numpy(), np.ones(edges))
        assert dilated(marked, (0.5, 1.0, 1.0), mm).equal(torch.from_numpy(theirs)) == (mm != 1.0)


def test_projections_leave_out_bone_and_show_arteries_wherever_bone_is_not() -> None:
    edge = 40
    region = region_of(skull_and_artery(edge))
    windows = (CtWindow("wide", 2000.0, 0.0), CtWindow("narrow", 100.0, 40.0))
    view = view_of("mip", windows=windows, patch=edge, size=40)
    above, front, side = view.sample(view.prepared(region))
    assert above.shape == (3, edge, edge)
    # As on a screen: X across, Y up.
    picture_XY = above[:, range(edge - 1, -1, -1)].transpose(1, 2)
    assert picture_XY[0, 2:9].eq(-1.024).all() or picture_XY[0, 2:9].le(-0.999).all()
    assert picture_XY[2, 20:24, 20:24].eq(1).all()
    assert picture_XY[2, 30].eq(-1).all()
    assert picture_XY[1, 30].eq(0).all()
    torch.testing.assert_close(front[0, 0, 21], torch.tensor(0.4))
    torch.testing.assert_close(side[0, 0, 21], torch.tensor(0.4))
    # From above the speck is denser, and shown.
    torch.testing.assert_close(picture_XY[0, 24, 21], torch.tensor(0.9))
    with_bone = view_of("mip", windows=windows, patch=edge, size=40, without_bone=False)
    assert with_bone.sample(region)[0, 0, :, 5].eq(0.4).all()


def test_projections_of_slabs_cover_the_box_once() -> None:
    region = toy_regions()[3]
    region.stored_XYZ[3, 4, 5] = 900
    whole, parts = view_of("mip", without_bone=False), view_of("mip", slabs=3, without_bone=False)
    assert isinstance(whole, MipView)
    assert isinstance(parts, MipView)
    for one, several in zip(whole._projections(region, Pose()), parts._projections(region, Pose()), strict=True):
        torch.testing.assert_close(several.amax(0), one[0])
        assert (several == 900).flatten(1).any(1).tolist() == [True, False, False]


def test_an_mri_is_shown_between_its_percentiles_and_a_ct_in_its_windows() -> None:
    values = torch.arange(EDGE**3).reshape(EDGE, EDGE, EDGE)
    view = view_of("stack", slices=EDGE, percentiles=(10.0, 90.0))
    mri = view.sample(region_of(values, unit="zscore"))
    assert (mri == -1).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (mri == 1).float().mean().item() == pytest.approx(0.1, abs=0.01)
    ct = view.sample(region_of(torch.full((EDGE,) * 3, 425.0)))
    torch.testing.assert_close(ct, torch.full_like(ct, 0.5))


def test_a_stack_has_the_whole_box_in_its_channels_from_below_to_above() -> None:
    hu = torch.arange(EDGE).float().expand(EDGE, EDGE, EDGE) * 10
    x = view_of("stack", slices=8).sample(region_of(hu))
    # Slabs of three slices: their means are 10, 40, 70 ... HU.
    expected = (torch.arange(8) * 30.0 + 10 - 250) / 350
    torch.testing.assert_close(x[0].mean((1, 2)), expected)


def test_a_window_shows_the_labels_of_its_points_alone_and_the_point_only_to_those_that_are_told() -> None:
    region = toy_regions()[2]
    view = view_of("dual_stream")
    assert isinstance(view, DualStreamView)
    told = empty = 0
    for number in range(60):
        drawn = view.draw(region, np.random.default_rng(number), 0)
        findings = view.findings(drawn)
        inside_K = (findings.points_K3[:, 2] >= -0.5) & (findings.points_K3[:, 2] < 4.5)
        if not inside_K.any():  # one of those that lie anywhere
            empty += 1
            assert findings.labels_L.tolist() == [0, 0, 0]
            # Next to a point it may show part of a finding.
            assert findings.labels_known == (np.abs(findings.points_K3[:, 2] - 2) >= 7.5).all()
            continue
        assert findings.labels_known is True
        expected = [float(place in region.findings.places_K[inside_K]) for place in range(2)]
        assert findings.labels_L.tolist() == [*expected, 1.0]
        full, box = view.sample(drawn)
        where = view.where(drawn)
        if drawn.focus is None:
            assert full.equal(box)
            assert where.eq(0).all()
            continue
        told += 1
        x, y = drawn.focus[:2]
        torch.testing.assert_close(where[0], torch.tensor([x / 23, 1 - y / 23]).float())
        if (x, y) not in [tuple(point) for point in region.findings.points_K3[:, :2].tolist()]:
            continue  # told about another place
        assert box[2].mean() > 0.3 > full[2].mean()  # 15 % around the sac are sac
        moved = view.where(drawn, MIRRORED)
        torch.testing.assert_close(moved[0], torch.tensor([1 - x / 23, 1 - y / 23]).float())
    assert 10 < told < 35
    assert 5 < empty < 25


def test_a_series_without_a_point_teaches_only_what_it_is_sure_of() -> None:
    view = view_of("dual_stream", hidden=0.0)
    empty = view.draw(toy_regions()[3], np.random.default_rng(0), 0)
    assert empty.findings.labels_known is True
    assert empty.findings.labels_L.tolist() == [0, 0, 0]
    assert empty.focus is not None  # a point that is known says nothing about a finding
    unplaced = view.draw(region_of(torch.zeros(EDGE, EDGE, EDGE), labels=(1, 0, 1)), np.random.default_rng(0), 0)
    assert unplaced.findings.labels_known is False


def test_windows_cover_the_box_at_prediction_and_nobody_is_told_anything() -> None:
    view = view_of("dual_stream")
    parts = view.parts(toy_regions()[0])
    assert [part.start[2] for part in parts] == [0, 5, 10, 15, 19]
    for part in parts:
        full, box = view.sample(part)
        assert full.equal(box)


def test_a_turned_pose_leaves_a_window_its_slices() -> None:
    view = view_of("dual_stream", hidden=0.0)
    drawn = view.draw(toy_regions()[0], np.random.default_rng(1), 0)
    config = AugmentConfig(rotate=30, shift=4, elastic=4)
    for number in range(5):
        generator = np.random.default_rng(number)
        pose = draw_pose(config, generator, extent_mm=(64, 64, 64), more=generator)
        before, after = view.findings(drawn), view.findings(drawn, pose)
        assert after.points_K3[:, 2] == pytest.approx(before.points_K3[:, 2])


def test_slices_with_vessels_are_chosen_and_bone_and_noise_are_not() -> None:
    hu = 40 + 5 * torch.randn(EDGE, EDGE, EDGE, generator=torch.Generator().manual_seed(0))
    hu[:, :4, 18:] = 1200.0  # bone
    hu[2:20, 10:13, 6:9] = 350.0  # an artery across three slices
    view = view_of("top_slices", slices=3, neighbours=1)
    assert isinstance(view, TopSlicesView)
    region = view.prepared(region_of(hu))
    assert view.chosen(region).tolist() == [6, 7, 8]
    x = view.sample(region)
    torch.testing.assert_close(x[0, 2], x[1, 1])  # a neighbour is the next slice
    lower = Pose(shift=(0.0, 0.0, 2.0))  # what lies two slices higher is shown
    assert view.chosen(region, lower).tolist() == [4, 5, 6]
    dark = view.prepared(region_of(-hu.clamp(max=400), unit="zscore"))
    assert view.chosen(dark).tolist()[0] in (5, 6, 7)


def test_slices_of_finer_voxels_are_chosen_by_a_coarser_guide() -> None:
    view = view_of("top_slices", slices=4, neighbours=0)
    hu = torch.full((2 * EDGE,) * 3, 40.0)
    hu[8:40, 14:20, 17:23] = 350.0
    fine = replace(region_of(hu), spacing=(0.5, 0.5, 0.5), start=(12, 12, 3))
    region = view.prepared(fine)
    assert region.guide_XYZ is not None
    assert region.guide_XYZ.shape == (EDGE,) * 3
    chosen = (view.chosen(region) + 3).tolist()
    assert 17 <= min(chosen) <= max(chosen) <= 22, chosen


def test_the_laplacian_is_scipys() -> None:
    values = torch.randn(20, 18, 16, generator=torch.Generator().manual_seed(0))
    expected = ndimage.gaussian_laplace(values.numpy().astype(np.float64), 2.0, mode="nearest")
    even = laplacian_of_gaussian(values.numpy(), (1.0, 1.0, 1.0), 2.0)
    inside = (slice(2, -2),) * 3
    assert np.corrcoef(even[inside].ravel(), expected[inside].ravel())[0, 1] > 0.99
    smooth = torch.nn.functional.interpolate(values[None, None], size=(40, 18, 16), mode="trilinear")[0, 0]
    uneven = laplacian_of_gaussian(smooth.numpy(), (0.5, 1.0, 1.0), 2.0)[::2]
    assert np.corrcoef(even[3:-3].ravel(), uneven[3:-3].ravel())[0, 1] > 0.95


def test_intensity_changes_of_pictures_keep_each_in_its_plane() -> None:
    generator = np.random.default_rng(0)
    config = AugmentConfig(blur=5, low_resolution=2, gamma=0.3, noise=0.0)
    for number in range(6):
        generator = np.random.default_rng(number)
        variation = draw_variation(config, generator, generator)
        x = torch.zeros(3, 2, 16, 16)
        x[1] = torch.rand(2, 16, 16)
        changed = vary_pictures(x, variation)
        alone = changed[0].amax() - changed[0].amin()
        assert alone < 1e-5  # nothing of the second picture came into the first
        assert changed.shape == x.shape


def test_a_place_is_as_likely_as_itself_times_a_power_of_anything() -> None:
    logits = torch.tensor([-30.0, -1.0, 0.0, 2.0, 40.0])
    for alpha in (0.5, 2.0):
        found = product_logit(logits, torch.tensor(1.5), alpha)
        wanted = logits.double().sigmoid() * torch.tensor(1.5).double().sigmoid() ** alpha
        torch.testing.assert_close(found.sigmoid(), wanted.float(), rtol=1e-4, atol=1e-12)
    certain = torch.tensor(80.0, requires_grad=True)
    product_logit(certain, certain, 1.0).backward()
    assert certain.grad is not None
    assert certain.grad.isfinite()


def test_an_asymmetric_loss_trains_the_head_of_bags() -> None:
    view = view_of("top_slices")
    regions = [view.prepared(region) for region in toy_regions()]
    model = network(view, MilConfig(width=16, dropout=0.0, pooling="mean_max"))
    loss = TotalLoss([AsymmetricConfig()], TASK)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    inputs, labels, _ = batch_of(view, regions, 0)
    constant = loss({"labels": labels.mean(0).logit().expand_as(labels)}, {"labels": labels})[0].item()
    for _ in range(MOST_STEPS):
        total, _ = loss(model(*inputs), {"labels": labels})
        if total < constant / 4:
            break
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert total < constant / 2


def test_streams_have_backbones_of_their_own_and_layers_in_common() -> None:
    encoder = PictureEncoder(TimmConfig(backbone=BACKBONE, in_channels=2, streams=2, coordinates=8)).eval()
    x = torch.randn(2, 6, 2, 64, 64)
    (map_,) = encoder(x)
    features = encoder.channels[0] - 8
    assert map_.shape == (2, features + 8, 3, 2, 2)
    # Zeros are told where nobody tells anything.
    assert map_.equal(encoder(x, torch.zeros(2, 3, 2))[0])
    told = encoder(x, torch.full((2, 3, 2), 0.5))[0]
    assert told[:, :features].equal(map_[:, :features])
    assert not told[:, features:].equal(map_[:, features:])
    swapped = encoder(x.unflatten(1, (3, 2)).flip(2).flatten(1, 2))[0]
    assert not swapped[:, :features].equal(map_[:, :features])
    model = Network(encoder, GlobalConfig(), (), TASK)
    parameters = [id(p) for layer in model.layers for module in layer for p in module.parameters(recurse=False)]
    assert sorted(parameters) == sorted(id(p) for p in encoder.parameters())
    stems = {id(module) for module in model.layers[0]}
    for backbone in encoder.backbones:
        assert id(next(module for module in backbone.modules() if isinstance(module, torch.nn.Conv2d))) in stems
    assert encoder.where is not None
    assert id(encoder.where[0]) in {id(module) for module in model.layers[-1]}


def test_what_does_not_go_together_is_refused_in_a_line() -> None:
    with pytest.raises(WrongUse, match=r"scratch.kind resenc: view.kind mip shows pictures; use scratch.kind timm"):
        Recipe(view=MipConfig())
    with pytest.raises(WrongUse, match=r"scratch.kind timm: view.kind box shows a volume; use scratch.kind resenc"):
        Recipe(scratch=TimmConfig())
    with pytest.raises(WrongUse, match=r"scratch.streams 1: view.kind dual_stream shows 2 pictures that belong tog"):
        Recipe(view=DualStreamConfig(), scratch=TimmConfig())
    with pytest.raises(WrongUse, match=r"scratch.backbone 'hf_hub:someone/x': must be a name of timm's"):
        TimmConfig(backbone="hf_hub:someone/x")
    with pytest.raises(WrongUse, match=r"scratch.backbone resnet_of_mine: timm has no such network"):
        PictureEncoder(TimmConfig(backbone="resnet_of_mine"))
    with pytest.raises(WrongUse, match=r"scratch.backbone test_vit: gives no map .* a convolutional network"):
        PictureEncoder(TimmConfig(backbone="test_vit"))
    with pytest.raises(WrongUse, match=r"head.kind cells: has cells of a volume, and this view shows pictures"):
        Network(PictureEncoder(TimmConfig(backbone=BACKBONE)), CellsConfig(stride=32), (), TASK)
    with pytest.raises(WrongUse, match=r"view.slices 4: must be an odd number"):
        DualStreamConfig(slices=4)
    with pytest.raises(WrongUse, match=r"view.slices 30: the box has 24"):
        view_of("top_slices", slices=30)


def test_published_weights_that_cannot_be_had_are_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = TimmConfig(backbone=f"{BACKBONE}.r160_in1k", pretrained=True)
    with pytest.raises(UserError, match=r"scratch.pretrained: the weights .* cannot be had .*pretrained false"):
        PictureEncoder(config)
    PictureEncoder(config, weights=False)


@pytest.mark.parametrize("kind", ["mip", "top_slices"])
def test_what_is_found_once_a_series_comes_out_of_a_cache_as_it_went_in(kind: str) -> None:
    corpus = Corpus.open(Path(__file__).parent / "fixtures" / "v0_1_0" / "corpus")
    cases = AneurysmTask().cases(corpus, labels=None, every_label=False).cases
    view = view_of(kind)
    decoder = RegionDecoder(view)
    for case in [next(one for one in cases if (one.unit == HU) == is_ct) for is_ct in (True, False)]:
        arrays = decoder.decode(case, row_major=True)
        assert [(array.dtype, array.shape) for array in arrays] == [
            (part.dtype, part.shape) for part in decoder.parts(case)
        ]
        kept, read = decoder.assemble(case, arrays), view.load(case)
        assert (kept.guide_XYZ is None) == (kind == "mip")
        assert view.sample(kept, MIRRORED).equal(view.sample(read, MIRRORED))
        # Those of a plain box are other regions, where bone was taken out or a guide is kept.
        plain = view_of("mip", without_bone=False)
        assert (view.key(case) == plain.key(case)) == (kind == "mip" and case.unit != HU)
        if case.unit == HU and kind == "mip":
            assert (kept.stored_XYZ != plain.load(case).stored_XYZ).any()
