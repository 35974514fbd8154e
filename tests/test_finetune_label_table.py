"""What a user's table says of the scans of a corpus; every row that says nothing is counted and named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from finetune.label_table import Labels, read_labels
from finetune.losses.answers import ClassesConfig
from finetune.models.heads.global_pool import GlobalConfig
from finetune.recipe import Recipe
from finetune.tasks.table import TableConfig
from harmonize import corpus as corpora
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from harmonize.identity import salted_hash
from harmonize.salt import VARIABLE
from harmonize.settings import Settings
from headspark.config import to_yaml


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def faults(found: Labels) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {fault.what: (fault.count, fault.named) for fault in found.faults}


@pytest.fixture
def corpus(tiny_corpus: Path) -> Corpus:
    return Corpus.open(tiny_corpus)


@pytest.fixture
def hashed(tmp_path: Path) -> Corpus:
    """A corpus of private ids: a scan of each of two patients."""
    folder, salt = tmp_path / "hashed", "correct horse battery"
    corpora.claim(folder, "tcia", Settings(salt=salt))
    rows = []
    for patient, series in (("P1", "1.2/0"), ("P2", "1.3/0")):
        name, subject = salted_hash(salt, "tcia", series), salted_hash(salt, "tcia", "subject", patient)
        row = dict.fromkeys(corpora.SCAN_SCHEMA.names) | {
            "image_file_name": corpora.image_name("tcia", subject, name), "scan_id": name, "source": "tcia",
            "subject": subject, "raw_hash": name, "decisions": [], "modality": "CT",
        }  # fmt: skip
        rows.append(row)
    corpora.write_manifest(folder, rows, [])
    return Corpus.open(folder)


def test_a_row_names_its_scan_by_id_file_or_patient(corpus: Corpus, tmp_path: Path) -> None:
    by_id = read_labels(written(tmp_path / "a.csv", "scan_id,bleed", "scan-0,0", "scan-3,1", "scan-5,2"), corpus)
    assert by_id.kind == "multiclass"
    table = written(tmp_path / "b.csv", "file;bleed", "scan-0.nii.gz;no", "images/tcia/sub-5/scan-5.nii.gz;yes")
    by_file = read_labels(table, corpus)
    assert (by_file.kind, by_file.labels, by_file.values) == (
        "binary",
        ("bleed",),
        {"scan-0": (0.0,), "scan-5": (1.0,)},
    )
    by_patient = read_labels(written(tmp_path / "c.csv", "Subject\tage", "sub-1\t61.5", "sub-2\t44"), corpus)
    assert by_patient.kind == "regression"
    assert by_patient.values == {"scan-0": (61.5,), "scan-1": (61.5,), "scan-2": (44.0,)}


def test_private_ids_are_found_with_the_salt_alone(
    hashed: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = written(tmp_path / "labels.csv", "subject,dead", "P1,0", "P2,1")
    with pytest.raises(UserError, match=f"none of its 2 rows .* set {VARIABLE}"):
        read_labels(table, hashed)
    monkeypatch.setenv(VARIABLE, "correct horse battery")
    found = read_labels(table, hashed)
    assert sorted(found.values.values()) == [(0.0,), (1.0,)]
    by_series = read_labels(written(tmp_path / "two.csv", "file,dead", "1.2/0,0", "1.3/0,1"), hashed)
    assert by_series.values == found.values


def test_rows_that_say_nothing_are_counted_and_named(corpus: Corpus, tmp_path: Path) -> None:
    table = written(
        tmp_path / "labels.csv",
        "scan_id,grade",
        "scan-0,1", "scan-0,1.0", "scan-1,2", "scan-1,3", "scan-2,n/a", "nobody,1", "scan-4,2", "scan-5,1,more",
    )  # fmt: skip
    found = read_labels(table, corpus)
    assert found.values == {"scan-0": (0.0,), "scan-4": (1.0,)}
    assert faults(found) == {
        "rows that no scan of the corpus belongs to": (1, ("6",)),
        "rows that say of a scan what another row says": (1, ("2",)),
        "rows that contradict each other about a scan, none of which counts": (2, ("3", "4")),
        "scans whose row lacks a value": (1, ("scan-2",)),
        "scans of the corpus without a row": (3, ("scan-1", "scan-3", "scan-5")),
        "damaged rows": (1, ()),
    }
    assert "labels.csv: 2 rows that contradict each other about a scan, none of which counts (3, 4)" in found.lines()


def test_the_kind_follows_from_the_values_and_the_question(corpus: Corpus, tmp_path: Path) -> None:
    table = written(tmp_path / "t.csv", "scan_id,dx,a,b,mmse", *(
        f"scan-{n},{dx},{a},{b},{mmse}" for n, (dx, a, b, mmse) in enumerate(
            [("CN", 0, 1, 29), ("AD", 1, 1, 18.5), ("MCI", 0, 0, 25), ("AD", 0, 1, 20), ("CN", 1, 0, 30)]
        )
    ))  # fmt: skip
    with pytest.raises(WrongUse, match=r"4 columns could be labels \(dx, a, b, mmse\); name those .*task.columns"):
        read_labels(table, corpus)
    dx = read_labels(table, corpus, columns=["dx"])
    assert (dx.kind, dx.labels) == ("multiclass", ("dx: AD", "dx: CN", "dx: MCI"))
    assert dx.values["scan-2"] == (0.0, 0.0, 1.0)
    both = read_labels(table, corpus, columns=["a", "b"], question="classification")
    assert (both.kind, both.values["scan-0"]) == ("multilabel", (0.0, 1.0))
    assert read_labels(table, corpus, columns=["mmse"]).kind == "regression"
    assert read_labels(table, corpus, columns=["a"], question="regression").values["scan-1"] == (1.0,)
    with pytest.raises(WrongUse, match="several columns are labels of 0 and 1 each; a, dx have other values"):
        read_labels(table, corpus, columns=["a", "dx"])
    with pytest.raises(WrongUse, match="no value of dx is a number; ask for classification"):
        read_labels(table, corpus, columns=["dx"], question="regression")


def test_which_of_two_values_counts_as_one_can_be_said(corpus: Corpus, tmp_path: Path) -> None:
    table = written(tmp_path / "t.csv", "scan_id,dx", "scan-0,AD", "scan-1,CN", "scan-2,AD")
    assert read_labels(table, corpus).labels == ("dx: CN",)
    found = read_labels(table, corpus, positive="AD")
    assert (found.labels, found.values["scan-0"], found.values["scan-1"]) == (("dx: AD",), (1.0,), (0.0,))
    assert read_labels(table, corpus, positive="ad").sha256 == found.sha256
    with pytest.raises(WrongUse, match=r"task\.positive 'MCI': dx of t\.csv has AD, CN"):
        read_labels(table, corpus, positive="MCI")


SPELT = "scans whose value is a class in other letters, or another word for yes or no: they count as it"
AT_ODDS = "rows whose columns (file, subject) name different scans, none of which counts"


@pytest.mark.parametrize(
    ("values", "labels", "said", "others"),
    [
        (("Yes", "no", "yes", "NO", "yes"), ("x",), (1.0, 0.0, 1.0, 0.0, 1.0), ("scan-0", "scan-1")),
        (("Yes", "0", "true", "No", "1"), ("x",), (1.0, 0.0, 1.0, 0.0, 1.0), ("scan-0", "scan-2", "scan-3")),
        (("AD", "CN", "ad", "cn", "AD"), ("x: CN",), (0.0, 1.0, 0.0, 1.0, 0.0), ("scan-2", "scan-3")),
        (("none", "sac", "None", "sac", "none"), ("x: sac",), (0.0, 1.0, 0.0, 1.0, 0.0), ("scan-2",)),
        (("no", "y", "no", "y", "no"), ("x",), (0.0, 1.0, 0.0, 1.0, 0.0), ()),
        (("a", "b", "a", "b", "A"), ("x: b",), (0.0, 1.0, 0.0, 1.0, 0.0), ("scan-4",)),
    ],
)
def test_spellings_of_one_word_are_one_class(
    values: tuple[str, ...], labels: tuple[str, ...], said: tuple[float, ...], others: tuple[str, ...],
    corpus: Corpus, tmp_path: Path,
) -> None:  # fmt: skip
    found = read_labels(
        written(tmp_path / "t.csv", "scan_id,x", *(f"scan-{n},{value}" for n, value in enumerate(values))), corpus
    )
    assert (found.kind, found.labels) == ("binary", labels)
    assert [found.values[f"scan-{n}"] for n in range(5)] == [(value,) for value in said]
    assert faults(found).get(SPELT, (0, ())) == (len(others), others)


def test_rows_of_one_scan_that_differ_in_letter_case_do_not_contradict(corpus: Corpus, tmp_path: Path) -> None:
    table = written(tmp_path / "t.csv", "scan_id,x", "scan-0,Yes", "scan-0,yes", "scan-1,no")
    found = read_labels(table, corpus)
    assert found.values == {"scan-0": (1.0,), "scan-1": (0.0,)}
    assert faults(found)["rows that say of a scan what another row says"] == (1, ("2",))


def test_a_run_is_taken_up_with_the_classes_of_other_spellings_that_it_began_with(
    corpus: Corpus, tmp_path: Path
) -> None:
    table = written(tmp_path / "t.csv", "scan_id,x", "scan-0,Yes", "scan-1,no", "scan-2,yes", "scan-3,NO", "scan-4,yes")
    own = Recipe(task=TableConfig(columns=("x",)), head=GlobalConfig(), losses=(ClassesConfig(),))
    today = own.settled(corpus, table)
    assert isinstance(today.task, TableConfig)
    assert today.task.labels == ("x",)
    values = {"scan-0": 1, "scan-1": 2, "scan-2": 3, "scan-3": 0, "scan-4": 3}
    began = Labels(
        name="t.csv", kind="multiclass", columns=("x",), labels=("x: NO", "x: Yes", "x: no", "x: yes"), faults=(),
        values={scan: tuple(float(place == own) for place in range(4)) for scan, own in values.items()},
    )  # fmt: skip
    old = replace(today.task, asks="multiclass", labels=began.labels, table=began.sha256)
    (tmp_path / "recipe.yaml").write_text(to_yaml(replace(today, task=old)))
    taken_up = own.settled(corpus, table, run=tmp_path)
    assert taken_up.task == old
    assert isinstance(taken_up.task, TableConfig)
    assert taken_up.task.read(corpus, table).values == began.values
    (tmp_path / "recipe.yaml").write_text(to_yaml(today))
    assert own.settled(corpus, table, run=tmp_path) == today


def test_columns_that_name_different_scans_are_not_believed(corpus: Corpus, tmp_path: Path) -> None:
    table = written(
        tmp_path / "t.csv",
        "subject,file,x",
        "sub-1,scan-0.nii.gz,0", "sub-2,scan-1.nii.gz,1", "sub-2,scan-2.nii.gz,1", ",scan-3.nii.gz,0", "sub-9,scan-4,1",
        "sub-2,,1",
    )  # fmt: skip
    scans = corpus.scans.set_index("scan_id")["subject"]
    assert (scans["scan-0"], scans["scan-1"], scans["scan-2"]) == ("sub-1", "sub-1", "sub-2")
    found = read_labels(table, corpus)
    assert found.values == {"scan-0": (0.0,), "scan-2": (1.0,), "scan-3": (0.0,), "scan-4": (1.0,)}
    assert faults(found)[AT_ODDS] == (1, ("2",))
    slipped = written(tmp_path / "u.csv", "subject,file,x", "sub-2,scan-0.nii.gz,0", "sub-1,scan-2.nii.gz,1")
    with pytest.raises(UserError, match=r"in 2 of its 2 rows the columns file, subject name different scans"):
        read_labels(slipped, corpus)


def test_commas_are_decimal_ones_where_semicolons_part_the_fields(corpus: Corpus, tmp_path: Path) -> None:
    rows = [f"scan-{number};{60 + number},{number}" for number in range(4)]
    found = read_labels(written(tmp_path / "t.csv", "scan_id;age", *rows, "scan-4;70"), corpus, question="regression")
    assert found.values == {f"scan-{n}": (60 + n + n / 10,) for n in range(4)} | {"scan-4": (70.0,)}
    assert read_labels(tmp_path / "t.csv", corpus).kind == "regression"
    # Where commas part them, one within a field is one of thousands as likely.
    rows = [f'scan-{number},"1,06{number}"' for number in range(4)]
    found = read_labels(written(tmp_path / "u.csv", "scan_id,age", *rows, "scan-4,70"), corpus, question="regression")
    assert found.values == {"scan-4": (70.0,)}


def test_the_index_of_a_table_is_no_label(corpus: Corpus, tmp_path: Path) -> None:
    table = written(tmp_path / "t.csv", ",scan_id,x", "0,scan-0,0", "1,scan-1,1")
    assert read_labels(table, corpus).labels == ("x",)


def test_the_hash_is_of_what_is_said_and_not_of_how(corpus: Corpus, tmp_path: Path) -> None:
    one = read_labels(written(tmp_path / "a.csv", "scan_id,x", "scan-0,0", "scan-1,1"), corpus)
    same = read_labels(written(tmp_path / "b.csv", "scan_id;x", "scan-1;1.0", "scan-0;0"), corpus)
    other = read_labels(written(tmp_path / "c.csv", "scan_id,x", "scan-1,0", "scan-0,1"), corpus)
    assert one.sha256 == same.sha256 != other.sha256


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["name,x", "a,1"], "no column names the scan; call it scan_id, file or subject"),
        (["scan_id,fold", "scan-0,1", "scan-1,2"], "a label cannot be called 'fold'"),
        (["scan_id,x", "scan-0,1", "scan-1,1"], "all scans of the corpus have the same x; there is nothing to learn"),
        (["scan_id,x", "scan-0,1", "scan-1,NA"], r"the same x; .* \(1 scans are left out: an empty field, NA, "),
        (["PK\x03\x04\x14"], "labels.csv: is an Excel workbook; save it as CSV"),
        (["scan_id,x,x", "scan-0,1,1"], "the column x stands twice"),
        ([""], "empty"),
    ],
)
def test_a_table_of_which_nothing_can_be_learned_is_refused(
    corpus: Corpus, tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(WrongUse, match=message):
        read_labels(written(tmp_path / "labels.csv", *lines), corpus)


def test_without_a_file_the_corpus_needs_a_table_of_its_own(corpus: Corpus) -> None:
    with pytest.raises(WrongUse, match=r"has no table of its own; give labels\.csv with --labels"):
        read_labels(None, corpus)


def test_the_table_of_the_corpus_counts_where_none_is_given(corpus: Corpus, tmp_path: Path) -> None:
    rows = corpus.scans.to_dict("records")
    for number, row in enumerate(rows):
        said = {"lesion": "yes" if number % 2 else "no", "volume": f"{number}.5"}
        row["table"] = [{"column": column, "value": value} for column, value in said.items()] if number else None
    corpora.claim(tmp_path / "own", "openmind", Settings())
    corpora.claim(tmp_path / "own", "tcia", Settings())
    corpora.write_manifest(tmp_path / "own", rows, [])
    own = Corpus.open(tmp_path / "own")
    found = read_labels(None, own, columns=["lesion"])
    named = [row["scan_id"] for row in rows]
    assert found.values == {scan_id: (float(number % 2),) for number, scan_id in enumerate(named) if number}
    assert faults(found) == {"scans of the corpus without a row": (1, (named[0],))}
    assert read_labels(None, own, columns=["volume"]).kind == "regression"
    with pytest.raises(WrongUse, match=r"no column sex; there is lesion, volume"):
        read_labels(None, own, columns=["sex"])
