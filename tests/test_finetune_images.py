"""Prediction of NIfTI images: as their corpus was harmonized, by name, sidecar or values, beside DICOM in one tree."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from test_finetune_table import recipe

from finetune import train as training
from finetune.cli import main
from finetune.predict import Predictor
from finetune.raw.look import Wish, harmonize_for
from finetune.raw.places import find_places
from harmonize.cli import main as harmonize
from harmonize.corpus import Corpus
from harmonize.errors import Reason, Rejection
from harmonize.identity import salted_hash
from harmonize.scan import HU
from harmonize.settings import Settings
from harmonize.sources.nifti_image import load_image

PEOPLE, EDGE = 6, 24


def write_image(path: Path, *, bright: float, offset: float = 0.0, seed: int = 0) -> Path:
    """A ball in air, with a brighter ball in its middle; oblique and not isotropic."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, EDGE)] * 3, indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    noise = np.random.default_rng(seed).normal(0, 2, radius.shape)
    values = np.where(radius < 0.8, 60 + noise, offset) + np.where(radius < 0.3, bright, 0)
    affine = np.diag([2.0, 2.2, 2.4, 1.0])
    affine[:2, :2] = affine[:2, :2] @ [[0.98, -0.2], [0.2, 0.98]]
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(np.float32), affine), path)
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "raw"
    for person in range(PEOPLE):
        folder = root / f"sub-{person:02}" / "anat"
        write_image(folder / f"sub-{person:02}_T1w.nii.gz", bright=10.0 + 40 * (person % 2), seed=person)
    return root


