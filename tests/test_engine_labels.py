"""The label table of a corpus: every series that train.csv names, whatever became of its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from harmonize import engine, phantom
from harmonize.corpus import RECORDS, Corpus, journal
from harmonize.corpus.verify import verify
from harmonize.labels import LABELS
from harmonize.settings import Settings

SETTINGS = Settings(spacing=(6.0, 6.0, 6.0))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three series, of which the first has lost its files."""
    (root,) = phantom.write("rsna", tmp_path_factory.mktemp("raw"), scans=3, size=24, seed=0)
    shutil.rmtree(root / "series" / str(table(root).index[0]))
    return root


def table(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "train.csv", dtype={"SeriesInstanceUID": str}).set_index("SeriesInstanceUID")


def run(root: Path, out: Path, **options: object) -> None:
    engine.run("rsna", root, out, SETTINGS, workers=0, **options)  # type: ignore[arg-type]


def test_a_refused_series_keeps_its_labels(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "corpus")
    labels = Corpus.open(tmp_path / "corpus").labels.set_index("scan_id")
    train = table(raw)
    assert set(labels.index) == set(train.index)
    assert not labels.loc[train.index[0], "accepted"]
    assert labels["accepted"].sum() == len(train) - 1
    for uid in train.index:
        assert list(labels.loc[uid, "labels"]) == train.loc[uid, list(LABELS)].tolist()
        assert labels.loc[uid, "subject"] == uid
    assert verify(tmp_path / "corpus") == []


def test_shards_make_the_same_label_table(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "whole")
    for index in range(2):
        run(raw, tmp_path / "parts", shard=(index, 2))
    engine.merge(tmp_path / "parts")
    assert (tmp_path / "parts/labels.parquet").read_bytes() == (tmp_path / "whole/labels.parquet").read_bytes()


def test_a_journal_of_version_0_1_0_gives_the_labels_of_its_rows(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "corpus")
    (path,) = (tmp_path / "corpus" / RECORDS).glob(f"*{journal.SUFFIX}")
    old = [
        {name: json.loads(line).get(name) for name in ("source", "raw_hash", "row", "rejection")}
        for line in path.read_text().splitlines()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    engine.merge(tmp_path / "corpus")
    assert Corpus.open(tmp_path / "corpus").labels["accepted"].tolist() == [True, True]
