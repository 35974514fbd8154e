"""`finetune probe`: planted signals of known strength, shuffled labels, curves, gaps, differences, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from test_ssl_embed import PREPROCESSING, make_encoder

from finetune.cli import main
from finetune.evaluation.measures import Kind
from finetune.probing import Card, Question, Row, judge, read_question
from finetune.probing.fit import few
from harmonize.corpus import Corpus
from harmonize.errors import WrongUse
from headspark.hub import save_encoder

PATIENTS, FEATURES = 160, 6
DRAWS = 200
AREA = 0.85
DISTANCE = 2**0.5 * NormalDist().inv_cdf(AREA)
"""Between the means of two normal distributions of deviation 1 whose ROC area is `AREA`."""


def question(truth_NL: np.ndarray, kind: Kind, labels: str = "a", **groups: tuple[str | None, ...]) -> Question:
    """Two scans of each patient, who lie in five folds."""
    count = len(truth_NL)
    return Question(
        kind=kind,
        labels=tuple(labels),
        keys_N=tuple(("lab", f"scan-{number}") for number in range(count)),
        subjects_N=tuple(f"patient-{number // 2}" for number in range(count)),
        folds_N=tuple(number // 2 % 5 for number in range(count)),
        truth_NL=truth_NL,
        groups=groups,
    )


def planted(seed: int = 0, scans: int = 2 * PATIENTS) -> tuple[np.ndarray, np.ndarray]:
    """A label of 0 and 1, and features the first of which tells it with an ROC area of `AREA`."""
    rng = np.random.default_rng(seed)
    truth_N = np.repeat(rng.permutation(np.arange(scans // 2) % 2), 2)
    features_NE = rng.normal(size=(scans, FEATURES))
    features_NE[:, 0] += DISTANCE * truth_N
    return truth_N[:, None].astype(float), features_NE


def row(card: Card, encoder: str, **wanted: object) -> Row:
    defaults = {"probe": "linear", "labels": "all", "group": "all", "metric": card.facts["headline"]}
    found = [
        one
        for one in (*card.rows, *card.differences)
        if one.encoder == encoder and all(getattr(one, key) == value for key, value in (defaults | wanted).items())
    ]
    assert len(found) == 1
    return found[0]


def test_a_planted_signal_lies_within_its_interval() -> None:
    truth_NL, features_NE = planted()
    noise_NE = np.random.default_rng(1).normal(size=features_NE.shape)
    card = judge(
        question(truth_NL, "binary"), {"random": noise_NE, "good": features_NE}, shots=(5, 20, 1000), draws=DRAWS
    )
    good = row(card, "good")
    assert good.low < AREA < good.high  # type: ignore[operator]
    assert good.high - good.low < 0.15  # type: ignore[operator]
    noise = row(card, "random")
    assert noise.low < 0.5 < noise.high  # type: ignore[operator]
    gain = row(card, "good - random")
    assert gain.low < AREA - 0.5 < gain.high  # type: ignore[operator]
    assert gain.value == pytest.approx(good.value - noise.value)  # type: ignore[operator]
    assert 0.5 < row(card, "good", probe="knn").value < AREA  # type: ignore[operator]
    curve = [row(card, "good", labels=count).value for count in (5, 20, "all")]
    assert curve == sorted(curve)  # type: ignore[type-var]
    assert card.notes == ("curves without 1000 labels: the other folds have 128 patients",)


def test_shuffled_labels_give_an_interval_that_holds_half() -> None:
    """Few patients: there, areas over pairs of several folds would lie below 0.5."""
    low, high, values = [], [], []
    for seed in range(10):
        truth_NL, features_NE = planted(seed, scans=80)
        order = np.random.default_rng(seed).permutation(40)
        shuffled_NL = truth_NL.reshape(40, 2, 1)[order].reshape(80, 1)
        found = row(judge(question(shuffled_NL, "binary"), {"a": features_NE}, shots=(), draws=DRAWS), "a")
        low.append(found.low), high.append(found.high), values.append(found.value)
    # Nine in ten hold it with so few: a bootstrap of what was predicted knows nothing of how the probes would vary.
    assert sum(one < 0.5 < other for one, other in zip(low, high, strict=True)) >= 7
    assert np.mean(values) == pytest.approx(0.5, abs=0.1)


def test_numbers_are_told_as_well_as_they_can_be() -> None:
    rng = np.random.default_rng(0)
    features_NE = rng.normal(size=(2 * PATIENTS, FEATURES))
    age_NL = 50 + 10 * features_NE[:, [0]] + 10 * rng.normal(size=(2 * PATIENTS, 1))  # R2 of 0.5 at best
    card = judge(question(age_NL, "regression"), {"a": features_NE}, shots=(10,), draws=DRAWS)
    explained, error = row(card, "a"), row(card, "a", metric="mae")
    assert explained.low < 0.5 < explained.high  # type: ignore[operator]
    assert error.low < 10 * (2 / np.pi) ** 0.5 < error.high  # type: ignore[operator]
    assert row(card, "a", labels=10).value < explained.value  # type: ignore[operator]


def test_a_gap_between_groups_is_told_with_its_interval() -> None:
    truth_NL, features_NE = planted()
    of_sex = tuple("FM"[number // 2 % 2] for number in range(len(truth_NL)))
    blind = np.array(of_sex) == "M"
    features_NE[blind, 0] -= DISTANCE * truth_NL[blind, 0]  # nothing tells the label of these
    rare = tuple("x" if number < 4 else "y" for number in range(len(truth_NL)))
    card = judge(question(truth_NL, "binary", sex=of_sex, scanner=rare), {"a": features_NE}, shots=(), draws=DRAWS)
    women, men = row(card, "a", group="sex: F"), row(card, "a", group="sex: M")
    assert women.low < AREA < women.high  # type: ignore[operator]
    assert men.low < 0.5 < men.high  # type: ignore[operator]
    gap = row(card, "a", group="sex: F - others")
    assert gap.value == pytest.approx(women.value - men.value)  # type: ignore[operator]
    assert 0 < gap.low < AREA - 0.5 < gap.high  # type: ignore[operator]
    assert women.n == men.n == PATIENTS
    assert "scanner: nothing of x: fewer than 10 scans" in card.notes


def test_classes_and_several_labels() -> None:
    truth_NL, features_NE = planted()
    three_NL = np.stack([truth_NL[:, 0], 1 - truth_NL[:, 0], 0 * truth_NL[:, 0]], axis=1)
    card = judge(question(three_NL, "multilabel", "abc"), {"a": features_NE}, shots=(), draws=DRAWS)
    assert row(card, "a", label="a").low < AREA < row(card, "a", label="a").high  # type: ignore[operator]
    assert row(card, "a", label="mean").value == pytest.approx(
        np.mean([row(card, "a", label=label).value for label in "ab"])  # type: ignore[arg-type]
    )
    assert card.notes == ("c: not asked about: a fold's training part has 0 patients of one side",)
    classes_NL = np.eye(3)[np.repeat(np.arange(PATIENTS) % 3, 2)]
    features_NE[:, :3] = np.random.default_rng(0).normal(size=(len(classes_NL), 3)) + 6 * classes_NL
    found = judge(question(classes_NL, "multiclass", "abc"), {"a": features_NE}, shots=(), draws=DRAWS)
    assert row(found, "a", label="mean", metric="balanced_accuracy").value > 0.95  # type: ignore[operator]


def test_a_few_labels_are_a_scan_each_and_hold_both_classes() -> None:
    subjects_N = np.array([f"patient-{number // 3}" for number in range(60)])
    target_N = np.repeat(np.arange(20) == 7, 3).astype(float)
    for seed in range(10):
        taken = few(np.arange(60), target_N, subjects_N, 5, np.random.default_rng(seed), classes=True)
        assert len(set(subjects_N[taken])) == 5
        assert target_N[taken].sum() == 1


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders") / "tiny"
    save_encoder(make_encoder(), folder, preprocessing=PREPROCESSING)
    return folder


def test_the_command_judges_an_encoder_beside_the_baselines(
    tiny_corpus: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, card = tmp_path / "labels.csv", tmp_path / "card.json"
    scans = Corpus.open(tiny_corpus).scans
    lines = [f"{scan},{number + 1.5}" for number, scan in enumerate(scans["scan_id"])]
    table.write_text("\n".join(["scan_id,value", *lines]))
    words = ["probe", "--encoder", encoder, "--corpus", tiny_corpus, "--labels", table, "--json", card]
    words += ["--folds", 2, "--shots", 2, 50, "--draws", 50, "--embeddings", tmp_path / "kept"]
    assert main(list(map(str, words))) == 0
    said = capsys.readouterr().out
    found = json.loads(card.read_text())
    assert found["kind"] == "regression"
    assert set(found["encoders"]) == {"tiny"}
    assert {one["encoder"] for one in found["rows"]} == {"tiny", "random", "intensities"}
    assert set(found["rows"][0]) == {
        "encoder", "probe", "label", "labels", "group", "metric", "value", "low", "high", "n"
    }  # fmt: skip
    assert {one["encoder"] for one in found["differences"]} == {
        "random - intensities", "tiny - intensities", "tiny - random"
    }  # fmt: skip
    assert "linear probe: value" in said
    assert "note: curves without 50 labels" in said
    kept = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    assert set(kept) == {"tiny.parquet", "random.parquet"}
    words[words.index(encoder)] = tmp_path / "kept" / "tiny.parquet"
    before = found["rows"]
    assert main(list(map(str, words))) == 0
    assert json.loads(card.read_text())["rows"] == before


def test_kept_vectors_of_another_seed_or_encoder_stay_beside_those_of_this_one(
    tiny_corpus: Path, encoder: Path, tmp_path: Path
) -> None:
    table, kept = tmp_path / "labels.csv", tmp_path / "kept"
    scans = Corpus.open(tiny_corpus).scans["scan_id"]
    table.write_text("\n".join(["scan_id,value", *(f"{scan},{number + 1.5}" for number, scan in enumerate(scans))]))
    words = ["probe", "--corpus", tiny_corpus, "--labels", table, "--folds", 2, "--shots", "--draws", 5]
    words += ["--embeddings", kept]

    def probe(one: Path, *more: object) -> set[str]:
        assert main(list(map(str, [*words, "--encoder", one, *more]))) == 0
        return {path.name for path in kept.iterdir()}

    first = probe(encoder)
    assert first == {"tiny.parquet", "random.parquet"}
    second = probe(encoder, "--seed", 1)
    assert len(second) == 3
    assert probe(encoder, "--seed", 1) == second
    other, network = tmp_path / "other" / encoder.name, make_encoder()
    with torch.no_grad():
        next(network.parameters()).add_(1)
    save_encoder(network, other, preprocessing=PREPROCESSING)
    assert len(probe(other) - second) == 1


def test_what_cannot_be_written_or_read_is_said_before_vectors_are_made(
    tiny_corpus: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["probe", "--corpus", str(tiny_corpus), "--encoder", str(encoder), "--embeddings", str(tmp_path / "kept")]
    assert main([*words, "--json", str(tmp_path)]) == 2
    assert f"error: --json {tmp_path}: a folder; give the name of a file" in capsys.readouterr().err
    table = tmp_path / "labels.csv"
    scans = Corpus.open(tiny_corpus).scans["scan_id"]
    table.write_text("\n".join(["scan_id,value", *(f"{scan},{number + 1.5}" for number, scan in enumerate(scans))]))
    words.insert(5, str(tmp_path / "nowhere"))
    assert main([*words, "--labels", str(table), "--folds", "2"]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


def test_a_corpus_without_labels_is_refused(
    tiny_corpus: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", "--encoder", str(encoder), "--corpus", str(tiny_corpus)]) == 2
    assert "has no labels; give a table with --labels" in capsys.readouterr().err


def test_columns_of_the_table_of_labels_divide_the_scans_too(tiny_corpus: Path, tmp_path: Path) -> None:
    corpus, table = Corpus.open(tiny_corpus), tmp_path / "labels.csv"
    scans = list(corpus.scans["scan_id"])
    centre = {scan: "north" if number % 2 else "south" for number, scan in enumerate(scans)}
    lines = [
        f"{scan},{number % 2},{'w' if number < 2 else 'm'},{centre[scan]},{20 + number},{number + 0.5}"
        for number, scan in enumerate(scans)
    ]
    table.write_text("\n".join(["scan_id,ill,Sex,centre,age,dose", *lines]))
    asked = read_question(corpus, table, columns=["ill"], groups=["centre", "dose"], folds=2)
    assert asked.labels == ("ill",)
    own = dict(zip(scans, corpus.scans["sex"], strict=True))
    by_scan = {name: dict(zip(scans, values, strict=True)) for name, values in asked.groups.items()}
    assert [scan for _, scan in asked.keys_N] == scans
    assert by_scan["centre"] == centre
    assert by_scan["sex"] == own  # where the corpus and the table differ
    assert by_scan["age"] == {scan: "up to 22.5" if number < 3 else "above 22.5" for number, scan in enumerate(scans)}
    assert len(set(by_scan["dose"].values())) == len(scans)
    # A column that divides is no label: what is left is asked about; and one that is asked about divides nothing.
    assert read_question(corpus, table, groups=["Sex", "centre", "age", "dose"], folds=2).labels == ("ill",)
    assert "age" not in read_question(corpus, table, columns=["age"], folds=2).groups
    with pytest.raises(WrongUse, match=r"--groups clinic: no such column in labels\.csv and .*; there is .*centre"):
        read_question(corpus, table, columns=["ill"], groups=["clinic"], folds=2)


def test_a_label_that_cannot_be_probed_is_told_before_anything_is_embedded(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "labels.csv"
    scans = Corpus.open(tiny_corpus).scans["scan_id"]
    table.write_text("\n".join(["scan_id,ill", *(f"{scan},{int(scan == 'scan-5')}" for scan in scans)]))
    words = ["probe", "--encoder", "nowhere", "--corpus", str(tiny_corpus), "--labels", str(table), "--folds", "2"]
    assert main(words) == 1
    assert "no label can be probed: ill: not asked about" in capsys.readouterr().err


def test_a_label_that_nobody_has_is_refused() -> None:
    truth_NL, features_NE = planted(scans=20)
    with pytest.raises(Exception, match="no label can be probed"):
        judge(replace(question(truth_NL, "binary"), truth_NL=0 * truth_NL), {"a": features_NE})
