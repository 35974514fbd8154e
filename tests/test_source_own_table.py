"""A user's own table: what of it reaches a corpus, and which image a row is about."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_source_nifti import found, head, kinds, save

from harmonize.decisions import DecisionKind
from harmonize.errors import Reason, WrongUse
from harmonize.sources import own_columns

NAMES = ("Mustermann, Erika", "Schmidt, Anna", "Meier, Karl", "Huber, Josef", "Vogel, Ute")


def verdict(values: Sequence[object], column: str = "x", *, told: bool = False) -> str:
    """Why a column of images, each with a name of its own, would be left out."""
    rows = [(f"image {number}", {column: str(value)}) for number, value in enumerate(values)]
    return own_columns.personal(column, rows, told=told)


def twice(values: Sequence[object]) -> list[object]:
    return [value for value in values for _ in range(2)]


def test_names_and_numbers_of_people_stay_out_though_no_column_says_whose_an_image_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["file,Proband,Nachname,Fallnummer,who,number,finding,volume_ml"]
    for number, name in enumerate(NAMES):
        for kind in ("T1", "T2"):
            file = f"img{2 * number + (kind == 'T2'):03d}_{kind}.nii.gz"
            save(tmp_path / "raw" / file, head())
            last, finding = name.split(",")[0], "lesion" if number % 2 else "healthy"
            lines.append(f'{file},"{name}",{last},{71000 + number},{last},{8123456 + number}.0,{finding},{number}.25')
    table = tmp_path / "t.csv"
    table.write_text("\n".join(lines) + "\n")
    refs, _ = found(tmp_path / "raw", table=table)
    assert len(refs) == 10
    assert {tuple(ref.meta["table"]) for ref in refs.values()} == {("finding", "volume_ml")}  # type: ignore[arg-type]
    for column in ("Proband", "Nachname", "Fallnummer", "who", "number"):
        assert f"{column} (" in caplog.text
    assert "Mustermann" not in caplog.text


@pytest.mark.parametrize(
    "values",
    [
        twice(NAMES),
        twice([name.split(",")[0] for name in NAMES]),
        twice([98123, 99877, 100234, 100777, 101222]),
        twice(["98123.0", "99877.0", "n/a"]),
        [f"{8100456 + 7 * number},0" for number in range(12)],
        ["1.23456e7", "1.23457e7", "1.23458e7"],
        ["-12345", "-23456", "-34567"],
        ["00123", "00124", "00125"],
        ["1512345678.5", "1522345678.25"],
        ["1512345678,5", "1522345678,25"],
        ["Dr. Doe", "Dr. Roe", "Dr. Doe", "Dr. Doe"],
        *(
            [text] * 8
            for text in ("5 Jan 2020", "5. März 2020", "05.01.2020", "2020/01/05", "janvier 2020", "10:30:05")
        ),
        *([text] * 8 for text in ("Jan 5, 2020", "05JAN2020", "19500102.0", "2020-01", "20200105T1030", "10:30 PM")),
        ["19500102,0"] * 8,
    ],
)
def test_columns_that_tell_people_apart_by_what_they_hold(values: Sequence[object]) -> None:
    assert verdict(values)


@pytest.mark.parametrize(
    "values",
    [
        [12.25 + number for number in range(20)],
        list(range(20)),
        [f"{number},5" for number in range(20)],
        [f"{1450000 + 1000 * number},5" for number in range(20)],
        [1_450_000.5 + 1000 * number for number in range(20)],
        ["120", "4500", "12000", "800"] * 3,
        ["low", "middle", "high"] * 4,
        ["Site 1", "Site 2", "Site 3", "Site 4", "Site 5"] * 5,
        ["set 1", "set 2"] * 4,
        ["Siemens 3 T", "GE 1.5 T"] * 3,
    ],
)
def test_measurements_and_classes_stay(values: Sequence[object]) -> None:
    assert verdict(values) == ""


PERSONAL = (
    "Nachname Vorname Geburtsdatum Fallnummer Patientennummer PATIENTENNUMMER Proband nom Prénom date_de_naissance "
    "apellidos nombre_paciente fecha cognome nome data_nascita naam geboortedatum PatID Patienten-ID Aufnahmedatum "
    "numéro_dossier código_paciente PLZ"
)


def test_a_name_of_one_column_does_not_pass_in_another(caplog: pytest.LogCaptureFixture) -> None:
    names = ("White", "M\u00fcller", "Roe", "Mustermann", "Schmidt", "Vogel", "Meier", "Huber")
    rows = [
        (
            name,
            {
                "Nachname": name,
                "race": "white" if number < 6 else "asian",
                "Befund": "MUSTERMANN Infarkt" if name == "Mustermann" else "normal",
                "M\u00fcller": "12.5",
                "side": "left" if number % 2 else "right",
            },
        )
        for number, name in enumerate(names)
    ]
    kept = own_columns.impersonal(rows, "t.csv")
    assert {tuple(values) for values in kept} == {("race", "side")}
    assert "Befund (it repeats names that another column holds)" in caplog.text
    assert "M\u00fcller" not in caplog.text


@pytest.mark.parametrize("column", PERSONAL.split())
def test_names_of_columns_in_other_languages_say_that_they_tell_people_apart(column: str) -> None:
    assert "its name says" in verdict(["1", "2"] * 4, column, told=True)


@pytest.mark.parametrize(
    "column", ["volume_ml", "nombre", "Diagnose", "lesion_number", "nummer_laesion", "Gruppe", "score", "study"]
)
def test_names_of_other_columns_do_not(column: str) -> None:
    assert verdict(["1", "2"] * 4, column, told=True) == ""


def test_a_row_that_several_images_could_be_meant_by_is_nobodys(tmp_path: Path) -> None:
    for person in ("P1", "P2", "P3"):
        save(tmp_path / f"raw/{person}/T1.nii.gz", head())
    save(tmp_path / "raw/P3/T2.nii.gz", head())
    table = tmp_path / "t.csv"
    table.write_text("file,grade\nT1.nii.gz,1\nP2/T1,2\nT2,3\nnowhere,4\n")
    refs, left = found(tmp_path / "raw", table=table)
    said = {key: ref.meta["table"] for key, ref in refs.items()}
    assert said == {
        "P1/T1.nii.gz": {},
        "P2/T1.nii.gz": {"grade": "2"},
        "P3/T1.nii.gz": {},
        "P3/T2.nii.gz": {"grade": "3"},
    }
    assert left["rows of t.csv", "several images could be meant"] == 1
    assert left["rows of t.csv", "no image of theirs"] == 1


def test_a_row_of_a_case_of_nnunet_is_about_its_channels_in_one_data_set(tmp_path: Path) -> None:
    for data_set, cases in (("A", ("one", "two")), ("B", ("one", "three"))):
        for case in cases:
            for channel in range(2):
                save(tmp_path / f"raw/{data_set}/imagesTr/{case}_{channel:04d}.nii.gz", head())
        channels = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {}}
        (tmp_path / f"raw/{data_set}/dataset.json").write_text(json.dumps(channels))
    table = tmp_path / "t.csv"
    table.write_text("file,grade\none,1\nB/imagesTr/one,2\ntwo,3\nthree_0001,1\n")
    refs, left = found(tmp_path / "raw", table=table)
    said = {key.replace("imagesTr/", ""): ref.meta["table"] for key, ref in refs.items() if ref.meta["table"]}
    assert said == {
        "A/two_0000.nii.gz": {"grade": "3"},
        "A/two_0001.nii.gz": {"grade": "3"},
        "B/one_0000.nii.gz": {"grade": "2"},
        "B/one_0001.nii.gz": {"grade": "2"},
        "B/three_0001.nii.gz": {"grade": "1"},
    }
    assert left["rows of t.csv", "several images could be meant"] == 1


def test_a_class_that_is_called_none_or_minus_stays_and_cells_that_say_nothing_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["participant_id\themorrhage\tstenosis\tgroup\tagent\tgrade\tscore\tkind"]
    cells = [
        ("none", "-", "NA", "None", "NA", "NA", "NA"),
        ("mild", "+", "AD", "Gd", "low", "2", "x"),
        ("none", "-", "NA", "", "high", "n/a", "y"),
        ("mild", "+", "AD", "Gd", "low", "3", "x"),
        ("none", "-", "NA", "None", "high", "nan", "y"),
    ]
    for number, row in enumerate(cells):
        save(tmp_path / f"sub-{number}/sub-{number}_T1w.nii.gz", head())
        lines.append("\t".join((str(number), *row)))
    (tmp_path / "participants.tsv").write_text("\n".join(lines) + "\n")
    refs, left = found(tmp_path)
    first, *_, last = [ref.meta["table"] for ref in refs.values()]
    assert first == {"hemorrhage": "none", "stenosis": "-", "group": "NA", "agent": "None"}
    assert last == {"hemorrhage": "none", "stenosis": "-", "group": "NA", "agent": "None", "grade": "high", "kind": "y"}
    assert left == {}
    assert "participants.tsv: cells that say nothing (empty, n/a, nan or NA): 6" in caplog.text


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xff\xfe"], ids=["nothing", "blank", "a mark alone"])
def test_an_empty_table_that_nobody_named_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    save(tmp_path / "raw/sub-1/sub-1_T1w.nii.gz", head())
    (tmp_path / "raw/participants.tsv").write_bytes(content)
    refs, _ = found(tmp_path / "raw")
    assert len(refs) == 1
    assert "participants.tsv is empty" in caplog.text
    table = tmp_path / "t.csv"
    table.write_bytes(content)
    with pytest.raises(WrongUse, match=r"--table .*t\.csv: empty; save it as CSV again"):
        found(tmp_path / "raw", table=table)


def test_a_data_sets_table_that_may_not_be_read_stops_none_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The superuser may read everything, so the refusal is put into Python's own."""
    for name in ("ds1", "ds2"):
        save(tmp_path / f"{name}/sub-1/sub-1_T1w.nii.gz", head())
        (tmp_path / f"{name}/participants.tsv").write_text("participant_id\tage\n1\t40\n")
    read_bytes, refused = Path.read_bytes, "ds1/participants.tsv"

    def refusing(path: Path) -> bytes:
        if path.as_posix().endswith(refused):
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refusing)
    refs = found(tmp_path)[0]
    assert {key: ref.meta.get("age") for key, ref in refs.items()} == {
        "ds1/participants.tsv": None, "ds1/sub-1/sub-1_T1w.nii.gz": None, "ds2/sub-1/sub-1_T1w.nii.gz": 40.0
    }  # fmt: skip
    rejection = refs["ds1/participants.tsv"].rejection
    assert rejection is not None
    assert (rejection.reason, rejection.message) == (
        Reason.IO_ERROR, "a table of people cannot be read: Permission denied"
    )  # fmt: skip
    # Without the folder's own table nothing would be known of anybody.
    (tmp_path / "participants.tsv").write_text("participant_id\tage\n1\t40\n")
    refused = "/participants.tsv"
    with pytest.raises(PermissionError):
        found(tmp_path)


