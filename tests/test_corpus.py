"""Files of a corpus: the same bytes every time, free of text, readable by others; tables that keep their types."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from harmonize.corpus import LABEL_SCHEMA, SCAN_SCHEMA, Corpus, claim, read_volume, write_manifest, write_volume
from harmonize.errors import UserError
from harmonize.settings import Settings
from harmonize.voxels.stored import StoredVolume

AFFINE = np.array([[1.0, 0, 0, -20.5], [0, 1, 0, 3.25], [0, 0, 1, 7], [0, 0, 0, 1]])


def stored() -> np.ndarray:
    return np.random.default_rng(0).integers(-1024, 3000, (9, 8, 7)).astype(np.int16)


def row(**changes: object) -> dict[str, object]:
    empty: dict[str, object] = dict.fromkeys(SCAN_SCHEMA.names)
    return empty | {
        "image_file_name": "images/tcia/a/b.nii.gz",
        "scan_id": "b",
        "source": "tcia",
        "subject": "a",
        "modality": "CT",
        "unit": "HU",
        "shape": [9, 8, 7],
        "points": [{"label": "Basilar Tip", "x": 1.0, "y": 2.0, "z": 3.0}],
        "labels": [0] * 14,
        "raw_hash": "00",
        **changes,
    }


def test_a_volume_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii.gz", StoredVolume(stored_XYZ=stored(), affine=AFFINE, slope=0.125, inter=-3.5))
    found = read_volume(tmp_path / "a.nii.gz")
    assert np.array_equal(found.stored_XYZ, stored())
    assert found.stored_XYZ.flags.writeable
    assert (found.slope, found.inter) == (0.125, -3.5)
    assert np.array_equal(found.affine, AFFINE)
    assert np.allclose(found.values(), stored() * 0.125 - 3.5)


def test_nibabel_reads_the_same_and_finds_no_text(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii.gz", StoredVolume(stored_XYZ=stored(), affine=AFFINE, slope=0.5, inter=2.0))
    image = nib.load(tmp_path / "a.nii.gz")
    assert np.allclose(image.get_fdata(), stored() * 0.5 + 2)
    assert np.array_equal(image.get_qform(), image.get_sform())
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 1)
    assert image.header["descrip"].item() == b""
    assert image.header["aux_file"].item() == b""
    assert not image.header.extensions


def test_the_same_volume_gives_the_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    hashes = {
        write_volume(tmp_path / name / "a.nii.gz", StoredVolume(stored_XYZ=stored(), affine=AFFINE))
        for name in ("one", "other")
    }
    assert len(hashes) == 1
    assert (tmp_path / "one/a.nii.gz").read_bytes() == (tmp_path / "other/a.nii.gz").read_bytes()


@pytest.mark.parametrize("cut", [0, 5, 100, -9])
def test_a_cut_file_is_no_volume(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.nii.gz"
    write_volume(path, StoredVolume(stored_XYZ=stored(), affine=AFFINE))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"a\.nii\.gz"):
        read_volume(path)


def test_the_manifest_keeps_its_types_and_says_none_for_what_is_not_there(tmp_path: Path) -> None:
    claim(tmp_path, "tcia", Settings())
    write_manifest(tmp_path, [row()], [])
    scans = Corpus.open(tmp_path).scans
    found = scans.iloc[0]
    assert list(scans.columns) == SCAN_SCHEMA.names
    assert found["mask_file_name"] is None
    assert found["session"] is None
    assert list(found["shape"]) == [9, 8, 7]
    assert found["points"][0]["z"] == 3.0


def test_the_order_of_the_rows_does_not_change_the_manifest(tmp_path: Path) -> None:
    rows = [row(scan_id=name, raw_hash=name) for name in "abc"]
    hashes = set()
    for name, order in (("one", rows), ("other", rows[::-1])):
        claim(tmp_path / name, "tcia", Settings())
        write_manifest(tmp_path / name, order, [])
        hashes.add(Corpus.open(tmp_path / name).manifest_sha256())
    assert len(hashes) == 1


def label_entry(name: str, labels: list[int] | None) -> dict[str, object]:
    return {"source": "rsna", "scan_id": name, "subject": name, "modality": "CTA", "labels": labels}


def test_the_label_table_holds_the_refused_scans_too(tmp_path: Path) -> None:
    claim(tmp_path, "rsna", Settings())
    taken = row(source="rsna", scan_id="a", subject="a", modality="CTA", labels=[1] * 14)
    entries = [label_entry("b", [0] * 14), label_entry("c", None), label_entry("a", [1] * 14)]
    write_manifest(tmp_path, [taken], [], entries)
    table = Corpus.open(tmp_path).labels
    assert list(table.columns) == LABEL_SCHEMA.names
    assert table["scan_id"].tolist() == ["a", "b", "c"]
    assert table["accepted"].tolist() == [True, False, False]
    assert [None if labels is None else list(labels) for labels in table["labels"]] == [[1] * 14, [0] * 14, None]


def test_a_corpus_without_a_label_table_is_read_by_its_accepted_rows(tmp_path: Path) -> None:
    claim(tmp_path, "rsna", Settings())
    write_manifest(tmp_path, [row(), row(scan_id="c", raw_hash="c", labels=None)], [])
    written = Corpus.open(tmp_path).labels
    (tmp_path / "labels.parquet").unlink()
    derived = Corpus.open(tmp_path).labels
    assert derived["scan_id"].tolist() == written["scan_id"].tolist() == ["b"]
    assert derived["accepted"].tolist() == [True]


def test_a_source_without_labels_has_no_label_table(tmp_path: Path) -> None:
    claim(tmp_path, "tcia", Settings())
    write_manifest(tmp_path, [row()], [])
    assert (tmp_path / "labels.parquet").is_file()
    write_manifest(tmp_path, [row(labels=None)], [])
    assert not (tmp_path / "labels.parquet").exists()
    assert Corpus.open(tmp_path).labels.empty


def test_the_card_says_what_is_inside(tmp_path: Path) -> None:
    claim(tmp_path, "tcia", Settings())
    write_manifest(tmp_path, [row()], [])
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n")
    assert "| tcia | CT | HU | 1 |" in card


def test_several_sources_may_share_a_corpus_with_norms_of_their_own(tmp_path: Path) -> None:
    claim(tmp_path, "tcia", Settings())
    claim(tmp_path, "openmind", Settings(mri_norm="nyul"))
    assert Corpus.open(tmp_path).mri_norms == {"openmind": "nyul", "tcia": "zscore"}


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (Settings(spacing=(2.0, 2.0, 2.0)), "spacing"),
        (Settings(mri_norm="none"), "mri_norm"),
        (Settings(salt="other"), "salt"),
        (Settings(bake_windows=True), "bake_windows"),
    ],
)
def test_other_settings_for_the_same_corpus_are_refused_by_name(tmp_path: Path, changed: Settings, name: str) -> None:
    claim(tmp_path, "tcia", Settings())
    with pytest.raises(UserError, match=name) as caught:
        claim(tmp_path, "tcia", changed)
    assert caught.value.exit_code == 2


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="not empty"):
        claim(tmp_path, "tcia", Settings())


def test_the_salt_itself_is_not_written(tmp_path: Path) -> None:
    claim(tmp_path, "tcia", Settings(salt="open sesame"))
    assert "open sesame" not in (tmp_path / "corpus.json").read_text()


@pytest.mark.parametrize("name", ["metadata.parquet", "rejected.parquet", "corpus.json"])
def test_what_is_missing_is_named(tmp_path: Path, name: str) -> None:
    claim(tmp_path, "tcia", Settings())
    write_manifest(tmp_path, [row()], [])
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=name):
        corpus = Corpus.open(tmp_path)
        assert corpus.scans is corpus.rejected


@pytest.mark.filterwarnings("ignore")
def test_load_dataset_opens_the_corpus_as_a_nifti_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    corpus = tmp_path / "corpus"
    claim(corpus, "tcia", Settings())
    for part in ("images", "masks"):
        write_volume(corpus / part / "tcia/a/b.nii.gz", StoredVolume(stored_XYZ=stored(), affine=AFFINE))
    (corpus / "nyul").mkdir()
    np.save(corpus / "nyul/T1w.npy", np.zeros((2, 11)))
    write_manifest(corpus, [row(mask_file_name="masks/tcia/a/b.nii.gz", mask_kind="vessels")], [])
    found = load_dataset("niftifolder", data_dir=str(corpus), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(found) == 1
    assert {"image", "mask", "modality", "points"} <= set(found.column_names)
    assert np.array_equal(np.asanyarray(found[0]["image"].dataobj), stored())
