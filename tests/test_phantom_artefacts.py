"""Artefacts of the hard phantom: what is drawn for whom, and what each does to a picture."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from harmonize.phantom.acquisition import make_grid
from harmonize.phantom.artefacts import RATES, ArtefactRates, Artefacts, Ghosts, Streaks, draw_artefacts
from harmonize.phantom.fading_flow import FadingFlow
from harmonize.phantom.vessels import Flow, Vessel
from harmonize.phantom.vessels.tubes import Tube

GRID = make_grid(extent_mm=(40, 48, 30), spacing_mm=(1, 1, 1.5), centre_mm=(0, 0, 0), axes="RAS")


def tube(points: list[tuple[float, float, float]], radius: float, flow: Flow) -> Vessel:
    radii = np.full(len(points), radius)
    return Vessel(tube=Tube(points_N3=np.array(points, dtype=float), radii_N=radii), location=None, flow=flow)


CLIP = tube([(5, 0, 0), (7, 0, 0)], 1.0, Flow.METAL)


def drawn(modality: str, rates: ArtefactRates, count: int = 1500) -> list[Artefacts]:
    return [draw_artefacts(modality, GRID, [CLIP], np.random.default_rng(seed), rates) for seed in range(count)]


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
def test_each_modality_has_its_artefacts_as_often_as_the_rates_say(rates: ArtefactRates) -> None:
    for modality in ("CTA", "MRA", "MRI T2", "MRI T1post"):
        found = drawn(modality, rates)
        count = Counter[str]()
        for one in found:
            count["moved"] += one.motion is not None or bool(one.jumps)
            count["pulse"] += one.pulse is not None
            assert (one.flow is not None) == (modality == "MRA")
            assert bool(one.streaks) == (one.bloom_mm > 0) == (modality == "CTA")
            assert not one.jumps or modality in ("CTA", "MRI T2")
        for what, share in (("moved", rates.motion[modality]), ("pulse", rates.pulsation.get(modality, 0.0))):
            error = 4 * np.sqrt(share * (1 - share) / len(found))
            assert count[what] / len(found) == pytest.approx(share, abs=error)
        for one in found:
            assert all(rates.streak_hu[0] <= star.amplitude_hu <= rates.streak_hu[1] for star in one.streaks)


def test_slow_blood_deep_in_a_large_sac_or_a_wide_artery_fades_and_that_near_the_wall_does_not() -> None:
    flow = FadingFlow(slow=0.8, in_plane=0, in_sacs=False, saturation=0, slab_mm=30, low_mm=0, normal=(0, 0, 1))
    sac, artery = tube([(0, 0, 0)], 6, Flow.SAC), tube([(0, 0, 0), (0, 0, 9)], 6, Flow.ARTERY)
    depths, height = np.array([0.5, 3, 6, 2.5, 4, 6], dtype=np.float32), np.zeros(6)
    left = flow([sac, artery], np.array([0, 0, 0, 1, 1, 1]), depths, height)
    np.testing.assert_allclose(left, [1, 0.6, 0.2, 1, 0.6, 0.2], atol=1e-6)


def test_arteries_along_the_slice_and_far_up_a_slab_fade() -> None:
    along, across = tube([(0, 0, 0), (9, 0, 0)], 1, Flow.ARTERY), tube([(0, 0, 0), (0, 0, 9)], 1, Flow.ARTERY)
    depth = np.zeros(2, dtype=np.float32)
    flow = FadingFlow(slow=0, in_plane=0.3, in_sacs=False, saturation=0, slab_mm=30, low_mm=0, normal=(0, 0, 1))
    np.testing.assert_allclose(flow([along, across], np.array([0, 1]), depth, np.zeros(2)), [0.7, 1])
    flow = FadingFlow(slow=0, in_plane=0, in_sacs=False, saturation=0.4, slab_mm=30, low_mm=-10, normal=(0, 0, 1))
    np.testing.assert_allclose(flow([across], np.array([0, 0]), depth, np.array([-10.0, 5.0])), [1, 0.8])


def test_sacs_and_bulbs_fade_as_the_artery_that_they_are_on_where_it_is_asked_for() -> None:
    along, across = tube([(0, 0, 0), (9, 0, 0)], 1, Flow.ARTERY), tube([(20, 0, 0), (20, 0, 9)], 1, Flow.ARTERY)
    # The body of the sac on the first lies nearer to the second: its neck says where it grows.
    neck, body = tube([(8, 0, 0), (12, 0, 0)], 1, Flow.SAC), tube([(15, 0, 1), (16, 0, 1)], 3, Flow.SAC)
    other, bulb = tube([(20, 0, 4), (23, 0, 4)], 2, Flow.SAC), tube([(5, 0, 0)], 2, Flow.ARTERY)
    parts = [
        along,
        across,
        replace(neck, location="a"),
        replace(body, location="a"),
        replace(other, location="b"),
        bulb,
    ]
    number, depth = np.arange(6), np.zeros(6, dtype=np.float32)
    for in_sacs, expected in ((True, [0.7, 1, 0.7, 0.7, 1, 0.7]), (False, [0.7, 1, 1, 1, 1, 1])):
        flow = FadingFlow(slow=0, in_plane=0.3, in_sacs=in_sacs, saturation=0, slab_mm=30, low_mm=0, normal=(0, 0, 1))
        np.testing.assert_allclose(flow(parts, number, depth, np.zeros(6)), expected)
        np.testing.assert_allclose(flow([bulb], np.array([0]), depth[:1], np.zeros(1)), [1])


def test_ghosts_stand_on_either_side_along_one_axis_alone() -> None:
    plane = np.zeros((20, 20), dtype=np.float32)
    plane[10, 7] = 100
    ghosts = Ghosts(axis=0, step=3, share=0.2, copies=2).of(plane)
    assert {(int(x), int(y)): round(float(ghosts[x, y])) for x, y in np.argwhere(ghosts)} == {
        (7, 7): 20, (13, 7): 20, (4, 7): 10, (16, 7): 10,
    }  # fmt: skip


def test_motion_keeps_the_signal_and_a_jump_moves_what_comes_after_it() -> None:
    plane = np.zeros((20, 20), dtype=np.float32)
    plane[10, 10] = 100
    moved = Artefacts(motion=Ghosts(axis=1, step=4, share=0.05, copies=2)).moved(plane, 0)
    assert moved.sum() == pytest.approx(100, rel=1e-5)
    assert 80 < moved[10, 10] < 100
    jumping = Artefacts(jumps=((3, (2.0, 0.0)), (6, (0.0, -1.0))))
    assert [np.argwhere(jumping.moved(plane, k) > 50).tolist() for k in (2, 3, 5, 6)] == [
        [[10, 10]], [[12, 10]], [[12, 10]], [[10, 9]],
    ]  # fmt: skip


def test_metal_throws_streaks_in_its_own_slices_that_fall_with_distance() -> None:
    star = Streaks(centre=(20, 24, 10), radius_mm=2, amplitude_hu=300, rays=6, phase=0)
    plane = star.of(10, GRID)
    assert plane is not None
    assert abs(float(plane.mean())) < 5
    away = np.hypot(*np.ogrid[-20:20, -24:24])
    rings = [float(np.abs(plane[(away > low) & (away <= low + 3)]).max()) for low in (2, 8, 16)]
    assert 150 > rings[0] > rings[1] > rings[2] > 10
    assert not plane[away <= 2].any()
    assert star.of(16, GRID) is None


def test_pieces_of_one_coil_throw_one_star_and_a_clip_elsewhere_another() -> None:
    near, far = tube([(8, 2, 1)], 0.5, Flow.METAL), tube([(-12, 5, 0)], 1.0, Flow.METAL)
    found = draw_artefacts("CTA", GRID, [CLIP, near, far], np.random.default_rng(0), RATES["hard"])
    assert len(found.streaks) == 2
    np.testing.assert_allclose(found.streaks[1].centre, GRID.index((-12, 5, 0)))
    assert found.streaks[0].radius_mm > found.streaks[1].radius_mm == 1.0


def test_calcium_blooms_in_ct_and_nothing_else_does() -> None:
    stone, artery = tube([(0, 0, 0)], 0.8, Flow.CALCIUM), tube([(0, 0, 0), (0, 0, 9)], 2, Flow.ARTERY)
    bloomed = Artefacts(bloom_mm=0.4).bloomed([stone, artery])
    assert bloomed[0].tube.radii_N.tolist() == pytest.approx([1.2])
    assert bloomed[1] is artery
    assert Artefacts().bloomed([stone, artery]) == [stone, artery]


def test_a_sac_changes_nothing_of_what_is_drawn() -> None:
    sac = tube([(2, 2, 2)], 3, Flow.SAC)
    for modality in ("CTA", "MRA", "MRI T2", "MRI T1post"):
        for seed in range(20):
            without, ill = (
                draw_artefacts(modality, GRID, vessels, np.random.default_rng(seed), RATES["hard"])
                for vessels in ([CLIP], [CLIP, sac])
            )
            assert ill == without
