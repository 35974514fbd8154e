"""Soft labels of another model: read from its predictions, and never of a held-out patient."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from finetune.folds import Folds
from finetune.pseudo import pseudo_labelled, read_pseudo_labels, summary
from finetune.series import Case, Spot
from harmonize.errors import UserError, WrongUse

LABELS = ("left", "right", "any")
ROWS = [("a", 0.25, 0.0, 0.25), ("b", 0.5, 1.0, 1.0), ("c", 0.0, 0.0, 0.0), ("d", 0.1, 0.1, 0.1), ("e", 0, 0, 0)]


def table(name: str = "scan_id") -> pd.DataFrame:
    return pd.DataFrame(ROWS, columns=[name, *LABELS])


def case(scan_id: str, subject: str, labels: tuple[int, ...] = ()) -> Case:
    return Case(
        scan_id=scan_id, subject=subject, modality="CTA", unit="HU", image=Path("none"), mask=None,
        foreground_box=(0, 1) * 3, labels=labels, spots=(Spot(label=0, xyz_mm=(0.0, 0.0, 0.0)),),
    )  # fmt: skip


FOLDS = Folds(
    subjects={"a": "A", "b": "B", "b2": "B", "c": "C", "d": "D"},
    fold_of={"a": 1, "b": 0, "b2": 0, "c": 1, "d": 1},
    folds=2,
    seed=0,
)


@pytest.mark.parametrize("kind", ["parquet", "csv", "predicted.csv"])
def test_predictions_become_soft_labels_of_unlabelled_series_whose_patients_are_not_held_out(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / f"table.{kind}"
    if kind == "parquet":
        table().to_parquet(path)
    else:
        table("scan_id" if kind == "csv" else "SeriesInstanceUID").to_csv(path, index=False)
    found = read_pseudo_labels(path, LABELS)
    unlabelled = [case("a", "A"), case("b", "B"), case("d", "D")]
    cases, left_out = pseudo_labelled(found, unlabelled, [case("c", "C", (0, 0, 0))], FOLDS, 0)
    assert [one.scan_id for one in cases] == ["a", "d"]
    assert cases[0].labels == (0.25, 0.0, 0.25)
    assert all(one.pseudo and not one.spots and not one.spots_complete for one in cases)
    assert left_out == {"of held-out patients": 1, "with labels of their own": 1, "not in the corpus": 1}
    assert summary(found, cases, left_out).startswith(f"2 more series with labels of {path.name}; left out: 1 not in")


def test_another_series_of_a_held_out_patient_is_left_out_too(tmp_path: Path) -> None:
    table().to_parquet(tmp_path / "table.parquet")
    found = read_pseudo_labels(tmp_path / "table.parquet", LABELS)
    with pytest.raises(WrongUse, match=r"no series is left to train on .*1 of held-out patients"):
        pseudo_labelled(found, [case("a", "B")], [], FOLDS, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.drop(columns="right"), "lacks a column right"),
        (lambda found: found.rename(columns={"scan_id": "who"}), "column of ids"),
        (lambda found: found.assign(left=[0.1, 0.2, 1.5, 0, 0]), "no probability"),
        (lambda found: found.assign(left=[0.1, None, 0.5, 0, 0]), "no probability"),
        (lambda found: found.assign(scan_id=["a", "a", "c", "d", "e"]), "twice"),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_that_is_none_is_refused_with_one_line(change: object, said: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"table{suffix}"
    changed = change(table())  # type: ignore[operator]
    changed.to_parquet(path) if suffix == ".parquet" else changed.to_csv(path, index=False)
    with pytest.raises(WrongUse, match=said) as refused:
        read_pseudo_labels(path, LABELS)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_absent_or_damaged_is_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    for name in ("absent.csv", "absent.parquet", "damaged.parquet"):
        with pytest.raises(UserError, match=f"--pseudo-labels .*{name}"):
            read_pseudo_labels(tmp_path / name, LABELS)
