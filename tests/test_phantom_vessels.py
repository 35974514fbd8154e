"""Hard trees: sacs as in the clinic, variants at published frequencies, mimics that know nothing of the sacs."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import rankdata

from harmonize.labels import LOCATIONS
from harmonize.phantom.acquisition import Grid, make_grid, scan_head, vessel_mask
from harmonize.phantom.anatomy import Head, make_head
from harmonize.phantom.contrast import CONTRASTS
from harmonize.phantom.randomness import rng_of
from harmonize.phantom.rsna.options import TreeOptions
from harmonize.phantom.rsna.plan import planned
from harmonize.phantom.vessels import (
    MIMIC_KINDS,
    SITE_WEIGHTS,
    Difficulty,
    Flow,
    Vessel,
    VesselTree,
    draw_locations,
    grow_tree,
    sacs,
    walls,
)
from harmonize.phantom.vessels.clinics import HARD, LARGE_MM, LARGEST_MM, SMALLEST_MM
from harmonize.phantom.vessels.courses import length, looped, widened
from harmonize.phantom.vessels.template import SIGNS, side_of
from harmonize.phantom.vessels.tubes import Tube

HEADS = 120
SIGMAS = 4.0
"""How far a share may lie from what is expected, in standard errors."""


@pytest.fixture(scope="module")
def trees() -> list[VesselTree]:
    """Hard trees that have a sac at each of the thirteen places."""
    return [grow_tree(rng_of(seed, "hard"), LOCATIONS, difficulty="hard") for seed in range(HEADS)]


def near(share: float, expected: float, count: int) -> bool:
    return abs(share - expected) <= SIGMAS * float(np.sqrt(expected * (1 - expected) / count))


@pytest.mark.parametrize(
    ("difficulty", "expected"),
    [
        ("easy", "99c9bda3a86f614fd7cd7f1057fda1056cccb9e0dc63d79173c59721ba5e78e6"),
        ("medium", "0ccfd14934856c9e9742d8607ab389e0dda019cac7c23a605f37bdf06f921616"),
    ],
)
def test_easy_and_medium_trees_are_those_of_before(difficulty: Difficulty, expected: str) -> None:
    drawn = hashlib.sha256()
    for seed in range(20):
        tree = grow_tree(rng_of(seed, "golden"), LOCATIONS, difficulty=difficulty)
        assert bool(tree.mimics) == (difficulty == "medium")
        for vessel in tree.vessels:
            drawn.update(vessel.tube.points_N3.round(9).tobytes() + vessel.tube.radii_N.round(9).tobytes())
            drawn.update(f"{vessel.location}{vessel.flow.value}{vessel.branch}".encode())
        for a in tree.aneurysms:
            drawn.update(repr((a.location, [round(c, 9) for c in a.centre_mm], round(a.diameter_mm, 9))).encode())
    assert drawn.hexdigest() == expected


def test_sacs_are_as_small_as_in_the_clinic_with_a_tail_to_both_sides(trees: list[VesselTree]) -> None:
    diameters = np.array([aneurysm.diameter_mm for tree in trees for aneurysm in tree.aneurysms])
    assert 4.3 < np.median(diameters) < 4.9
    assert np.min(diameters) >= SMALLEST_MM
    assert np.max(diameters) <= LARGEST_MM
    assert 0.12 < np.mean(diameters < 3) < 0.22
    assert 0.02 < np.mean(diameters > 10) < 0.07


def test_hard_series_have_their_sacs_where_published_series_have_them() -> None:
    count = 600
    series = [planned(index, seed=0, options=TreeOptions(difficulty="hard")) for index in range(count)]
    single = [one.sites[0] for one in series if len(one.sites) == 1]
    weights = dict(zip(LOCATIONS, SITE_WEIGHTS["hard"], strict=True))
    for name in ("Middle Cerebral Artery", "Anterior Communicating Artery", "Posterior Communicating Artery"):
        expected = sum(weight for site, weight in weights.items() if site.endswith(name)) / sum(weights.values())
        assert near(float(np.mean([site.endswith(name) for site in single])), expected, len(single))


def test_sacs_have_the_shapes_and_contents_that_are_asked_for(trees: list[VesselTree]) -> None:
    found = [aneurysm for tree in trees for aneurysm in tree.aneurysms]
    # The basilar tip is a place where arteries part.
    sided = [aneurysm for aneurysm in found if aneurysm.location != "Basilar Tip"]
    assert near(np.mean([not a.at_branching for a in sided]), sacs.ALONG_AN_ARTERY, len(sided))
    whole = [aneurysm for aneurysm in found if aneurysm.shape != "fusiform"]
    assert near(np.mean([a.shape == "lobulated" for a in whole]), HARD.sacs.lobulated, len(whole))
    assert 0.015 < 1 - len(whole) / len(found) < 0.06
    for which, shares, of in (("thrombosed", sacs.THROMBOSED, whole), ("calcified", HARD.sacs.calcified, found)):
        for large, share in enumerate(shares):
            some = [getattr(a, which) for a in of if (a.diameter_mm >= LARGE_MM) == large]
            assert near(np.mean(some), share, len(some))


def test_what_an_aneurysm_says_of_itself_is_what_is_drawn(trees: list[VesselTree]) -> None:
    for tree in trees[:40]:
        for aneurysm in tree.aneurysms:
            flows = {v.flow for v in tree.vessels if v.branch == "sac" and v.location == aneurysm.location}
            assert (Flow.THROMBUS in flows) == aneurysm.thrombosed
            assert (Flow.CALCIUM in flows) == aneurysm.calcified
            assert Flow.SAC in flows
            body = [v.tube for v in sac_of(tree, aneurysm.location) if v.flow in (Flow.SAC, Flow.THROMBUS)]
            widest = 2 * max(tube.radii_N.max() for tube in body)
            assert aneurysm.diameter_mm / (1.001 + HARD.sacs.longer.high) <= widest <= 1.001 * aneurysm.diameter_mm
            assert gap(np.array([aneurysm.centre_mm]), body)[0] < 0


def test_every_sac_touches_an_artery_and_stays_on_its_side(trees: list[VesselTree]) -> None:
    for tree in trees:
        arteries = [v.tube for v in tree.vessels if v.flow is Flow.ARTERY and v.location]
        for aneurysm in tree.aneurysms:
            side = side_of(aneurysm.location)
            assert side is None or SIGNS[side] * aneurysm.centre_mm[0] > 0
            # A sac or its neck reaches into a wall, and its centre lies not far outside.
            points = np.concatenate([v.tube.points_N3 for v in sac_of(tree, aneurysm.location)])
            assert gap(points, arteries).min() < 0
            assert gap(np.array([aneurysm.centre_mm]), arteries)[0] < 0.6 * aneurysm.diameter_mm


def test_medium_trees_have_larger_sacs_and_fewer_wide_places(trees: list[VesselTree]) -> None:
    medium = [grow_tree(rng_of(seed, "hard"), LOCATIONS, difficulty="medium") for seed in range(HEADS)]
    assert 6.5 < np.median([aneurysm.diameter_mm for tree in medium for aneurysm in tree.aneurysms]) < 7.5

    def count(some: list[VesselTree], kinds: tuple[str, ...]) -> int:
        return sum(mimic.kind in kinds for tree in some for mimic in tree.mimics)

    wide = ("bulb", "ectasia", "loop", "kink")
    assert 0.2 < count(medium, wide) / count(trees, wide) < 0.4
    for kinds in (("calcium",), ("blood",), ("fenestration",)):
        assert 0.4 < count(medium, kinds) / count(trees, kinds) < 2.5


def test_sites_on_both_sides_are_mirror_images(trees: list[VesselTree]) -> None:
    for name in (name.removeprefix("Left ") for name in LOCATIONS if name.startswith("Left")):
        places = {
            side: np.array([a.centre_mm for tree in trees for a in tree.aneurysms if a.location == f"{side} {name}"])
            for side in ("Left", "Right")
        }
        mirrored = places["Left"] * (-1, 1, 1)
        error = np.sqrt((mirrored.var(axis=0) + places["Right"].var(axis=0)) / HEADS)
        assert np.all(np.abs(mirrored.mean(axis=0) - places["Right"].mean(axis=0)) < SIGMAS * error)


def test_heads_with_and_without_their_sacs_differ_in_the_sacs_alone(trees: list[VesselTree]) -> None:
    for seed in range(6):
        ill, healthy = trees[seed], grow_tree(rng_of(seed, "hard"), (), difficulty="hard")
        assert healthy.mimics == ill.mimics
        assert healthy.variants == ill.variants
        assert not healthy.aneurysms
        assert same(healthy.vessels, [v for v in ill.vessels if v.branch != "sac"])
        # The sac of a place does not ask which other places have one.
        tip = grow_tree(rng_of(seed, "hard"), ("Basilar Tip",), difficulty="hard")
        assert tip.aneurysms == tuple(a for a in ill.aneurysms if a.location == "Basilar Tip")
        assert same([v for v in tip.vessels if v.branch == "sac"], sac_of(ill, "Basilar Tip"))


def test_mimics_are_of_all_kinds_and_as_many_as_asked_for(trees: list[VesselTree]) -> None:
    seen = Counter(mimic.kind for tree in trees for mimic in tree.mimics)
    more = (grow_tree(rng_of(seed, "more"), difficulty="hard") for seed in range(120))
    while set(MIMIC_KINDS) - set(seen) and (tree := next(more, None)):
        seen.update(mimic.kind for mimic in tree.mimics)
    assert set(seen) == set(MIMIC_KINDS)
    numbers = {kind: np.array([sum(m.kind == kind for m in tree.mimics) for tree in trees]) for kind in MIMIC_KINDS}
    for found, mean in (
        (numbers["bulb"], walls.BULBS_A_HEAD),
        (numbers["ectasia"], walls.STRETCHES_A_HEAD),
        (numbers["loop"] + numbers["kink"], walls.WINDINGS_A_HEAD),
    ):
        assert abs(found.mean() - mean) < SIGMAS * np.sqrt((mean + mean**2) / HEADS)
    assert near(np.mean(numbers["calcium"] > 0), HARD.mimics.calcified_heads, HEADS)
    # One in four heads or fewer has nothing that looks like a sac in an artery.
    assert np.mean(sum(numbers[kind] for kind in ("bulb", "ectasia", "loop", "kink", "infundibulum")) > 0) > 0.75


def test_mimics_say_nothing_of_the_sacs(trees: list[VesselTree]) -> None:
    numbers = rankdata([len(tree.mimics) for tree in trees])
    for of_sacs in (
        [np.mean([a.diameter_mm for a in tree.aneurysms]) for tree in trees],
        [sum(a.at_branching for a in tree.aneurysms) for tree in trees],
    ):
        assert abs(np.corrcoef(numbers, rankdata(of_sacs))[0, 1]) < SIGMAS / np.sqrt(HEADS)


@pytest.mark.parametrize("blob", ["widest", "volume", "wide parts"])
def test_blobs_alone_do_not_tell_who_is_ill(trees: list[VesselTree], blob: str) -> None:
    measured = {"widest": widest, "volume": volume, "wide parts": wide_parts}[blob]
    ill, healthy = [], []
    for seed, tree in enumerate(trees):
        where = draw_locations(rng_of(seed, "where"), (seed + 0.5) / HEADS, SITE_WEIGHTS["hard"])
        shown = [v for v in tree.vessels if v.flow in (Flow.ARTERY, Flow.SAC) and v.location]
        healthy.append(measured([v.tube for v in shown if v.branch != "sac"]))
        ill.append(measured([v.tube for v in shown if v.branch != "sac" or v.location in where]))
    assert 0.45 <= auc(healthy, ill) <= 0.60


def test_a_loop_closes_on_itself_and_a_wide_place_is_as_wide_as_asked_for() -> None:
    straight = Tube(points_N3=np.array([[0.0, 0, 0], [0, 0, 30]]), radii_N=np.array([1.0, 1.0]))
    loop = looped(straight, 0.5, 3.0, np.array([1.0, 0, 0]))
    assert length(loop) == pytest.approx(30 + 2 * np.pi * 3, rel=0.05)
    assert loop.points_N3[:, 0].max() == pytest.approx(6.0, abs=0.1)
    np.testing.assert_allclose(loop.points_N3[[0, -1]], straight.points_N3[[0, -1]], atol=1e-9)
    wide = widened(straight, 0.5, 12.0, 2.0)
    assert wide.radii_N.max() == pytest.approx(2.0)
    assert np.all(wide.radii_N[np.abs(wide.points_N3[:, 2] - 15) > 6] == 1.0)


def test_arteries_run_through_blood_and_only_mr_blooms_around_metal() -> None:
    def ball(x: float, radius: float, flow: Flow) -> Vessel:
        return Vessel(
            tube=Tube(points_N3=np.array([[x, 0.0, 0.0]]), radii_N=np.array([radius])), location=None, flow=flow
        )

    parts = [ball(-10, 5, Flow.BLOOD), ball(-10, 2, Flow.ARTERY), ball(10, 2, Flow.METAL), ball(10, 5, Flow.BLOOM)]
    head = replace(make_head(0, "layers", resolution_mm=2.5), vessels=VesselTree(vessels=tuple(parts), aneurysms=()))
    grid = make_grid(extent_mm=(40, 12, 12), spacing_mm=(1, 1, 1), centre_mm=(0, 0, 0), axes="RAS")
    ct = scan(head, grid, "CTA")
    assert ct[-10] == pytest.approx(340, abs=40)
    assert ct[-6.5] == pytest.approx(70, abs=40)
    assert ct[10] > 2500
    bare = scan(replace(head, vessels=VesselTree(vessels=(), aneurysms=())), grid, "CTA")
    assert ct[14] == pytest.approx(bare[14], abs=80)
    mr = scan(head, grid, "MRA")
    assert mr[-10] > 600
    assert mr[10] < 100
    assert mr[13.5] < 100


def test_masks_show_whole_sacs_and_no_vein_or_metal() -> None:
    head = make_head(1, "hard", resolution_mm=2.5, locations=("Basilar Tip",), difficulty="hard")
    (aneurysm,) = head.vessels.aneurysms
    grid = make_grid(extent_mm=(60, 60, 40), spacing_mm=(1, 1, 1), centre_mm=aneurysm.centre_mm)
    i, j, k = np.rint(grid.index(aneurysm.centre_mm)).astype(int)
    assert vessel_mask(head, grid)[i, j, k] > 0
    others = [v for v in head.vessels.vessels if v.flow in (Flow.VEIN, Flow.METAL, Flow.BLOOM, Flow.BLOOD)]
    assert others
    assert all(v.location is None for v in others)


def scan(head: Head, grid: Grid, contrast: str) -> dict[float, float]:
    """Values along x through the middle of the grid, by x in mm, means of the four voxels around the axis."""
    values = scan_head(head, grid, CONTRASTS[contrast], rng_of("noise"))
    middle = values[:, grid.shape[1] // 2 - 1 : grid.shape[1] // 2 + 1, grid.shape[2] // 2 - 1 : grid.shape[2] // 2 + 1]
    xs = [float(grid.world((index, 0, 0))[0]) for index in range(grid.shape[0])]
    return {half / 2: float(np.interp(half / 2, xs, middle.mean(axis=(1, 2)))) for half in range(-38, 39)}


def sac_of(tree: VesselTree, location: str) -> list[Vessel]:
    return [vessel for vessel in tree.vessels if vessel.branch == "sac" and vessel.location == location]


def gap(points_N3: NDArray[np.float64], tubes: list[Tube]) -> NDArray[np.float64]:
    """(N,) distances in mm from points to the nearest wall, negative inside."""
    ends = [slice(-max(len(tube.points_N3) - 1, 1), None) for tube in tubes]
    starts = [slice(None, max(len(tube.points_N3) - 1, 1)) for tube in tubes]
    points, radii = (
        np.concatenate([part[at] for part, at in zip(parts, starts, strict=True)]) for parts in _split(tubes)
    )
    steps, growths = (
        np.concatenate([part[at] for part, at in zip(parts, ends, strict=True)]) - begun
        for parts, begun in zip(_split(tubes), (points, radii), strict=True)
    )
    offsets = points_N3[:, None] - points
    shares = np.clip(np.sum(offsets * steps, axis=-1) / np.maximum(np.sum(steps**2, axis=1), 1e-12), 0, 1)
    walls_mm = np.linalg.norm(offsets - shares[..., None] * steps, axis=-1) - (radii + shares * growths)
    return np.asarray(walls_mm.min(axis=1))


def _split(tubes: list[Tube]) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    return [tube.points_N3 for tube in tubes], [tube.radii_N for tube in tubes]


def same(some: tuple[Vessel, ...] | list[Vessel], others: list[Vessel]) -> bool:
    return len(some) == len(others) and all(
        np.array_equal(a.tube.points_N3, b.tube.points_N3)
        and np.array_equal(a.tube.radii_N, b.tube.radii_N)
        and (a.location, a.flow, a.branch) == (b.location, b.flow, b.branch)
        for a, b in zip(some, others, strict=True)
    )


def widest(tubes: list[Tube]) -> float:
    return max(float(tube.radii_N.max()) for tube in tubes)


def volume(tubes: list[Tube]) -> float:
    return sum(float(np.sum(_lengths(tube) * tube.radii_N**2)) + float(tube.radii_N.max()) ** 3 for tube in tubes)


def wide_parts(tubes: list[Tube]) -> float:
    """What is left of the volume by an opening that takes away arteries of up to 2.8 mm radius."""
    return sum(
        float(np.sum((_lengths(tube) + tube.radii_N) * tube.radii_N**2 * (tube.radii_N > 2.8))) for tube in tubes
    )


def _lengths(tube: Tube) -> NDArray[np.float64]:
    steps = np.linalg.norm(np.diff(tube.points_N3, axis=0), axis=1)
    return np.append(steps, 0.0)


def auc(healthy: list[float], ill: list[float]) -> float:
    ranks = rankdata([*healthy, *ill])
    return float((ranks[len(healthy) :].sum() - len(ill) * (len(ill) + 1) / 2) / (len(healthy) * len(ill)))
