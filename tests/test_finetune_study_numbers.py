"""What a study says of its predictions: planted differences, pairs, intervals, and what could be seen beforehand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from test_finetune_study import TOY

from finetune.evaluation.compare import OVERALL, SITES, WITHIN
from finetune.study import StudyConfig, write_results
from finetune.study.compared import Compared, compare_at
from finetune.study.findings import HARMS, HELPS, UNSHOWN, sentences, verdict
from finetune.study.pairs import ALL, detect, read_pairs, site_scores
from finetune.study.results import BEGIN, END
from finetune.study.seeds import mean_over_seeds
from finetune.study.table import INSIDE, OUTSIDE, PAIRS, SCHEMA, TARGETS, Study, cell_path, gather, write_cell
from harmonize.errors import UserError, WrongUse
from harmonize.labels import LABELS, LOCATIONS, PRESENT
from harmonize.phantom.rsna.tables import COUNTERFACTUALS
from headspark.config import from_plain, to_plain

MODALITIES = ("CTA", "MRA", "T2w", "T1post")


def drawn_scores(
    rng: np.random.Generator, ill_N: NDArray[np.int64], *, strength: float, shared_N: NDArray[np.float64], own: float
) -> NDArray[np.float64]:
    """Probabilities whose normal scores differ by `strength` between ill and healthy, and share `shared_N`."""
    noise_N = np.sqrt(1 - own**2) * shared_N + own * rng.normal(size=len(ill_N))
    return np.asarray(norm.cdf(strength * ill_N - strength / 2 + noise_N), np.float64)


def rows_of(ill_N: NDArray[np.int64], scores_N: NDArray[np.float64], split: str, **more: Any) -> pd.DataFrame:
    count = len(ill_N)
    rows = {
        "split": split, "scan_id": [f"{split}-{number:03d}" for number in range(count)],
        "subject": [f"p{number}" for number in range(count)],
        "modality": [MODALITIES[number // 2 % 4] for number in range(count)],
        "pair": None, "diameter_mm": np.where(ill_N == 1, 4.0, np.nan), "spacing_mm": 1.0,
        **dict.fromkeys(LABELS, scores_N.astype(np.float32)), **dict.fromkeys(TARGETS, ill_N), **more,
    }  # fmt: skip
    return pd.DataFrame(rows)


def planted(
    out: Path, strengths: dict[str, float], *, seed: int = 0, series: int = 300, own: float = 0.6
) -> StudyConfig:
    """Predictions of a study in which arms tell ill from healthy by as much as is said; 3 seeds, 32 labelled series."""
    plain = {**TOY, "design": {"labels": [32], "seeds": [0, 1, 2], "probes": False, "draws": 300}}
    config, rng = from_plain(StudyConfig, plain), np.random.default_rng(seed)
    for split, count in ((INSIDE, series), (OUTSIDE, series // 3)):
        ill_N, shared_N = np.arange(count) % 2, rng.normal(size=count)
        for cell in config.cells():
            scores_N = drawn_scores(rng, ill_N, strength=strengths[cell.arm], shared_N=shared_N, own=own)
            path = cell_path(out, cell)
            before = [pd.read_parquet(path)[SCHEMA.names[3:]]] if path.is_file() else []
            write_cell(out, cell, pd.concat([*before, rows_of(ill_N, scores_N, split)]))
    return config


def at(study: Study, split: str = INSIDE) -> Compared:
    found = compare_at(study, 32, split)
    assert found is not None
    return found


def test_a_planted_difference_is_found_and_one_that_is_not_there_is_not(tmp_path: Path) -> None:
    config = planted(tmp_path / "helps", {"scratch": 0.5, "lp_ft": 1.2})
    one = at(gather(config, tmp_path / "helps"))
    assert verdict(one.difference("lp_ft")) == HELPS
    true = norm.cdf(1.2 / np.sqrt(2)) - norm.cdf(0.5 / np.sqrt(2))
    assert one.difference("lp_ft").interval.low < true < one.difference("lp_ft").interval.high
    config = planted(tmp_path / "harms", {"scratch": 1.2, "lp_ft": 0.5})
    assert verdict(at(gather(config, tmp_path / "harms")).difference("lp_ft")) == HARMS
    config = planted(tmp_path / "same", {"scratch": 0.8, "lp_ft": 0.8})
    study = gather(config, tmp_path / "same")
    same = at(study)
    assert verdict(same.difference("lp_ft")) == UNSHOWN
    assert verdict(same.difference("lp_ft", OVERALL)) == UNSHOWN
    text = " ".join(sentences(study, [same], []))
    assert text.startswith(
        "This study does not show that pretraining changes within-modality AUC in any of 1 comparisons."
    )
    assert "no difference is shown (a benefit above" in text


def test_the_intervals_are_those_of_pairs(tmp_path: Path) -> None:
    config = planted(tmp_path, {"scratch": 0.8, "lp_ft": 0.8}, own=0.3)
    one = at(gather(config, tmp_path))
    width = {arm: one.score(arm).interval.high - one.score(arm).interval.low for arm in ("scratch", "lp_ft")}
    paired = one.difference("lp_ft").interval
    assert paired.high - paired.low < 0.6 * np.hypot(width["scratch"], width["lp_ft"])
    assert one.score("lp_ft", WITHIN).value == pytest.approx(np.mean(list(one.by_seed[WITHIN]["lp_ft"].values())))


def test_sites_are_the_mean_of_their_areas_and_probes_have_none(tmp_path: Path) -> None:
    plain = {**TOY, "design": {"labels": [32], "seeds": [0, 1], "probes": True, "draws": 100}}
    config, rng, count = from_plain(StudyConfig, plain), np.random.default_rng(2), 120
    ill_N = np.arange(count) % 2
    site_N = rng.permutation(count) % 12  # the thirteenth is ill twice, too seldom to count
    site_N[[1, 3]] = 12
    truth_NS = (site_N[:, None] == np.arange(13)) & (ill_N[:, None] == 1)
    for cell in config.cells():
        seen = 1.5 * (cell.arm == "lp_ft")  # which arm alone knows where, and none whether
        scores_NS = norm.cdf(seen * truth_NS + rng.normal(size=(count, 13)))
        rows = rows_of(ill_N, norm.cdf(rng.normal(size=count)), INSIDE)
        for number, site in enumerate(LOCATIONS):
            rows[site] = np.nan if cell.arm.startswith("probe") else scores_NS[:, number]
            rows[f"target: {site}"] = truth_NS[:, number].astype(int)
        write_cell(tmp_path, cell, rows)
    study = gather(config, tmp_path)
    one = at(study)
    assert verdict(one.difference("lp_ft", SITES)) == HELPS
    assert verdict(one.difference("lp_ft", WITHIN)) == UNSHOWN
    own = study.rows[(study.rows["arm"] == "lp_ft") & (study.rows["seed"] == 1)]
    sacs = {site: int(own[f"target: {site}"].sum()) for site in LOCATIONS}
    assert sacs[LOCATIONS[12]] == 2
    counted = [site for site in LOCATIONS if sacs[site] >= 5]
    assert list(one.sites) == counted
    areas = [roc_auc_score(own[f"target: {site}"], own[site]) for site in counted]
    assert one.by_seed[SITES]["lp_ft"][1] == pytest.approx(np.mean(areas))
    probes = [arm for arm in study.arms if arm.startswith("probe")]
    assert probes
    assert all(np.isnan(one.score(arm, SITES).value) for arm in probes)
    said = " ".join(sentences(study, [one], []))
    assert (
        "Pretraining helped in 1 (lp_ft with 32 labelled series, in distribution) of 1 comparisons of mean AUC of"
        in said
    )
    assert "nan" not in said
    write_results(tmp_path)  # draws it all


@pytest.mark.parametrize(("spread", "least"), [(0.0, 0.91), (0.06, 0.9), (0.5, 0.78)])
def test_an_interval_of_a_mean_over_seeds_holds_the_truth_as_often_as_it_says(spread: float, least: float) -> None:
    rng, held, widths = np.random.default_rng(5), [], []
    for _ in range(400):
        of_patients_N, own_SN = rng.normal(size=200), rng.normal(size=(3, 200))
        values_SN = of_patients_N + 0.7 * own_SN + spread * rng.normal(size=(3, 1))
        times_ND = rng.multinomial(200, np.full(200, 1 / 200), 200).T
        _, drawn_D = mean_over_seeds(values_SN.mean(1), values_SN @ times_ND / 200, seed=int(rng.integers(1 << 30)))
        low, high = np.quantile(drawn_D, [0.025, 0.975])
        held.append(low < 0 < high)
        widths.append(high - low)
    assert least < np.mean(held) < 0.98
    if not spread:  # no wider than it must be: what seeds and patients have in common by chance counts once
        assert np.median(widths) < 1.1 * 2 * 1.96 * np.sqrt((1 + 0.49 / 3) / 200)


def test_the_page_is_computed_from_the_predictions_alone(tmp_path: Path) -> None:
    config = planted(tmp_path / "study", {"scratch": 0.5, "lp_ft": 1.2})
    gather(config, tmp_path / "study")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(tmp_path / "study" / "predictions.parquet", alone)
    docs = tmp_path / "page.md"
    docs.write_text(f"# Mine\n\nbefore\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    said = write_results(alone, docs=docs)
    assert said[0].startswith("Pretraining helped in")
    page, numbers = (alone / "study.html").read_text(), json.loads((alone / "study.json").read_text())
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page
    assert numbers["study"] == json.loads(json.dumps(to_plain(config)))
    found = {(one["labelled"], one["split"]): one for one in numbers["compared"]}
    assert found[32, INSIDE]["differences"][0]["differences"][WITHIN]["low"] > 0
    text = docs.read_text()
    assert text.startswith(f"# Mine\n\nbefore\n\n{BEGIN}\n\nPretraining helped in")
    for name in ("page-presence.png", "page-sites.png"):
        assert f"(images/{name})" in text
        assert (tmp_path / "images" / name).read_bytes().startswith(b"\x89PNG")
    assert text.endswith(f"{END}\n\nafter\n")
    assert "old" not in text
    before = text, page
    write_results(alone, docs=docs)
    assert (docs.read_text(), (alone / "study.html").read_text()) == before, "the same predictions, the same bytes"
    with pytest.raises(WrongUse, match="no such file"):
        write_results(alone, docs=tmp_path / "none.md")


def test_the_documentation_says_what_the_published_predictions_say(tmp_path: Path) -> None:
    docs = Path(__file__).parents[1] / "docs"
    shutil.copy(docs / "benchmarks" / "transfer" / "predictions.parquet", tmp_path)
    page = tmp_path / "transfer.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    write_results(tmp_path, docs=page)
    assert page.read_text().rstrip() in (docs / "transfer.md").read_text()


def test_cells_that_were_asked_about_other_series_are_refused(tmp_path: Path) -> None:
    config = planted(tmp_path, {"scratch": 0.5, "lp_ft": 0.5}, series=30)
    cell = config.cells()[0]
    rows = pd.read_parquet(cell_path(tmp_path, cell))
    write_cell(tmp_path, cell, rows[1:])
    with pytest.raises(UserError, match="different series"):
        gather(config, tmp_path)
    rows.loc[0, f"target: {PRESENT}"] = 1 - rows.loc[0, f"target: {PRESENT}"]
    write_cell(tmp_path, cell, rows)
    with pytest.raises(UserError, match="disagree about what is true"):
        gather(config, tmp_path)


def test_pairs_say_whether_a_sac_is_seen_by_size_and_modality(tmp_path: Path) -> None:
    plain = {**TOY, "design": {"labels": [32], "seeds": [0, 1], "probes": False, "draws": 200}}
    config, rng, pairs = from_plain(StudyConfig, plain), np.random.default_rng(3), 60
    ill_N = np.tile([1, 0], pairs)
    names = np.repeat([f"pair-{number:02d}" for number in range(pairs)], 2)
    small_N = np.repeat(np.arange(pairs) % 2 == 0, 2)
    sizes_N = np.where(ill_N == 1, np.where(small_N, 2.5, 6.0), np.nan)
    for cell in config.cells():
        seen_N = ~small_N & (cell.arm == "lp_ft")  # only large sacs, and only by one arm
        head_N = np.repeat(rng.normal(size=pairs), 2)
        scores_N = norm.cdf(head_N + 3 * ill_N * seen_N + 0.5 * rng.normal(size=2 * pairs))
        rows = rows_of(ill_N, scores_N, PAIRS, pair=names, diameter_mm=sizes_N)
        write_cell(tmp_path, cell, rows[:-1])  # the last one has no partner
    found = {(one.arm, one.group): one for one in detect(gather(config, tmp_path))}
    assert found["lp_ft", ALL].pairs == pairs - 1
    assert found["lp_ft", "5 to 7 mm"].share.value > 0.95
    assert found["lp_ft", "5 to 7 mm"].share_more.interval.low > 0
    assert found["lp_ft", "5 to 7 mm"].logits.interval.low > 0
    for arm, group in (("scratch", "5 to 7 mm"), ("lp_ft", "below 3 mm")):
        assert found[arm, group].share.interval.low < 0.5 < found[arm, group].share.interval.high
    assert {"CTA", "MRA", "T2w", "T1post"} <= {group for _, group in found}


def test_a_sac_that_is_seen_counts_where_another_place_is_higher(tmp_path: Path) -> None:
    plain = {**TOY, "design": {"labels": [32], "seeds": [0], "probes": True, "draws": 100}}
    config, rng, pairs = from_plain(StudyConfig, plain), np.random.default_rng(4), 30
    ill_N, names = np.tile([1, 0], pairs), np.repeat([f"pair-{number:02d}" for number in range(pairs)], 2)
    site_N = np.repeat(rng.integers(13, size=pairs), 2)
    for cell in config.cells():
        rows = rows_of(ill_N, np.full(2 * pairs, 0.9), PAIRS, pair=names)  # presence: a false alarm elsewhere
        base_N = np.repeat(rng.uniform(0.3, 0.4, size=pairs), 2)
        for number, site in enumerate(LOCATIONS):
            here_N = (site_N == number) & (ill_N == 1)
            rows[f"target: {site}"] = here_N.astype(int)
            rows[site] = base_N + 0.2 * here_N * (cell.arm == "lp_ft")
            rows.loc[(site_N + 1) % 13 == number, site] = 0.9  # a false alarm in both
            rows.loc[((site_N + 2) % 13 == number) & (ill_N == 1), site] = 0.1  # falls with the sac
            if cell.arm.startswith("probe"):
                rows[site] = np.nan
        write_cell(tmp_path, cell, rows)
    found = {(one.arm, one.group): one for one in detect(gather(config, tmp_path))}
    assert found["lp_ft", ALL].share.value == 1
    assert found["scratch", ALL].share.value == 0.5
    assert found["lp_ft", ALL].share_more.value == 0.5
    probes = [found[arm, ALL] for arm, group in found if arm.startswith("probe") and group == ALL]
    assert {one.share.value for one in probes} == {0.5}
    assert all(np.isnan(one.share_more.value) for one in probes), "presence is not compared with a site"


def test_of_several_sites_the_highest_counts() -> None:
    rows = pd.DataFrame({"arm": "a", "seed": 0, "scan_id": ["x", "y"], **{site: [0.1, 0.2] for site in LOCATIONS}})
    rows[LOCATIONS[3]], rows[LOCATIONS[5]], rows[LOCATIONS[7]] = [0.3, 0.4], [0.6, 0.5], [0.9, 0.9]
    sites_PL = np.isin(np.arange(13), (3, 5))[None]
    assert site_scores(rows, "a", [0], sites_PL, np.array([0])).tolist() == [[0.6]]
    assert site_scores(rows, "a", [0], sites_PL, np.array([1])).tolist() == [[0.5]]


def test_the_pairs_of_a_tree_are_read(tmp_path: Path) -> None:
    path = tmp_path / COUNTERFACTUALS
    path.write_text("pair,with_sac,without_sac,location\n0,a,b,Basilar Tip\n1,c,d,Basilar Tip\n")
    assert read_pairs(path) == {"a": "0", "b": "0", "c": "1", "d": "1"}
    path.write_text("pair,with_sac,without_sac\n0,a,b\n1,c,a\n")
    with pytest.raises(UserError, match="stands in two pairs"):
        read_pairs(path)
