"""What is said of predictions: areas inside modalities, shortcuts, calibration, thresholds, mistakes, comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from finetune.cli import main
from finetune.evaluation import Others, Predictions, evaluate, mistakes, read
from finetune.evaluation.areas import by_modality
from finetune.evaluation.calibration import bins_of, calibrate, temperature
from finetune.evaluation.compare import OVERALL, SCORE, SITES, WITHIN, compare
from finetune.evaluation.detection import by_site, by_size, read_sizes, threshold_at_specificity
from finetune.evaluation.predictions import UNKNOWN_MODALITIES, UNKNOWN_PATIENTS, of_table
from finetune.evaluation.shortcuts import baselines
from finetune.evaluation.text import probability
from finetune.evaluation.thresholds import best_f1, choose_thresholds, site_confusion, smallest_with_precision
from finetune.metrics import draw_patients
from finetune.report import add_evaluation
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from harmonize.page import Page

SITES_OF_TABLE = ("left", "right", "tip")
LABELS = (*SITES_OF_TABLE, "any")
DRAWS = 200


def table(count: int = 120, *, seed: int = 0, signal: float = 1.5, folds: int = 3, **columns: Any) -> pd.DataFrame:
    """Predictions that know something of three sites, with two series for each patient."""
    generator = np.random.default_rng(seed)
    targets = (generator.random((count, 4)) < 0.2).astype(int)
    targets[:, 3] = targets[:, :3].any(1)
    logits = generator.standard_normal((count, 4)) + signal * (targets - 0.5)
    subjects = [f"P{number // 2}" for number in range(count)]
    return pd.DataFrame(
        {
            "scan_id": [f"1.2.{number:04d}" for number in range(count)],
            "subject": subjects,
            "modality": [("CTA", "MRA", "T2")[number // 2 % 3] for number in range(count)],
            **{label: 1 / (1 + np.exp(-logits[:, column])) for column, label in enumerate(LABELS)},
            **{f"target: {label}": targets[:, column] for column, label in enumerate(LABELS)},
            "fold": [number // 2 % folds for number in range(count)],
            **columns,
        }
    )


def predictions(*arguments: Any, name: str = "run", **options: Any) -> Predictions:
    return of_table(table(*arguments, **options), name=name, where=name)


def of(truth: list[int], scores: list[float], **columns: Any) -> Predictions:
    """One label."""
    rows = {"scan_id": [f"s{number:03d}" for number in range(len(truth))], "any": scores, "target: any": truth}
    return of_table(pd.DataFrame(rows | columns), name="one", where="one")


def test_the_area_inside_modalities_is_the_mean_of_theirs_and_knows_nothing_of_their_prevalence() -> None:
    found = predictions(seed=1)
    truth, scores = found.of("any")
    modalities = np.array(found.modalities_N)
    areas = [roc_auc_score(truth[modalities == name], scores[modalities == name]) for name in ("CTA", "MRA", "T2")]
    within = by_modality(found, draw_patients(found.subjects_N, draws=DRAWS))
    assert within.mean.value == pytest.approx(np.mean(areas), rel=1e-12)
    assert within.mean.interval.low < within.mean.value < within.mean.interval.high
    # Whoever guesses by modality alone is right across modalities, and knows nothing inside of one.
    ill = [1, 1, 1, 0, 0, 0, 0, 1]
    guess = of(ill, [0.8] * 4 + [0.2] * 4, modality=["CTA"] * 4 + ["MRA"] * 4)
    within = by_modality(guess, draw_patients(guess.subjects_N, draws=DRAWS))
    assert within.pooled.value == pytest.approx(0.75)
    assert within.mean.value == 0.5


def test_a_modality_with_one_class_does_not_count_and_is_listed() -> None:
    one = of([0, 1, 0, 0], [0.1, 0.9, 0.2, 0.3], modality=["CTA", "CTA", "PD", "PD"])
    within = by_modality(one, draw_patients(one.subjects_N, draws=DRAWS))
    assert within.mean.value == 1
    assert [group.name for group in within.groups] == ["CTA", "PD"]
    assert np.isnan(within.groups[1].roc.value)


def test_shortcuts_find_what_the_modality_tells_and_nothing_where_it_tells_nothing() -> None:
    generator = np.random.default_rng(0)
    modality = generator.choice(["CTA", "MRA"], 200)
    told = (generator.random(200) < np.where(modality == "CTA", 0.9, 0.1)).astype(int)
    untold = generator.integers(0, 2, 200)
    for truth, low, high in ((told, 0.8, 0.95), (untold, 0.35, 0.6)):
        judged = of(truth.tolist(), generator.random(200).tolist(), modality=modality)
        (only,) = baselines(judged, draw_patients(judged.subjects_N, draws=DRAWS))
        assert only.name == "modality"
        assert low < only.areas["any"].value < high
        assert only.within.value == 0.5


def test_a_baseline_learns_from_series_that_are_not_judged_but_never_from_a_judged_patient() -> None:
    judged = of([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], modality=["CTA", "MRA"] * 2, subject=list("ABCD"), fold=[0] * 4)
    times_ND = draw_patients(judged.subjects_N, draws=DRAWS)

    def others(subjects: str) -> Others:
        count = len(subjects)
        names, kinds = tuple(f"o{n}" for n in range(count)), tuple(["CTA", "MRA"][n % 2] for n in range(count))
        truth = np.array([[n % 2] for n in range(count)])
        return Others(scan_ids_M=names, subjects_M=tuple(subjects), modalities_M=kinds, targets_ML=truth)

    (learned,) = baselines(judged, times_ND, others=others("EFGHIJKLMNOPQRST"))
    assert learned.areas["any"].value == 1
    (blind,) = baselines(judged, times_ND, others=others("ABCDABCDABCDABCD"))
    assert blind.areas["any"].value == 0.5


def test_a_temperature_undoes_what_logits_were_multiplied_by() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, 4000)
    truth = (generator.random(4000) < 1 / (1 + np.exp(-logits))).astype(int)
    sure = 1 / (1 + np.exp(-3 * logits))
    assert temperature(truth, sure) == pytest.approx(3, abs=0.2)
    (found,) = calibrate(of(truth.tolist(), sure.tolist()))
    assert found.before.error > 0.1
    assert found.after is not None
    assert found.after.error < 0.04
    assert found.brier_after < found.brier


def test_the_calibration_error_is_the_distance_between_predicted_and_found() -> None:
    bins = bins_of(np.array([0] * 8 + [1] * 8), np.array([0.2] * 8 + [0.9] * 8))
    assert bins.count_B.tolist() == [8, 8]
    assert bins.error == pytest.approx((0.2 + 0.1) / 2)


def test_thresholds_are_the_smallest_with_the_precision_and_that_of_the_best_f1() -> None:
    truth, scores = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    assert smallest_with_precision(truth, scores, precision=0.75) == 0.2
    assert smallest_with_precision(truth, scores, precision=0.9) == 0.4
    assert np.isnan(smallest_with_precision(truth, -scores, precision=0.9))
    assert best_f1(truth, scores) == 0.2
    assert np.isnan(best_f1(np.zeros(5, dtype=int), scores))


def test_series_are_called_at_thresholds_that_other_folds_chose() -> None:
    # In fold 0 all is 0.5 higher: its own threshold would part it, that of fold 1 calls all.
    shifted = of([0, 0, 1, 1] * 2, [0.6, 0.7, 0.8, 0.9, 0.1, 0.2, 0.3, 0.4], fold=[0] * 4 + [1] * 4)
    (found,) = choose_thresholds(shifted, precision=1.0)
    assert found.honest
    assert found.value == 0.8
    assert (found.confusion.true_positives, found.confusion.false_positives) == (2, 2)
    assert (found.confusion.false_negatives, found.confusion.true_negatives) == (2, 2)
    assert found.confusion.precision == 0.5
    assert found.confusion.f1 == 0.5


def test_the_site_confusion_counts_series_of_one_site_by_the_highest_one() -> None:
    rows = table(3)
    rows[[f"target: {site}" for site in SITES_OF_TABLE]] = [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
    rows[list(SITES_OF_TABLE)] = [[0.1, 0.9, 0.2], [0.1, 0.9, 0.2], [0.9, 0.1, 0.1]]
    assert site_confusion(of_table(rows, name="x", where="x")).tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_what_is_found_is_counted_at_a_tenth_of_false_alarms_by_site_and_size(tmp_path: Path) -> None:
    truth, scores = [0] * 10 + [1] * 4, [*np.linspace(0, 0.9, 10), 0.85, 0.95, 0.05, 0.99]
    judged = of_table(
        pd.DataFrame({"scan_id": [f"s{n:03d}" for n in range(14)], "left": 0.0, "any": scores, "target: any": truth,
                      "target: left": [0] * 10 + [1, 1, 0, 0]}), name="x", where="x")  # fmt: skip
    assert 0.8 < threshold_at_specificity(judged) < 0.85
    groups = {found.name: (found.series, found.sensitivity.value) for found in by_site(judged)}
    assert groups == {"left": (2, 1.0), "at none of the sites": (2, 0.5)}
    (tmp_path / "sizes.csv").write_text(
        "SeriesInstanceUID,location,diameter_mm\ns010,left,2\ns010,tip,4\ns011,left,12\ns012,left,2.5\n"
    )
    sizes = {found.name: (found.series, found.sensitivity.value) for found in
             by_size(judged, read_sizes(tmp_path / "sizes.csv"))}  # fmt: skip
    assert sizes["below 3 mm"] == (1, 0.0)
    assert sizes["3 to 5 mm"] == (1, 1.0)
    assert sizes["10 mm and more"] == (1, 1.0)
    assert sizes["size unknown"] == (1, 1.0)
    (tmp_path / "sizes.csv").write_text("scan_id,diameter_mm\ns010,wide\n")
    with pytest.raises(UserError, match="diameter_mm is no positive number"):
        read_sizes(tmp_path / "sizes.csv")


def test_mistakes_are_the_highest_negatives_and_the_lowest_positives() -> None:
    found = mistakes(of([0, 0, 1, 1, 0], [0.9, 0.1, 0.2, 0.8, 0.5]), count=1)
    assert [(one.scan_id, one.truth, one.probability) for one in found] == [("s000", 0, 0.9), ("s002", 1, 0.2)]


def test_a_tiny_fold_without_positives_is_evaluated_and_its_json_has_nulls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = table(4)
    rows[[f"target: {label}" for label in LABELS]] = 0
    rows.to_parquet(tmp_path / "few.parquet")
    assert main(["evaluate", "--predictions", str(tmp_path / "few.parquet"), "--json", "--draws", "20"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["score"] is None
    assert facts["within_modality_auc"]["mean"]["value"] is None
    assert facts["thresholds"]["labels"]["any"]["threshold"] is None
    assert main(["evaluate", "--predictions", str(tmp_path / "few.parquet"), "--draws", "20"]) == 0
    assert "nan" not in capsys.readouterr().out


def test_the_command_says_the_numbers_under_the_headings_of_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table().to_parquet(tmp_path / "predictions.parquet")
    assert main(["evaluate", str(tmp_path), "--json", "--draws", "50"]) == 0
    facts = json.loads(capsys.readouterr().out)
    truth, scores = predictions().of("any")
    area = roc_auc_score(truth, scores)
    assert facts["roc_and_pr"]["labels"]["any"]["auc"]["value"] == pytest.approx(area)
    assert facts["score"] == pytest.approx(
        (area + np.mean([roc_auc_score(*predictions().of(site)) for site in SITES_OF_TABLE])) / 2
    )
    assert facts["patients"] == 60
    assert main(["evaluate", str(tmp_path), "--draws", "50"]) == 0
    lines = capsys.readouterr().out.splitlines()
    headings = ["Within-modality AUC (any)", "By site and size", "Shortcuts", "Calibration", "Thresholds", "ROC and PR",
                "Most confident mistakes"]  # fmt: skip
    assert [line for line in lines if line in headings] == headings
    assert any(line.split()[0] == "any" and f"{area:.3f}" in line for line in lines if line.strip())


def test_folds_of_a_cross_validation_are_one_table(tmp_path: Path) -> None:
    rows = table()
    for fold, part in rows.groupby("fold"):
        (tmp_path / f"fold_{fold}").mkdir()
        part.to_parquet(tmp_path / f"fold_{fold}" / "predictions.parquet")
    whole = read(tmp_path)
    assert whole.scan_ids_N == tuple(rows["scan_id"])
    assert whole.folds_N == tuple(rows["fold"])
    shuffled = rows.sample(frac=1, random_state=0)
    shuffled.to_parquet(tmp_path / "predictions.parquet")
    assert read(tmp_path).scan_ids_N == whole.scan_ids_N
    rows[:10].to_parquet(tmp_path / "fold_0" / "predictions.parquet")
    (tmp_path / "predictions.parquet").unlink()
    with pytest.raises(UserError, match="stands twice"):
        read(tmp_path)


def test_a_table_of_probabilities_takes_its_truth_from_another(tmp_path: Path) -> None:
    rows = table(12)
    rows[["scan_id", *LABELS]].rename(columns={"scan_id": "series"}).to_csv(tmp_path / "said.csv", index=False)
    truth = rows[["scan_id", "modality"]].rename(columns={"scan_id": "SeriesInstanceUID", "modality": "Modality"})
    for label in LABELS:
        truth[label] = rows[f"target: {label}"]
    truth.sample(frac=1, random_state=0).to_csv(tmp_path / "train.csv", index=False)
    found = read(tmp_path / "said.csv", truth=tmp_path / "train.csv")
    expected = of_table(rows, name="x", where="x")
    np.testing.assert_array_equal(found.targets_NL, expected.targets_NL)
    np.testing.assert_allclose(found.probabilities_NL, expected.probabilities_NL)
    assert found.modalities_N == expected.modalities_N
    assert found.subjects_N == found.scan_ids_N
    assert "each counts as a patient of its own" in found.notes[0]
    for odd, said in ((-1, "is neither 0 nor 1"), ("ill", "is no number")):
        truth.assign(any=[odd, *truth["any"][1:]]).to_csv(tmp_path / "train.csv", index=False)
        with pytest.raises(UserError, match=rf"^--truth .*train\.csv: .*{said}"):
            read(tmp_path / "said.csv", truth=tmp_path / "train.csv")
    truth[1:].to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(UserError, match="says nothing of 1 of the 12 series"):
        read(tmp_path / "said.csv", truth=tmp_path / "train.csv")


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no truth": ({f"target: {label}": None for label in LABELS}, "is not finite"),
    "odd truth": ({"target: any": 2}, "neither 0 nor 1"),
    "no probability": ({"any": 1.5}, "outside of 0 to 1"),
    "NaN": ({"any": float("nan")}, "not finite"),
    "text": ({"any": "high"}, "is no number"),
    "twice": ({"scan_id": "same"}, "stands twice"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_table_that_cannot_be_judged_is_refused_in_one_line(name: str) -> None:
    columns, said = BROKEN[name]
    with pytest.raises(UserError, match=said) as error:
        predictions(12, **columns)
    assert "\n" not in str(error.value)


def test_misspelt_labels_are_answered_with_the_nearest(tmp_path: Path) -> None:
    table(12).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(WrongUse, match=r"--labels rihgt: .*nearest is right"):
        read(tmp_path / "x.parquet", labels=["rihgt"])
    with pytest.raises(WrongUse, match=r"--overall nay: .*nearest is any"):
        read(tmp_path / "x.parquet", overall="nay")
    with pytest.raises(WrongUse, match="no predictions there"):
        read(tmp_path)
    assert read(tmp_path / "x.parquet", labels=["tip", "left"]).overall == "left"


def test_the_difference_of_two_runs_is_narrower_than_their_intervals_because_it_is_paired() -> None:
    first, noise = table(200), np.random.default_rng(3)
    second = first.assign(**{label: np.clip(first[label] + noise.normal(0, 0.02, 200), 0, 1) for label in LABELS})
    found = compare([of_table(rows, name=name, where=name) for name, rows in (("a", first), ("b", second))])
    assert found.measures == (WITHIN, OVERALL, SITES, SCORE)
    a, b = (run.scores[OVERALL] for run in found.runs)
    (difference,) = found.differences
    assert (difference.name, difference.baseline) == ("b", "a")
    paired = difference.differences[OVERALL]
    assert paired.value == pytest.approx(b.value - a.value)
    assert paired.interval.high - paired.interval.low < 0.3 * (a.interval.high - a.interval.low)
    same = compare([of_table(first, name="a", where="a")] * 2).differences[0].differences[SCORE]
    assert (same.value, same.interval.low, same.interval.high) == (0, 0, 0)


def test_runs_are_compared_on_the_series_that_all_predicted_and_truth_must_agree() -> None:
    whole, part = predictions(60, name="whole"), predictions(60, name="part").only([f"1.2.{n:04d}" for n in range(40)])
    found = compare([whole, part], draws=20)
    assert (found.series, found.patients) == (40, 20)
    assert found.notes == ("whole: 20 of its 60 series were not predicted by all runs and are left out.",)
    assert found.differences[0].differences[OVERALL].value == 0
    with pytest.raises(WrongUse, match="says something else than whole of what is true of"):
        compare([whole, predictions(60, seed=1, name="other")])
    with pytest.raises(WrongUse, match="no series was predicted by all"):
        compare([whole.only(["1.2.0000"]), part.only(["1.2.0001"])])
    with pytest.raises(WrongUse, match="other labels"):
        compare([whole, of_table(table(60), name="b", where="b", labels=["left", "any"])])


def test_the_compare_command_names_runs_of_one_name_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("a", 0), ("b", 0)):
        (tmp_path / name / "ft").mkdir(parents=True)
        table(40, seed=seed).to_parquet(tmp_path / name / "ft" / "predictions.parquet")
    folders = [str(tmp_path / name / "ft") for name in "ab"]
    assert main(["compare", *folders, "--json", "--draws", "20"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in facts["runs"]] == ["ft (1)", "ft (2)"]
    assert facts["differences"][0]["differences"][SCORE] == {"value": 0, "low": 0, "high": 0}
    assert main(["compare", *folders, "--draws", "20"]) == 0
    assert "ft (2) - ft (1)" in capsys.readouterr().out
    assert main(["compare", folders[0]]) == 2


def test_everything_of_an_evaluation_follows_from_its_seed() -> None:
    first, second = (evaluate(predictions(), draws=30).facts() for _ in range(2))
    assert json.dumps(first) == json.dumps(second)
    other = evaluate(predictions(), draws=30, seed=1).facts()
    assert other["score"] == first["score"]
    assert other["within_modality_auc"]["mean"]["low"] != first["within_modality_auc"]["mean"]["low"]


def test_a_run_of_an_older_version_takes_patients_and_modalities_from_the_corpus(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(__file__).parent / "fixtures" / "v0_1_0"
    run, corpus = folder / "finetuned", Corpus.open(folder / "corpus")
    alone = read(run)
    assert alone.modalities_N is None
    assert alone.notes == (UNKNOWN_PATIENTS, UNKNOWN_MODALITIES)
    assert main(["evaluate", str(run), "--corpus", str(corpus.path), "--json", "--draws", "10"]) == 0
    facts = json.loads(capsys.readouterr().out)
    rows = corpus.scans[corpus.scans["scan_id"].isin(alone.scan_ids_N)]
    assert facts["notes"] == []
    assert facts["patients"] == rows["subject"].nunique()
    assert set(facts["within_modality_auc"]["modalities"]) == set(rows["modality"])
    assert set(facts["shortcuts"]) == {"modality", "geometry", "intensities"}


def test_text_of_a_table_is_only_text_in_a_page(tmp_path: Path) -> None:
    rows = table(40, modality="<b>CTA</b>$x_{$").rename(
        columns={"tip": "<script>tip", "target: tip": "target: <script>tip"}
    )
    found = evaluate(of_table(rows, name="x", where="x"), draws=20)
    page = Page("x")
    add_evaluation(page, found)
    assert "<script" not in page.html()
    assert "<b>CTA" not in page.html()
    assert "&lt;script&gt;tip" in page.html()


def test_small_probabilities_keep_their_digits() -> None:
    told = [probability(value) for value in (0.5374, 0.1, 0.0123456, 0.00087, 0.0, float("nan"))]
    assert told == ["0.537", "0.100", "0.0123", "0.00087", "0", "-"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("evaluate", "--predictions", "nowhere.csv"), "nowhere.csv: no such file"),
        (("evaluate", "--predictions", "nowhere.parquet"), "nowhere.parquet: no such file"),
        (("evaluate", "nowhere"), "nowhere: no such file"),
        (("evaluate", "--predictions", "there.csv", "--truth", "nowhere.csv"), "--truth nowhere.csv: no such file"),
        (("compare", "nowhere", "nowhere2"), "nowhere: no such file"),
        (("report", "nowhere"), "nowhere: no such folder"),
        (("report", "nowhere", "--sizes", "nowhere.csv"), "--sizes nowhere.csv: no such file"),
        (("predict", "nowhere", "."), "nowhere: no such folder; give the --out of a finished `finetune train`"),
    ],
)
def test_what_is_not_there_is_wrong_use(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.csv").write_text("scan_id,any\na,0.5\n")
    assert main(list(words)) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {said}")
    assert shown.count("\n") == 1


def test_what_is_there_and_damaged_is_no_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    assert main(["compare", str(tmp_path / "p.parquet")]) == 1
    assert "damaged, or no table of predictions" in capsys.readouterr().err