def grades(root: Path, table: Path) -> dict[str, object]:
    """What a table that grades images says of each of them."""
    return {key: ref.meta["table"].get("grade") for key, ref in found(root, table=table)[0].items()}  # type: ignore[attr-defined]


def test_paths_in_other_case_in_composed_letters_and_from_above_the_folder_find_their_image(tmp_path: Path) -> None:
    raw, table = tmp_path / "raw", tmp_path / "t.csv"
    people = ("P1", "P2", "P3", "P4", unicodedata.normalize("NFD", "J\u00fcrgen"))
    for person in people:
        save(raw / person / "T1.nii.gz", head())
    names = (f"{raw}/P1/T1.nii.gz", "p2/t1.NII.gz", "D:\\lab\\raw\\P3\\T1.nii.gz", "raw/P4/T1", "J\u00fcrgen/T1.nii.gz")
    table.write_text("\n".join(("file,grade", *(f"{name},{1 + n % 2}" for n, name in enumerate(names)))) + "\n")
    assert grades(raw, table) == {f"{person}/T1.nii.gz": str(1 + n % 2) for n, person in enumerate(people)}
    table.write_text(f"file,grade\n{raw}/P1/T1,1\n/elsewhere/raw/P1/T1,2\n/elsewhere/P2/T1,1\nP3/T1,2\np3/t1,1\n")
    said = {key[:2]: grade for key, grade in grades(raw, table).items() if grade}
    assert said == {"P1": "1", "P3": "2"}


