"""verify finds each way in which a corpus can be wrong."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harmonize import engine
from harmonize.cli import main
from harmonize.corpus import LABEL_SCHEMA, SCAN_SCHEMA, Corpus, read_volume, write_manifest, write_volume
from harmonize.corpus.layout import REJECTED_SCHEMA
from harmonize.corpus.lock import exclusive, shared
from harmonize.corpus.target import LOCK
from harmonize.corpus.verify import verify
from harmonize.files import sha256_of
from harmonize.settings import Settings
from harmonize.voxels.stored import StoredVolume


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("verify")
    voxels = np.full((16, 16, 12), 5, dtype=np.float32)
    voxels[4:12, 4:12, 3:9] = np.random.default_rng(0).normal(200, 30, (8, 8, 6))
    outside = np.ones(voxels.shape, dtype=np.uint8)
    outside[4:12, 4:12, 3:9] = 0
    folder = base / "raw/OpenMind/ds000001/sub-01/anat"
    (folder / "sub-01_T1w__Data").mkdir(parents=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([4.0, 4, 4, 1])), folder / "sub-01_T1w.nii.gz")
    nib.save(nib.Nifti1Image(voxels[::-1].copy(), np.diag([4.0, 4, 4, 1])), folder / "sub-01_T2w.nii.gz")
    nib.save(nib.Nifti1Image(outside, np.diag([4.0, 4, 4, 1])), folder / "sub-01_T1w__Data/fb_mask.nii.gz")
    engine.run("openmind", base / "raw", base / "corpus", Settings(spacing=(4.0, 4.0, 4.0)), workers=0)
    return base / "corpus"


@pytest.fixture
def corpus(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "corpus")
    return tmp_path / "corpus"


def rows_of(corpus: Path) -> pd.DataFrame:
    return Corpus.open(corpus).scans


def rewrite(corpus: Path, rows: list[dict[str, object]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=SCAN_SCHEMA), corpus / "metadata.parquet")


def edit(corpus: Path, change: Callable[[dict[str, object]], None]) -> None:
    rows = pq.read_table(corpus / "metadata.parquet").to_pylist()
    change(rows[0])
    rewrite(corpus, rows)


def replace_image(corpus: Path, write: Callable[[Path], None]) -> None:
    """Write another image and let the manifest name its hash, so that only the content is wrong."""
    path = corpus / rows_of(corpus).iloc[0]["image_file_name"]
    write(path)
    edit(corpus, lambda row: row.update(sha256=sha256_of(path)))


def test_a_whole_corpus_has_no_faults(corpus: Path) -> None:
    assert verify(corpus) == []
    assert verify(corpus, workers=2) == []


def test_a_missing_image_and_a_missing_mask_are_found(corpus: Path) -> None:
    masked = rows_of(corpus).dropna(subset=["mask_file_name"]).iloc[0]
    (corpus / masked["mask_file_name"]).unlink()
    (corpus / masked["image_file_name"]).unlink()
    assert sum("missing" in fault for fault in verify(corpus)) == 2


def test_a_file_without_a_row_is_found(corpus: Path) -> None:
    rows = pq.read_table(corpus / "metadata.parquet").to_pylist()
    rewrite(corpus, rows[:1])
    assert any("has no row" in fault for fault in verify(corpus))


def test_a_row_that_stands_twice_is_found(corpus: Path) -> None:
    rows = pq.read_table(corpus / "metadata.parquet").to_pylist()
    rewrite(corpus, [*rows, rows[0]])
    assert any("2 rows" in fault for fault in verify(corpus))


@pytest.mark.parametrize("harm", ["dropped", "doubled", "edited"])
def test_a_table_that_the_journal_can_mend_is_never_a_reason_to_delete(
    corpus: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in corpus.rglob("*") if path.is_file()}
    rows = pq.read_table(corpus / "metadata.parquet").to_pylist()
    other = {"shape": [1, 2, 3], "sha256": "0" * 64}
    rewrite(corpus, {"dropped": rows[:1], "doubled": rows * 2, "edited": [rows[0] | other, *rows[1:]]}[harm])
    assert main(["verify", str(corpus)]) == 1
    said = capsys.readouterr().out
    assert f"harmonize merge {corpus}" in said
    assert "delete the files" not in said
    assert main(["merge", str(corpus)]) == 0
    assert verify(corpus) == []
    assert {path: path.read_bytes() for path in corpus.rglob("*") if path.is_file()} == before


def test_what_is_damaged_or_known_to_nobody_may_be_deleted(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / rows_of(corpus).iloc[0]["image_file_name"]).write_bytes(b"damaged")
    (corpus / "images/openmind/stray.nii.gz").write_bytes(b"stray")
    assert main(["verify", str(corpus)]) == 1
    said = capsys.readouterr().out
    assert "delete the files named" in said
    assert "harmonize merge" not in said


def test_what_is_damaged_in_a_corpus_without_raw_folders_is_fetched_again(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(corpus / "records")
    (corpus / rows_of(corpus).iloc[0]["image_file_name"]).write_bytes(b"cut")
    assert main(["verify", str(corpus)]) == 1
    said = capsys.readouterr().out
    assert "delete the files named" in said
    assert "`hf download`" in said
    assert "raw folders" not in said


@pytest.mark.parametrize("hold", [exclusive, shared])
def test_what_a_run_has_under_way_is_no_fault(
    corpus: Path, hold: Callable[[Path, str], AbstractContextManager[None]], capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "images/openmind/.tmp-7-0123456789abcdef-x.nii.gz").write_bytes(b"half")
    with hold(corpus / LOCK, "busy"):
        assert main(["verify", str(corpus)]) == 1
    shown = capsys.readouterr()
    assert "a run is still writing this corpus; wait for it, then verify" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("newer", [True, False])
def test_a_merge_that_would_forget_what_a_newer_version_wrote_is_not_advised(
    corpus: Path, newer: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"source": "openmind", "raw_hash": "0" * 12, "stage": "load", "reason": "empty", "message": "an empty file"}
    journal = corpus / "records/openmind.jsonl"
    written = row | ({"reason": "of_tomorrow"} if newer else {})
    line = json.dumps({"source": row["source"], "raw_hash": row["raw_hash"], "rejection": written})
    journal.write_text(f"{journal.read_text()}{line}\n")
    told = pa.Table.from_pylist([row | {"reason": "of_tomorrow"}], schema=REJECTED_SCHEMA)
    pq.write_table(told, corpus / "rejected.parquet")
    scans = pq.read_table(corpus / "metadata.parquet").to_pylist()
    rewrite(corpus, scans * 2)
    assert main(["verify", str(corpus)]) == 1
    said = capsys.readouterr().out
    assert "rejected.parquet: unknown reason of_tomorrow" in said
    assert (f"harmonize merge {corpus}" in said) == (not newer)
    assert ("this version does not know what another one wrote" in said) == newer
    assert "delete the files" not in said
    rewrite(corpus, scans)
    assert main(["verify", str(corpus)]) == 1
    assert "bring the corpus back" not in capsys.readouterr().out
    if not newer:
        assert main(["merge", str(corpus)]) == 0
        assert verify(corpus) == []


@pytest.mark.parametrize("records", ["gone", "short"])
def test_a_merge_that_would_take_rows_away_is_not_advised(
    corpus: Path, records: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(corpus, pq.read_table(corpus / "metadata.parquet").to_pylist() * 2)
    journal = corpus / "records/openmind.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:1])) if records == "short" else shutil.rmtree(corpus / "records")
    assert main(["verify", str(corpus)]) == 1
    said = capsys.readouterr().out
    assert "harmonize merge" not in said
    assert "delete the files" not in said


def test_what_a_killed_run_left_is_found(corpus: Path) -> None:
    (corpus / "images/.tmp-7-x.nii.gz").write_bytes(b"half")
    assert any("killed run" in fault for fault in verify(corpus))


def test_a_changed_byte_is_found(corpus: Path) -> None:
    path = corpus / rows_of(corpus).iloc[0]["image_file_name"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert any("hash" in fault for fault in verify(corpus))


def test_a_cut_file_is_found(corpus: Path) -> None:
    replace_image(corpus, lambda path: path.write_bytes(path.read_bytes()[:-30]) and None)
    assert any("cannot be read" in fault for fault in verify(corpus))


def test_another_voxel_type_is_found(corpus: Path) -> None:
    def as_bytes(path: Path) -> None:
        volume = read_volume(path)
        write_volume(path, StoredVolume(stored_XYZ=volume.stored_XYZ.astype(np.uint8), affine=volume.affine))

    replace_image(corpus, as_bytes)
    assert any("uint8 instead of int16" in fault for fault in verify(corpus))


def test_another_orientation_or_spacing_is_found(corpus: Path) -> None:
    def flipped(path: Path) -> None:
        volume = read_volume(path)
        write_volume(path, StoredVolume(stored_XYZ=volume.stored_XYZ, affine=np.diag([-4.0, 4, 4, 1]) @ np.eye(4)))

    replace_image(corpus, flipped)
    assert any("not RAS" in fault for fault in verify(corpus))


def test_qform_and_sform_that_differ_are_found(corpus: Path) -> None:
    def disagree(path: Path) -> None:
        image = nib.load(path)
        image = nib.Nifti1Image(np.asanyarray(image.dataobj).astype(np.int16), image.affine)
        image.set_sform(image.affine, 1)
        image.set_qform(np.diag([4.0, 4, 4, 1]) + np.eye(4, k=3) * 9, 1)
        nib.save(image, path)

    replace_image(corpus, disagree)
    assert any("qform and sform differ" in fault for fault in verify(corpus))


@pytest.mark.parametrize(("sform_code", "said"), [(1, "qform and sform differ"), (0, "cannot be read (ValueError)")])
def test_three_numbers_that_are_no_quaternion_are_found(corpus: Path, sform_code: int, said: str) -> None:
    def turn_too_far(path: Path) -> None:
        content = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into("<hh3f", content, 252, 1, sform_code, 1.0, 1.0, 1.0)  # qform_code, sform_code, quatern_b to _d
        path.write_bytes(gzip.compress(content))

    replace_image(corpus, turn_too_far)
    (fault,) = verify(corpus)
    assert said in fault


def test_text_in_a_header_is_found(corpus: Path) -> None:
    def signed(path: Path) -> None:
        image = nib.load(path)
        image = nib.Nifti1Image(np.asanyarray(image.dataobj).astype(np.int16), image.affine)
        image.set_sform(image.affine, 1)
        image.set_qform(image.affine, 1)
        image.header["descrip"] = b"DOE^JANE"
        nib.save(image, path)

    replace_image(corpus, signed)
    assert any("carries text" in fault for fault in verify(corpus))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"shape": [1, 2, 3]}, "shape"),
        ({"spacing": [1.0, 1.0, 1.0]}, "spacing"),
        ({"foreground_box": [0, 999, 0, 1, 0, 1]}, "foreground box"),
        ({"unit": "HU"}, "Hounsfield"),
    ],
)
def test_a_manifest_that_says_otherwise_than_the_file_is_found(
    corpus: Path, change: dict[str, object], fault: str
) -> None:
    edit(corpus, lambda row: row.update(change))
    assert any(fault in line for line in verify(corpus))


def test_a_mask_of_another_shape_is_found(corpus: Path) -> None:
    rows = pq.read_table(corpus / "metadata.parquet").to_pylist()
    row = next(row for row in rows if row["mask_file_name"])
    path = corpus / row["mask_file_name"]
    row["mask_sha256"] = write_volume(
        path, StoredVolume(stored_XYZ=np.zeros((3, 3, 3), dtype=np.uint8), affine=np.diag([4.0, 4, 4, 1]))
    )
    rewrite(corpus, rows)
    assert any("image's shape" in fault for fault in verify(corpus))


def test_a_label_table_that_says_otherwise_than_the_manifest_is_found(corpus: Path) -> None:
    rows = pq.read_table(corpus / "metadata.parquet").to_pylist()
    write_manifest(corpus, [row | {"labels": [1] * 14} for row in rows], [])
    assert verify(corpus) == []
    table = pq.read_table(corpus / "labels.parquet").to_pylist()
    for change, fault in (
        (lambda entries: entries[1:], "lacks"),
        (lambda entries: [entries[0] | {"labels": [0] * 14}, *entries[1:]], "does not"),
        (lambda entries: [*entries, entries[0] | {"scan_id": "other"}], "does not have it"),
    ):
        pq.write_table(pa.Table.from_pylist(change(table), schema=LABEL_SCHEMA), corpus / "labels.parquet")
        assert [fault in line for line in verify(corpus)] == [True]


@pytest.mark.parametrize("column", ["shape", "spacing", "foreground_box"])
@pytest.mark.parametrize("value", [None, [1]])
def test_a_row_without_its_numbers_is_a_fault(corpus: Path, column: str, value: list[int] | None) -> None:
    edit(corpus, lambda row: row.update({column: value}))
    faults = verify(corpus)
    assert [fault for fault in faults if fault.endswith(f"the manifest does not say its {column}")], faults