@pytest.fixture(scope="module")
def model(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for a few steps on the tree's corpus, whose rows are named as the raw files are."""
    folder = tmp_path_factory.mktemp("model")
    assert harmonize(["nifti", str(tree), "--out", str(folder / "corpus"), "--spacing", "2.0"]) == 0
    lines = [f"sub-{person:02}/anat/sub-{person:02}_T1w.nii.gz,{person % 2}" for person in range(PEOPLE)]
    (folder / "labels.csv").write_text("file,bright\n" + "\n".join(lines) + "\n")
    training.train(
        recipe("bright", steps=3),
        corpus=Corpus.open(folder / "corpus"),
        encoder_folder=None,
        out=folder / "run",
        labels=folder / "labels.csv",
    )
    return folder / "run"


def test_a_raw_image_is_answered_as_its_scan_in_the_corpus_was(
    tree: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = pd.read_parquet(model / "predictions.parquet").set_index("scan_id")["bright"]
    keys = {
        path.relative_to(tree).as_posix(): salted_hash("", "nifti", path.relative_to(tree).as_posix())
        for path in sorted(tree.rglob("*.nii.gz"))
    }
    assert main(["predict", str(model), str(tree)]) == 0
    found = {one["series"]: one["bright"] for one in json.loads(capsys.readouterr().out)}
    assert set(found) == set(keys)
    expected = {name: held_out[key] for name, key in keys.items() if key in held_out}
    assert len(expected) == len(held_out) > 0
    for name, probability in expected.items():
        assert found[name] == pytest.approx(probability, abs=1e-6)
    name = min(expected)
    assert main(["predict", str(model), str(tree / name)]) == 0
    assert json.loads(capsys.readouterr().out)["bright"] == pytest.approx(expected[name], abs=1e-6)
    assert Predictor(model)(tree / name)["bright"] == pytest.approx(expected[name], abs=1e-6)


def test_a_table_of_answers_names_images_and_why_one_has_none(tree: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad_T1w.nii.gz").write_bytes(b"no image")
    good = tree / "sub-00" / "anat" / "sub-00_T1w.nii.gz"
    listed = tmp_path / "list.txt"
    listed.write_text(f"{good}\n{tmp_path / 'bad_T1w.nii.gz'}\n")
    assert main(["predict", str(model), str(listed), "--out", str(tmp_path / "out.csv"), "--workers", "0"]) == 0
    assert list(pd.read_csv(tmp_path / "out.csv")["SeriesInstanceUID"]) == [str(good)]
    (failed,) = tmp_path.glob("out*failed*.csv")
    assert pd.read_csv(failed)["SeriesInstanceUID"].tolist() == [str(tmp_path / "bad_T1w.nii.gz")]


def test_masks_are_no_images_and_each_image_is_a_place_of_its_own(tmp_path: Path) -> None:
    for name in ("a_T1w.nii.gz", "a_seg.nii.gz", "b.nii"):
        write_image(tmp_path / "one" / name, bright=10)
    (tmp_path / "one" / "notes.txt").write_text("nothing")
    assert [place.name for place in find_places([tmp_path])] == ["one/a_T1w.nii.gz", "one/b.nii"]
    assert [place.name for place in find_places([tmp_path / "one" / "b.nii"])] == ["b.nii"]


def test_what_was_made_of_a_bids_tree_is_not_looked_at(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("sub-1/anat/sub-1_T1w.nii.gz", "derivatives/tissue/sub-1/anat/sub-1_T1w.nii.gz"):
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    assert len(find_places([root])) == 2
    (root / "dataset_description.json").write_text("{}")
    assert [place.name for place in find_places([root])] == ["sub-1/anat/sub-1_T1w.nii.gz"]
    assert [place.name for place in find_places([tmp_path])] == ["set/sub-1/anat/sub-1_T1w.nii.gz"]
    (made,) = find_places([root / "derivatives"])
    assert made.folders == ("tissue", "sub-1", "anat")


def test_masks_of_the_competition_and_their_copies_of_images_are_no_series(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "rsna"
    for name in ("series/1.2.3/a.nii", "segmentations/1.2.3/1.2.3.nii", "segmentations/1.2.4_cowseg.nii"):
        write_image(root / name, bright=10)
    assert [place.name for place in find_places([root])] == ["series/1.2.3/a.nii"]
    assert [place.name for place in find_places([tmp_path])] == ["rsna/series/1.2.3/a.nii"]
    assert [one.series for one in Predictor(model).answers(root)] == ["series/1.2.3/a.nii"]
    masks = root / "segmentations"
    assert [place.name for place in find_places([masks])] == ["1.2.3/1.2.3.nii"]  # somebody asks for it
    for words in ((), ("--out", str(tmp_path / "p.csv"))):
        assert main(["predict", str(model), str(masks / "1.2.4_cowseg.nii"), *words]) == 2
        assert "its name says that it holds labels; give the scan that they are of" in capsys.readouterr().err


def test_a_corpus_is_no_raw_data_to_predict(
    model: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = model.parent / "corpus"
    image = min((corpus / "images").rglob("*.nii.gz"))
    for path in (corpus, corpus / "images", corpus / "masks", image.parent, image):
        path.exists() or path.mkdir()
        for words in ((), ("--out", str(tmp_path / "p.csv"))):
            assert main(["predict", str(model), str(path), *words]) == 2
            assert (
                f"error: {path}: of a corpus that harmonize wrote, no raw data; give the raw" in capsys.readouterr().err
            )
    listed = tmp_path / "list.txt"
    listed.write_text(f"{image}\n{tree / 'sub-00'}\n{corpus}\n")
    assert [place.fault and place.fault.reason for place in find_places([listed])] == [
        Reason.DERIVED, None, Reason.DERIVED,
    ]  # fmt: skip


def test_what_an_image_shows_is_told_by_name_sidecar_or_values(tmp_path: Path) -> None:
    named = load_image([write_image(tmp_path / "x_FLAIR.nii.gz", bright=10)])
    assert named.modality == "FLAIR"
    image = write_image(tmp_path / "plain.nii.gz", bright=10)
    silent = load_image([image])
    assert silent.modality == "MR"
    assert any("taken as an MRI" in str(line) for line in silent.decisions)
    ct = load_image([write_image(tmp_path / "c.nii.gz", bright=10, offset=-1000)])
    assert (ct.modality, ct.unit) == ("CT", HU)
    with pytest.raises(Rejection) as caught:
        load_image([write_image(tmp_path / "sub-1_part-phase_T1w.nii.gz", bright=10)])
    assert caught.value.reason is Reason.DERIVED


def test_a_contrast_that_the_corpus_lacked_is_refused_where_each_has_a_histogram(tmp_path: Path) -> None:
    (tmp_path / "nyul").mkdir()
    (tmp_path / "nyul" / "T1w.npy").touch()
    scan = load_image([write_image(tmp_path / "x_FLAIR.nii.gz", bright=10)])
    settings = Settings(mri_norm="nyul", nyul_folder=tmp_path / "nyul")
    with pytest.raises(Rejection) as caught:
        harmonize_for(scan, [Wish(settings=settings, kinds=frozenset({"MR"}))])
    assert caught.value.reason is Reason.UNSUPPORTED_MODALITY
    assert caught.value.message == "the model has no histogram of FLAIR to normalise by, but of T1w"