def test_case_that_tells_images_or_rows_apart_is_not_passed_over(tmp_path: Path) -> None:
    raw, table = tmp_path / "raw", tmp_path / "t.csv"
    for name in ("p1", "P1", "p2"):
        save(raw / name / "T1.nii.gz", head())
    table.write_text("file,grade\np1/t1,1\nP2/t1,1\np2/T1.nii,2\nP2/T1,3\n")
    assert grades(raw, table) == {"p1/T1.nii.gz": None, "P1/T1.nii.gz": None, "p2/T1.nii.gz": "2"}
    table.write_text("subject,grade\nP1,1\nP2,2\n")
    assert grades(raw, table) == {"p1/T1.nii.gz": None, "P1/T1.nii.gz": "1", "p2/T1.nii.gz": "2"}


@pytest.mark.parametrize(
    ("rows", "hint"),
    [
        ("participant_id,grade\n1,2\nsub-2,2\n", "2 rows differ from the images' names in leading zeros alone"),
        ("file,grade\nsub-1_T1w,2\n", "1 rows differ from the images' names in leading zeros alone"),
        ("file,grade\nx/scan1,2\n", "its rows name images otherwise than by their path"),
        ("subject,grade\nAda,2\n", "its rows name people otherwise than the images"),
    ],
)
def test_rows_that_are_about_no_image_come_with_a_hint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: str, hint: str
) -> None:
    for number in (1, 2):
        save(tmp_path / f"raw/sub-00{number}/sub-00{number}_T1w.nii.gz", head())
    (tmp_path / "t.csv").write_text(rows)
    _, left = found(tmp_path / "raw", table=tmp_path / "t.csv")
    assert left["rows of t.csv", "no image of theirs"] == rows.count("\n") - 1
    assert hint in caplog.text
    assert "Ada" not in caplog.text


