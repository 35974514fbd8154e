"""What the phantom's series are, without a voxel: nothing but the picture tells who has an aneurysm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from harmonize import phantom
from harmonize.errors import WrongUse
from harmonize.labels import LOCATIONS, PRESENT
from harmonize.phantom.rsna import draw_grid
from harmonize.phantom.rsna.options import TreeOptions
from harmonize.phantom.rsna.plan import SeriesPlan, plan_series, planned
from harmonize.phantom.rsna.prevalence import MODALITIES, Prevalence, read_prevalence

COMMONEST = "Anterior Communicating Artery"


def modality(series: SeriesPlan) -> Hashable:
    return series.modality


def layout(series: SeriesPlan) -> Hashable:
    return series.multiframe, series.segmented


def plans(count: int, seed: int, prevalence: Prevalence | None = None) -> list[SeriesPlan]:
    options = {} if prevalence is None else {"prevalence": prevalence}
    return [plan_series(index, seed=seed, **options) for index in range(count)]


def lookup_auc(series: list[SeriesPlan], key: Callable[[SeriesPlan], Hashable], target: list[bool]) -> float:
    """ROC area of a table that gives each value of `key` the share of `target` in it: it has seen all answers."""
    total, hits = Counter(map(key, series)), Counter(key(one) for one, hit in zip(series, target, strict=True) if hit)
    return float(roc_auc_score(target, [hits[key(one)] / total[key(one)] for one in series]))


@pytest.mark.parametrize("seed", [0, 7, 2025])
def test_the_modality_does_not_tell_who_has_an_aneurysm(seed: int) -> None:
    series = plans(600, seed)
    assert 0.45 <= lookup_auc(series, modality, [one.ill for one in series]) <= 0.55


def test_neither_modality_nor_layout_tells_where_the_aneurysms_are() -> None:
    """At sites with so many aneurysms that a table which has seen all answers gains little by chance."""
    series = plans(6000, 0)
    targets = {location: [location in one.locations for one in series] for location in LOCATIONS}
    targets = {name: target for name, target in targets.items() if sum(target) >= 300}
    assert len(targets) >= 5
    for target in (targets | {PRESENT: [one.ill for one in series]}).values():
        assert lookup_auc(series, modality, target) <= 0.55
        assert lookup_auc(series, layout, target) <= 0.55


def test_the_modality_hardly_tells_the_commonest_site_of_a_few_hundred_series() -> None:
    areas = [
        lookup_auc(series, modality, [COMMONEST in one.locations for one in series])
        for series in (plans(600, seed) for seed in range(5))
    ]
    assert 0.45 <= np.mean(areas) <= 0.55


@pytest.mark.parametrize("count", [2, 4, 10, 240])
def test_half_of_the_series_are_ill_and_half_of_each_modality(count: int) -> None:
    series = plans(count, 3)
    for name in {one.modality for one in series}:
        ill = [one.ill for one in series if one.modality == name]
        assert sum(ill) == len(ill) / 2


def test_every_modality_has_masks_and_files_of_many_frames_in_ill_and_healthy() -> None:
    kinds = {(one.modality, one.ill, one.multiframe, one.segmented) for one in plans(600, 0)}
    assert len(kinds) == len(MODALITIES) * 2 * 2 * 2
    early = plans(32, 5)
    assert {one.modality for one in early if one.multiframe} == set(MODALITIES)
    assert Counter(one.modality for one in plans(8, 5) if one.segmented) == Counter(dict.fromkeys(MODALITIES, 1))


def test_modalities_come_in_about_the_competitions_shares() -> None:
    counts = Counter(one.modality for one in plans(1600, 0))
    competition = {"CTA": 1804, "MRA": 1252, "MRI T2": 982, "MRI T1post": 310}
    assert {name: counts[name] / 1600 for name in counts} == pytest.approx(
        {name: count / 4348 for name, count in competition.items()}, abs=0.06
    )


def table(folder: Path, text: str) -> Path:
    (folder / "table.csv").write_text(text, encoding="utf-8")
    return folder / "table.csv"


def test_a_table_states_how_common_aneurysms_are_and_where(tmp_path: Path) -> None:
    weights = ",".join("1" if name in ("Basilar Tip", COMMONEST) else "0" for name in LOCATIONS)
    rows = f"MRI T2,0.1,{weights}\nMRA,0.9,{weights}\n"
    stated = read_prevalence(table(tmp_path, f"modality,prevalence,{','.join(LOCATIONS)}\n{rows}"))
    series = plans(800, 0, stated)
    shares = {name: np.mean([one.ill for one in series if one.modality == name]) for name in MODALITIES}
    assert shares == pytest.approx({"CTA": 0.5, "MRA": 0.9, "MRI T2": 0.1, "MRI T1post": 0.5}, abs=0.03)
    assert {site for one in series if one.modality == "MRA" for site in one.sites} == {"Basilar Tip", COMMONEST}
    assert len({site for one in series if one.modality == "CTA" for site in one.sites}) == len(LOCATIONS)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("modality\nCTA\n", "--prevalence .*: no column prevalence; it needs modality, prevalence"),
        ("modality,prevalence\n", "no row below its header; give it a row a modality"),
        ("modality,prevalence\nCTA,0.5\nCTA,0.4\n", "CTA has several rows"),
        ("modality,prevalence,hospital\nCTA,1,\nCTA,1,north\nCTA,0,north\n", "CTA of north has several rows; keep one"),
        ("modality,prevalence\nCT,0.5\n", "'CT' is no modality; use CTA, MRA, MRI T2, MRI T1post"),
        ("modality,prevalence\nCTA,50%\n", "the prevalence of CTA is '50%'; give a number from 0 to 1"),
        ("modality,prevalence\nCTA,1.5\n", "the prevalence of CTA is '1.5'"),
        ("modality,prevalence\nMRA,\n", "the prevalence of MRA is ''"),
        ("modality,prevalence,Basilar Tip\nMRA,0.5,1\n", "names some sites and not 'Left Infraclinoid"),
        ("modality,prevalence,Basilar\nMRA,0.5,1\n", "its column 'Basilar' is no site"),
        (f"modality,prevalence,{','.join(LOCATIONS)}\nMRA,0.5{',0' * 13}\n", "the sites of MRA need weights"),
        (f"modality,prevalence,{','.join(LOCATIONS)}\nMRA,0.5{',-1' * 13}\n", "the sites of MRA need weights"),
        ("", "--prevalence .*: empty; save it as CSV again"),
    ],
)
def test_a_table_that_says_nothing_is_refused_in_one_line(tmp_path: Path, text: str, fault: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(WrongUse, match=fault) as refusal:
        phantom.write("rsna", tmp_path / "raw", scans=1, size=24, seed=0, prevalence=path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert not (tmp_path / "raw").exists()


def test_a_table_that_is_not_there_or_not_wanted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="cannot be read"):
        read_prevalence(tmp_path / "none.csv")
    path = table(tmp_path, "modality,prevalence\nCTA,1\n")
    with pytest.raises(WrongUse, match="does nothing with --source tcia"):
        phantom.write("tcia", tmp_path / "raw", scans=1, size=24, seed=0, prevalence=path)


@pytest.mark.parametrize(
    ("text", "options", "fault"),
    [
        (
            "modality,prevalence\nCTA,1\n",
            {"counterfactuals": True},
            "does nothing with --counterfactuals, of which half are ill, but for weights of sites",
        ),
        (
            "modality,prevalence,hospital\nCTA,1,\nCTA,1,island\n",
            {},
            "its rows of island do nothing without --hospital island; delete them",
        ),
        (
            "modality,prevalence,hospital\nCTA,1,west\nCTA,1,north\n",
            {"hospital": "west"},
            "its rows of north do nothing with --hospital west; delete them",
        ),
    ],
)
def test_what_of_a_table_would_change_nothing_is_refused(
    tmp_path: Path, text: str, options: dict[str, Any], fault: str
) -> None:
    asked: dict[str, Any] = {"scans": 2, "size": 24, "seed": 0, "difficulty": "hard", **options}
    with pytest.raises(WrongUse, match=f"^--prevalence.*: {fault}") as refusal:
        phantom.write("rsna", tmp_path / "raw", prevalence=table(tmp_path, text), **asked)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "raw").exists()


def test_pairs_have_their_sacs_where_a_table_says(tmp_path: Path) -> None:
    weights = ",".join(str(int(name == "Basilar Tip")) for name in LOCATIONS)
    rows = f"CTA,0.5,{weights},\nCTA,0.5,{weights[:-1]}1,west\n"
    stated = read_prevalence(table(tmp_path, f"modality,prevalence,{','.join(LOCATIONS)},hospital\n{rows}"))
    assert stated.states_sites
    options = TreeOptions(difficulty="hard", counterfactuals=True, prevalence=stated)
    pairs = [planned(index, seed=0, options=options) for index in range(64)]
    east = {one.sites for one in pairs if (one.modality, one.hospital) == ("CTA", "east")}
    assert east == {("Basilar Tip",)}
    assert len({one.sites for one in pairs if (one.modality, one.hospital) == ("CTA", "west")}) == 2
    assert not read_prevalence(table(tmp_path, "modality,prevalence,hospital\nCTA,1,west\n")).states_sites


def test_ill_and_healthy_heads_are_scanned_alike() -> None:
    """The size and place of an image, which fit around aneurysms, are the same where there are none."""
    for series in plans(32, 0):
        ill, healthy = (draw_grid(replace(series, ill=ill), 96, 2.0, np.random.default_rng(0)) for ill in (True, False))
        assert ill.shape == healthy.shape
        np.testing.assert_array_equal(ill.affine, healthy.affine)


def test_a_table_makes_the_tree(tmp_path: Path) -> None:
    path = table(tmp_path, "modality,prevalence\nCTA,1\n")
    (root,) = phantom.write("rsna", tmp_path / "raw", scans=2, size=24, seed=0, prevalence=path)
    train, points = pd.read_csv(root / "train.csv"), pd.read_csv(root / "train_localizers.csv")
    assert train["Modality"].tolist() == ["CTA", "CTA"]
    assert train[PRESENT].tolist() == [1, 1]
    assert set(points["SeriesInstanceUID"]) == set(train["SeriesInstanceUID"])
