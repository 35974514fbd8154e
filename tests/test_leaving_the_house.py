"""What is published, printed, fetched and exported holds no stray file, no secret, and no text that gives orders."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub_constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
import standin_hub
from huggingface_hub import HfApi
from hypothesis import given
from hypothesis import strategies as st

from harmonize import corpus as layout
from harmonize import salt, terminal
from harmonize.cli import main
from harmonize.corpus import Corpus
from harmonize.corpus.card import corpus_card, plain_text
from harmonize.corpus.verify import verify
from harmonize.errors import UserError
from harmonize.identity import HASH_LENGTH
from harmonize.settings import Settings
from harmonize.voxels import nyul
from headspark.data.cohort import read_cohort
from headspark.data.config import DataConfig

MARK = "Zqxjkv"
REPO, THERE = "user/heads", "datasets/user/heads"
FIXTURES = Path(__file__).parent / "fixtures" / "v0_1_0"


@pytest.fixture
def corpus(tiny_corpus: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(tiny_corpus, tmp_path / "corpus")
    layout.write_manifest(folder, [row for row in rows_of(folder) if row["source"] == "openmind"], [])
    shutil.rmtree(folder / "images/tcia")
    return folder


def rows_of(corpus: Path) -> list[dict[str, Any]]:
    return Corpus.open(corpus).scans.to_dict("records")


def publish(corpus: Path) -> int:
    return main(["publish", str(corpus), "--repo", REPO])


# Publishing


def link(target: str, name: str) -> Callable[[Path], None]:
    def plant(corpus: Path) -> None:
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).symlink_to(target)

    return plant


def put(name: str) -> Callable[[Path], None]:
    def plant(corpus: Path) -> None:
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_bytes(b"private")

    return plant


def replace_by_link(name: str) -> Callable[[Path], None]:
    """The same bytes, but elsewhere."""

    def plant(corpus: Path) -> None:
        elsewhere = corpus.with_name("elsewhere")
        (corpus / name).rename(elsewhere)
        (corpus / name).symlink_to(elsewhere)

    return plant


def column(name: str, table: str = "metadata.parquet") -> Callable[[Path], None]:
    def plant(corpus: Path) -> None:
        there = pq.read_table(corpus / table)
        pq.write_table(there.append_column(name, pa.array([MARK] * len(there), pa.string())), corpus / table)

    return plant


def note(corpus: Path) -> None:
    there = pq.read_table(corpus / "metadata.parquet")
    pq.write_table(there.replace_schema_metadata({"operator": MARK}), corpus / "metadata.parquet")


def note_of_pandas(corpus: Path) -> None:
    there = pq.read_table(corpus / "metadata.parquet")
    attributes = json.dumps({"attributes": {"operator": MARK}})
    pq.write_table(there.replace_schema_metadata({"pandas": attributes}), corpus / "metadata.parquet")


def note_of_a_column(corpus: Path) -> None:
    there = pq.read_table(corpus / "metadata.parquet")
    place = there.schema.get_field_index("modality")
    schema = there.schema.set(place, there.schema.field(place).with_metadata({"operator": MARK}))
    pq.write_table(there.cast(schema), corpus / "metadata.parquet")


def part_of_a_column(corpus: Path) -> None:
    """Another field of each point."""
    there = pq.read_table(corpus / "metadata.parquet")
    kind = pa.list_(pa.struct([*there.schema.field("points").type.value_type, pa.field("operator", pa.string())]))
    point = {"label": "a", "x": 0.0, "y": 0.0, "z": 0.0, "operator": MARK}
    points = pa.array([[point]] * len(there), kind)
    place = there.schema.get_field_index("points")
    pq.write_table(there.set_column(place, "points", points), corpus / "metadata.parquet")


def no_hash(corpus: Path) -> None:
    layout.write_manifest(corpus, [row | {"mask_sha256": None} for row in rows_of(corpus)], [])


def other_bytes(corpus: Path) -> None:
    path = corpus / rows_of(corpus)[0]["mask_file_name"]
    path.write_bytes(path.read_bytes() + b"\0")


def key(corpus: Path) -> None:
    info = json.loads((corpus / "corpus.json").read_text())
    (corpus / "corpus.json").write_text(json.dumps(info | {"operator": MARK}))


def long_histogram(corpus: Path) -> None:
    nyul.save(corpus / "nyul/T1w.npy", nyul.StandardHistogram(scale=np.arange(3.0), percentiles=np.arange(3.0)))
    with (corpus / "nyul/T1w.npy").open("ab") as stream:
        stream.write(b"private")


@pytest.mark.parametrize(
    ("plant", "named"),
    [
        (put("images/openmind/notes.txt"), "images/openmind/notes.txt"),
        (put("images/openmind/sub-9/extra.nii.gz"), "images/openmind/sub-9/extra.nii.gz"),
        (put("masks/.hidden/x"), "masks/.hidden/x"),
        (put("nyul/notes.npy"), "nyul/notes.npy"),
        (long_histogram, "nyul/T1w.npy"),
        (link("/etc/passwd", "images/openmind/sub-1/passwd.nii.gz"), "sub-1/passwd.nii.gz: a symbolic link"),
        (link("/etc", "masks/etc"), "masks/etc: a symbolic link"),
        (link("/etc", "nyul"), "nyul: a symbolic link"),
        (
            replace_by_link("images/openmind/sub-1/scan-1.nii.gz"),
            "images/openmind/sub-1/scan-1.nii.gz: a symbolic link",
        ),
        (replace_by_link("images/openmind/sub-1"), "images/openmind/sub-1: a symbolic link"),
        (replace_by_link("images"), "images: a symbolic link"),
        (replace_by_link("README.md"), "README.md: a symbolic link"),
        (put("records/rsna.shard-0-of-2.jsonl"), "records/rsna.shard-0-of-2.jsonl"),
        (column("PatientName"), "PatientName"),
        (column("PatientName", "rejected.parquet"), "PatientName"),
        (note, "operator"),
        (note_of_pandas, "attributes of a pandas table"),
        (note_of_a_column, "column modality holds a note operator"),
        (part_of_a_column, "points.operator"),
        (no_hash, "masks/openmind/sub-1/scan-0.nii.gz: the manifest has no hash of it"),
        (key, "operator"),
        (column("source", "rejected.parquet"), "rejected.parquet: a column stands twice"),
        (other_bytes, "masks/openmind/sub-1/scan-0.nii.gz"),
    ],
)
def test_what_the_manifest_does_not_name_is_refused_by_name(
    hub: standin_hub.Hub,
    corpus: Path,
    plant: Callable[[Path], None],
    named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plant(corpus)
    assert publish(corpus) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert named in error
    assert hub.repos == {}


def test_a_histogram_that_no_scan_was_made_with_stays_at_home(hub: standin_hub.Hub, corpus: Path) -> None:
    rows = [row | {"unit": "nyul"} for row in rows_of(corpus)]
    layout.write_manifest(corpus, rows, [])
    for name in ("T1w", "T2w"):
        scale = nyul.StandardHistogram(scale=np.arange(3.0), percentiles=np.arange(3.0))
        nyul.save(corpus / f"nyul/{name}.npy", scale)
    assert publish(corpus) == 0
    assert {name for name in hub.repos[THERE].files if name.startswith("nyul/")} == {"nyul/T1w.npy"}
    (corpus / "nyul/T1w.npy").unlink()
    assert publish(corpus) == 1


OUTSIDE = ("../outside/x.nii.gz", "images/../../x.nii.gz", "/etc/x.nii.gz", "corpus.json", "images//x.nii.gz",
           "images/.x.nii.gz", "images\\..\\x.nii.gz", "images/a\n/x.nii.gz")  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("place", layout.FILE_COLUMNS)
def test_all_who_read_a_corpus_refuse_a_path_that_leaves_it(corpus: Path, name: str, place: str) -> None:
    rows = rows_of(corpus)
    rows[1][place] = name
    layout.write_manifest(corpus, rows, [])
    with pytest.raises(UserError, match=place) as refused:
        verify(corpus)
    assert str(refused.value).isprintable()
    with pytest.raises(UserError, match=place):
        read_cohort(Corpus.open(corpus), DataConfig())


@pytest.mark.parametrize("name", ["source", "subject", "session", "scan_id", "raw_hash"])
@pytest.mark.parametrize("text", ["../x", ".hidden", "a/b", "a\\b", "", "a\x1b[2J"])
def test_ids_that_a_path_or_an_order_to_the_terminal_can_be_made_of_are_refused(
    corpus: Path, name: str, text: str
) -> None:
    layout.write_manifest(corpus, [row | {name: text} for row in rows_of(corpus)[:1]], [])
    with pytest.raises(UserError, match=f"{name} .* is no id that harmonize gives") as refused:
        verify(corpus)
    assert str(refused.value).isprintable()


def test_commands_refuse_it_in_one_line(hub: standin_hub.Hub, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout.write_manifest(corpus, [rows_of(corpus)[0] | {"image_file_name": OUTSIDE[0]}], [])
    for arguments in (["verify", str(corpus)], ["report", str(corpus)], ["publish", str(corpus), "--repo", REPO]):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert OUTSIDE[0] in error
        assert error.count("\n") == 1
    assert hub.repos == {}


def test_a_journal_removes_no_file_outside_of_its_corpus(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "precious.nii.gz"
    precious.write_text("mine")
    first = rows_of(corpus)[0]
    row = first | {"image_file_name": "../precious.nii.gz", "points": [], "labels": None, "age": None}
    row = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}
    rejection = {"source": "openmind", "raw_hash": "hash-0", "stage": "load", "reason": "empty", "message": ""}
    lines = [{"source": "openmind", "raw_hash": "hash-0", "row": row},
             {"source": "openmind", "raw_hash": "hash-1", "row": row | {"raw_hash": "hash-1", "scan_id": "scan-1"}},
             {"source": "openmind", "raw_hash": "hash-0", "rejection": rejection, "attempt": 1}]  # fmt: skip
    (corpus / "records").mkdir(exist_ok=True)
    text = "".join(json.dumps(line | {"row": line.get("row")}) + "\n" for line in lines)
    (corpus / "records/openmind.jsonl").write_text(text)
    assert main(["merge", str(corpus)]) == 1
    assert "precious" in capsys.readouterr().err
    assert precious.read_text() == "mine"


# The salt


def harmonized(raw: Path, corpus: Path, *more: str) -> int:
    words = ["--spacing", "8", "--workers", "0", "--mri-norm", "zscore", "--limit", "1"]
    return main(["openmind", str(raw), "--out", str(corpus), *words, *more])


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    assert main(["phantom", "--source", "openmind", "--out", str(folder), "--scans", "1", "--size", "24"]) == 0
    return folder / "openmind"


def test_the_salt_is_taken_from_where_others_do_not_see_it(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret, file = "a long enough secret", tmp_path / "salt"
    file.write_text(f"{secret}\n")
    file.chmod(0o600)
    assert harmonized(raw, tmp_path / "corpus", "--salt-file", str(file)) == 0
    assert "warning" not in capsys.readouterr().err
    there = Corpus.open(tmp_path / "corpus").info["settings"]["salt_fingerprint"]
    assert there.startswith("scrypt:")
    assert there == Settings(salt=secret).shared()["salt_fingerprint"]
    assert hashlib.sha256(f"headspark salt {secret}".encode()).hexdigest()[:12] not in there

    assert harmonized(raw, tmp_path / "corpus") == 2
    assert "another --salt" in capsys.readouterr().err
    monkeypatch.setenv("HARMONIZE_SALT", secret)
    assert harmonized(raw, tmp_path / "corpus") == 0
    assert main(["locate", "openmind", str(raw), str(tmp_path / "corpus")]) == 0
    assert "warning" not in capsys.readouterr().err
    monkeypatch.delenv("HARMONIZE_SALT")
    assert main(["locate", "openmind", str(raw), str(tmp_path / "corpus"), "--salt", secret]) == 0
    warned = capsys.readouterr().err
    assert warned.startswith("warning: --salt is seen")
    assert secret not in warned
    assert warned.count("\n") == 1


def test_a_salt_that_is_none_too_open_or_too_short_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "salt"
    for content in (b"", b"\n", b"one\ntwo\n", b"x" * 5000):
        file.write_bytes(content)
        with pytest.raises(UserError, match="holds no salt"):
            salt.given_salt(None, file)
    with pytest.raises(UserError, match="cannot be read"):
        salt.given_salt(None, tmp_path / "absent")
    with pytest.raises(UserError, match="one of them"):
        salt.given_salt("a", file)
    with pytest.raises(UserError, match="--salt: is empty"):
        salt.given_salt("", None)
    file.chmod(0o600)
    for content in ("\ufeffa long enough secret", "a long enough secret \r\n"):
        file.write_bytes(content.encode())
        assert salt.given_salt(None, file) == content.removesuffix("\r\n")
        assert "begins or ends with a space" in capsys.readouterr().err
    file.write_bytes(b"a long enough secret\r\n")
    assert salt.given_salt(None, file) == "a long enough secret"
    assert capsys.readouterr().err == ""
    file.write_text("short")
    file.chmod(0o644)
    assert salt.given_salt(None, file) == "short"
    warned = capsys.readouterr().err
    assert "chmod 600" in warned
    assert "5 letters" in warned
    assert "short" not in warned


def test_a_salted_corpus_of_version_0_1_0_is_continued_with_its_salt(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus"
    assert harmonized(raw, corpus, "--salt", "secret") == 0
    info = json.loads((corpus / "corpus.json").read_text())
    info["settings"]["salt_fingerprint"] = hashlib.sha256(b"headspark salt secret").hexdigest()[:12]
    (corpus / "corpus.json").write_text(json.dumps(info))
    capsys.readouterr()
    assert harmonized(raw, corpus, "--salt", "secret") == 0
    assert "(1 done before)" in capsys.readouterr().out
    assert harmonized(raw, corpus, "--salt", "other") == 2
    assert main(["locate", "openmind", str(raw), str(corpus), "--salt", "secret"]) == 0
    assert salt.is_quickly_guessed(info["settings"]["salt_fingerprint"])


def test_a_salt_of_version_0_1_0_is_warned_of_before_it_is_published(
    hub: standin_hub.Hub, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = "0" * HASH_LENGTH
    layout.write_manifest(corpus, [row | {"subject": hidden} for row in rows_of(corpus)], [])
    info = json.loads((corpus / "corpus.json").read_text())
    for quick, fingerprint in ((True, salt._of_version_0_1_0("secret")), (False, salt.fingerprint("secret"))):
        info["settings"]["salt_fingerprint"] = fingerprint
        (corpus / "corpus.json").write_text(json.dumps(info))
        assert publish(corpus) == 0
        assert ("can be tested a million times a second" in capsys.readouterr().err) == quick


def test_no_salt_is_known_as_none() -> None:
    old = json.loads((FIXTURES / "corpus/corpus.json").read_text())["settings"]["salt_fingerprint"]
    assert salt.fingerprint("") == old
    assert salt.is_unsalted(old)
    assert not salt.is_known_by("x", old)
    assert not salt.is_unsalted(salt.fingerprint("x"))


# What is printed


@given(st.text(alphabet=st.characters(codec=None), max_size=30))
def test_what_is_said_is_one_printable_line(text: str) -> None:
    stream = io.StringIO()
    terminal.say(f"before {text} after", stream=stream)
    said = stream.getvalue()
    assert said.endswith("\n")
    assert said[:-1].isprintable()


HOSTILE = "\x1b[2J\u202eevil\nerror: all is well"


def test_errors_and_the_end_of_a_run_obey_no_name(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = shutil.copytree(raw, tmp_path / f"raw{HOSTILE}")
    (place / f"a.{HOSTILE[:3]}").write_text("")
    assert harmonized(place, tmp_path / f"corpus{HOSTILE}") == 0
    assert main(["verify", str(tmp_path / f"corpus{HOSTILE}")]) == 0
    assert main(["verify", str(tmp_path / f"none{HOSTILE}")]) == 2
    shown = "".join(capsys.readouterr())
    assert all(one.isprintable() for one in shown.splitlines())
    assert "\nerror: all is well" not in shown


def test_text_of_the_raw_tree_makes_no_markup_in_the_card(corpus: Path) -> None:
    evil = "T1w | x\n---\n# <img src=x> [a](https://evil.org) `b` \x1b[31m"
    layout.write_manifest(corpus, [row | {"modality": evil} for row in rows_of(corpus)], [])
    card = (corpus / "README.md").read_text()
    (line,) = [line for line in card.splitlines() if "T1w" in line]
    assert line.startswith("| openmind | T1w \\| x\\\\n---")
    assert line.endswith("| zscore | 4 | 3 | 1 |")
    for markup in (" <img", "[a](", "https://evil", " `b`", "\x1b"):
        assert markup not in line
    assert card.count("\n---\n") == 1
    assert plain_text("T1w") == "T1w"


def test_nothing_else_of_a_corpus_makes_markup_in_its_card(corpus: Path) -> None:
    evil = "x | <img src=y>\n---\n`"
    info = Corpus.open(corpus).info | {"libraries": {"headspark": evil}, "sources": {"a": {"mri_norm": evil}}}
    card = corpus_card(info, [rows_of(corpus)[0] | {"source": evil, "modality": evil, "unit": evil}], 0)
    assert card.count("\n---\n") == 1
    assert card.count("x \\| \\<img src=y\\>\\\\n---\\\\n\\`") == 9
    assert " <img" not in card


def test_an_address_is_said_without_its_secrets_wherever_it_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say(f"a https://me:{MARK}@a.org/x.zip: gone", f"b https://a.org/x.zip?Signature={MARK}, gone")
    terminal.warn(f"c tls://me:{MARK}@10.0.0.1:8786")
    shown = capsys.readouterr()
    assert shown.out == "a https://a.org/x.zip: gone\nb https://a.org/x.zip, gone\n"
    assert shown.err == "c tls://10.0.0.1:8786\n"


# Downloads


def test_an_address_is_said_and_kept_without_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from harmonize.fetch import download

    monkeypatch.setattr(download, "BACKOFF_S", 0.0)
    addresses = [f"http://me:{MARK}@127.0.0.1:9/Images_png_01.zip?X-Amz-Signature={MARK}",
                 f"http://me:{MARK}@[bad/Images_png_02.zip",
                 f"ftp://me:{MARK}@127.0.0.1/Images_png_03.zip"]  # fmt: skip
    for number, address in enumerate(addresses):
        words = ["fetch", "deeplesion", "--out", str(tmp_path / str(number)), "--limit", "1"]
        assert main([*words, "--base-url", address.partition("/Images")[0]]) != 0
    with pytest.raises(UserError) as fault:
        download.download(addresses[0], tmp_path / "x.zip")
    shown = "".join((*capfd.readouterr(), str(fault.value)))
    assert MARK not in shown
    assert "http://127.0.0.1:9/Images_png_01.zip" in shown


def test_what_was_fetched_is_noted_without_a_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    from harmonize.fetch import deeplesion, download

    def bring(url: str, path: Path, *, checked: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("Images_png/000001_01_01/001.png", b"png")

    monkeypatch.setattr(download, "download", bring)
    deeplesion.fetch([f"https://me:{MARK}@a.org/b.zip?X-Amz-Signature={MARK}"], tmp_path)
    assert (tmp_path / ".fetched/b.zip").read_text() == "https://a.org/b.zip\n"


def test_a_hubs_log_and_messages_hold_no_password(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub_constants, "ENDPOINT", f"http://me:{MARK}@127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", standin_hub.TOKEN)
    with caplog.at_level(logging.WARNING), terminal.careful_log("huggingface_hub"):
        logging.getLogger("huggingface_hub.utils._http").warning("asked %s", f"http://me:{MARK}@a.org/x?token={MARK}")
        assert publish(corpus) == 1
    shown = "".join((*capfd.readouterr(), caplog.text))
    assert MARK not in shown
    assert "http://127.0.0.1:9: cannot be reached" in shown
    assert "asked http://a.org/x" in shown


def test_what_the_hubs_client_logs_while_it_publishes_holds_no_password(
    hub: standin_hub.Hub, corpus: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def create(*_: object, **more: object) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("asked %s", f"http://me:{MARK}@a.org/x?token={MARK}")

    logging.getLogger("huggingface_hub.utils._http")
    monkeypatch.setattr(HfApi, "create_repo", create)
    with caplog.at_level(logging.WARNING):
        publish(corpus)
    assert "asked http://a.org/x" in caplog.text
    assert MARK not in caplog.text


# Debugging


def test_debugging_shows_where_and_no_text_of_a_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from harmonize.engine import one_scan

    def fail(scan: object, settings: object) -> object:
        try:
            raise KeyError(f"{MARK}^Ann")
        except KeyError as error:
            raise ValueError(f"{MARK} is no number") from error

    monkeypatch.setattr(one_scan, "resample_scan", fail)
    monkeypatch.setenv("HARMONIZE_DEBUG", "")
    assert main(["phantom", "--source", "tcia", "--out", str(tmp_path), "--scans", "1", "--size", "24"]) == 0
    for path in (tmp_path / "tcia").rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.PatientName = MARK
        dataset.save_as(path)
    words = ["--out", str(tmp_path / "corpus"), "--workers", "0", "--debug"]
    with pytest.raises(UserError):
        main(["tcia", str(tmp_path / "tcia"), *words])
    shown = "".join(capfd.readouterr())
    assert MARK not in shown
    assert "Traceback" in shown
    assert "ValueError" in shown
    assert "in fail" in shown


def test_an_error_that_ends_a_command_shows_no_text_but_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    main(["verify", str(tmp_path)])
    capsys.readouterr()
    try:
        try:
            json.loads('{"PatientName": Zqxjkv}')
        except ValueError as error:
            raise UserError(f"table: damaged at {error.lineno}") from error  # type: ignore[attr-defined]
    except UserError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    sys.excepthook(KeyError, KeyError(MARK), None)
    shown = capsys.readouterr().err
    assert "JSONDecodeError\n" in shown
    assert "harmonize.errors.UserError: table: damaged at 1" in shown
    assert shown.endswith("KeyError\n")
    assert MARK not in shown.replace(f"""json.loads('{{"PatientName": {MARK}}}')""", "")