def test_a_second_column_of_ages_or_sexes_holds_nothing_else(tmp_path: Path) -> None:
    for number in (1, 2):
        save(tmp_path / f"sub-{number}/sub-{number}_T1w.nii.gz", head())
    lines = ["participant_id\tage\tAge\tsex\tgender\tSex", "1\t63\t05.01.1957\tF\tAda Lovelace\tfemale"]
    (tmp_path / "participants.tsv").write_text("\n".join([*lines, "2\t40\t040Y\tM\tM\t8100456"]))
    refs = list(found(tmp_path)[0].values())
    assert [(ref.meta["age"], ref.meta["sex"]) for ref in refs] == [(63.0, "F"), (40.0, "M")]
    assert [ref.meta["table"] for ref in refs] == [
        {"age": "63", "sex": "F", "Sex": "female"}, {"age": "40", "Age": "40", "sex": "M", "gender": "M"}
    ]  # fmt: skip
    senseless = {DecisionKind.AGE_SENSELESS, DecisionKind.SEX_SENSELESS}
    assert [kinds(ref.meta["notes"]) for ref in refs] == [senseless, {DecisionKind.SEX_SENSELESS}]


def test_an_age_beyond_the_last_column_that_is_kept_is_read(tmp_path: Path) -> None:
    save(tmp_path / "sub-1/sub-1_T1w.nii.gz", head())
    others = range(own_columns.MOST_COLUMNS)
    lines = [
        "\t".join(("participant_id", *(f"score{place}" for place in others), "age")),
        "\t".join(("1", *("2" for _ in others), "063Y")),
    ]
    (tmp_path / "participants.tsv").write_text("\n".join(lines))
    (ref,) = found(tmp_path)[0].values()
    assert (ref.meta["age"], len(ref.meta["table"])) == (63.0, own_columns.MOST_COLUMNS)


def test_ages_of_a_table_are_numbers_however_they_are_written(tmp_path: Path) -> None:
    ages = ("63,5", "063Y", "89+", "old")
    for number in range(len(ages)):
        save(tmp_path / f"sub-{number}/sub-{number}_T1w.nii.gz", head())
    lines = ["participant_id\tage", *(f"{number}\t{age}" for number, age in enumerate(ages))]
    (tmp_path / "participants.tsv").write_text("\n".join(lines))
    refs = list(found(tmp_path)[0].values())
    assert [ref.meta["age"] for ref in refs] == [63.5, 63.0, 89.0, None]
    assert [ref.meta["table"] for ref in refs] == [{"age": "63.5"}, {"age": "63"}, {"age": "89"}, {}]
    assert [kinds(ref.meta["notes"]) for ref in refs] == [
        set(), set(), {DecisionKind.AGE_IS_BOUND}, {DecisionKind.AGE_SENSELESS}
    ]  # fmt: skip
