"""Training and prediction see the same voxels under every option of harmonize, or training refuses the corpus."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from finetune import train as training
from finetune.model_folder import BRAIN, Bundle, irreproducible, read_bundle, save_bundle, settings_of
from finetune.models.assemble import Network
from finetune.models.heads.cells import CellsConfig
from finetune.predict import Predictor
from finetune.recipe import Recipe
from finetune.samples import DataConfig
from finetune.tasks.aneurysm import AneurysmTask
from harmonize import engine, phantom
from harmonize.corpus import Corpus
from harmonize.errors import UserError
from harmonize.labels import LOCATIONS, PRESENT
from harmonize.settings import MRI_NORMS, Settings
from harmonize.sources.dicom_series import load_series
from harmonize.voxels import brain, nyul
from headspark.encoder import EncoderConfig, build_encoder

TINY = EncoderConfig(features=(4, 8), blocks=(1, 1), strides=(1, 2))
HEAD = CellsConfig(stride=2, width=4)
DATA = DataConfig(patch=(16, 20, 12))
COARSE: dict[str, Any] = {"spacing": (5.0, 5.0, 5.0)}
REPEATABLE: dict[str, dict[str, Any]] = {
    "spacing": {"spacing": (3.0, 4.0, 5.5)},
    "fine": {"spacing": (2.5, 2.5, 2.5)},
    **{norm: {"mri_norm": norm} for norm in ("zscore", "fcm")},
    "n4": {"n4": True},
    "crop": {"crop_foreground": True},
    "circle": {"circle_mm": (90.0, 100.0, 80.0)},
    "all": {"n4": True, "crop_foreground": True, "mri_norm": "fcm", "spacing": (4.0, 4.5, 5.0)},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    **{norm: ({"mri_norm": norm}, f"--mri-norm {norm}") for norm in ("nyul", "whitestripe", "kde", "none")},
    "baked": ({"bake_windows": True}, "--bake-windows"),
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("raw")
    phantom.write("rsna", out, scans=4, size=24, seed=0)
    return out / "rsna"


@pytest.fixture(scope="module")
def airy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT and an MRI, each a ball with much air around it, with a localizer that lies in the air of the first."""
    root = tmp_path_factory.mktemp("airy")
    z, y, x = np.mgrid[:20, :40, :40]
    ball = (x - 20) ** 2 + (y - 18) ** 2 + (z - 9) ** 2 < 36
    rows = []
    for uid, modality, kind in (("1.2.1", "CT", "CTA"), ("1.2.2", "MR", "MRA")):
        noise = np.random.default_rng(0).integers(0, 20, ball.shape)
        pixels = np.where(ball, 900 if modality == "MR" else 1064, 0 if modality == "CT" else 30) + noise
        write_series(root / "series" / uid, uid, modality, pixels)
        rows.append({"SeriesInstanceUID": uid, "PatientAge": 60, "PatientSex": "Female", "Modality": kind})
    present = {label: [0, 0] for label in LOCATIONS} | {"Basilar Tip": [1, 0], PRESENT: [1, 0]}
    pd.DataFrame(rows).assign(**present).to_csv(root / "train.csv", index=False)
    return root


def write_series(folder: Path, uid: str, modality: str, pixels_ZYX: NDArray[np.int_]) -> None:
    """An axial series of 4 mm voxels."""
    folder.mkdir(parents=True)
    for k, plane in enumerate(pixels_ZYX):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        kind = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}[modality]
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = kind
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{k}"
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.PatientID = uid, f"{uid}.0", uid
        dataset.Modality, dataset.InstanceNumber = modality, k + 1
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [-80, -80, 4 * k], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [4, 4], 4
        dataset.Rows, dataset.Columns = plane.shape
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        if modality == "CT":
            dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = plane.astype("<i2").tobytes()
        dataset.save_as(folder / f"{k}.dcm", enforce_file_format=True)


def harmonized(raw: Path, out: Path, **options: Any) -> Corpus:
    engine.run("rsna", raw, out, Settings(**(COARSE | options)), workers=0)
    return Corpus.open(out)


def model_of(corpus: Corpus, folder: Path, data: DataConfig, brain_model: Path | None = None) -> Path:
    """An untrained model with the settings that training on `corpus` would give it."""
    folder.mkdir()
    weights = Network(build_encoder(TINY), HEAD, (), AneurysmTask()).state_dict()
    settings = settings_of(corpus, ("rsna",), brain_model=brain_model)
    save_bundle(folder, Bundle(encoder=TINY, head=HEAD, data=data, settings=settings), weights)
    return folder


def assert_same_input(raw: Path, corpus: Corpus, model: Path) -> None:
    predictor = Predictor(model, device=torch.device("cpu"))
    cases = AneurysmTask().cases(corpus).cases
    assert len({case.unit for case in cases}) == 2, "both CT and MRI are compared"
    for case in cases:
        region, decisions = predictor.network_region(load_series(raw / "series" / case.scan_id))
        view = predictor.view
        assert torch.equal(view.sample(region), view.sample(view.load(case))), case.scan_id
        assert region.unit == case.unit
        assert set(decisions) <= set(case.decisions), "what was decided for training is decided again"


@pytest.mark.parametrize("name", REPEATABLE)
def test_prediction_sees_the_voxels_that_training_saw(name: str, raw: Path, tmp_path: Path) -> None:
    corpus = harmonized(raw, tmp_path / "corpus", **REPEATABLE[name])
    assert irreproducible(corpus, AneurysmTask(), AneurysmTask().cases(corpus).cases) is None
    done = " ".join(line for case in AneurysmTask().cases(corpus).cases for line in case.decisions)
    assert ("by N4" in done) == ("n4" in REPEATABLE[name])
    for number, spacing in enumerate((None, 6.0)):
        data = DataConfig(patch=(16, 20, 12), spacing=spacing)
        assert_same_input(raw, corpus, model_of(corpus, tmp_path / f"model{number}", data))


@pytest.mark.parametrize("name", ["crop", "all"])
def test_a_crop_is_the_same_with_and_without_labels(name: str, airy: Path, tmp_path: Path) -> None:
    corpus = harmonized(airy, tmp_path / "corpus", **REPEATABLE[name])
    cases = AneurysmTask().cases(corpus).cases
    assert all(any(line.startswith("cropped to") for line in case.decisions) for case in cases)
    assert_same_input(airy, corpus, model_of(corpus, tmp_path / "model", DATA))


def test_a_crop_that_labels_widened_is_left_out_and_said(airy: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(airy, raw)
    localizer = {"SeriesInstanceUID": ["1.2.1"], "SOPInstanceUID": ["1.2.1.2"], "location": ["Basilar Tip"]}
    pd.DataFrame(localizer | {"coordinates": ["{'x': 3.0, 'y': 3.0}"]}).to_csv(raw / "train_localizers.csv")
    uncropped = harmonized(raw, tmp_path / "uncropped")
    assert [case.scan_id for case in AneurysmTask().cases(uncropped).cases] == ["1.2.1", "1.2.2"]
    selection = AneurysmTask().cases(harmonized(raw, tmp_path / "corpus", crop_foreground=True))
    assert [case.scan_id for case in selection.cases] == ["1.2.2"]
    assert selection.summary() == "1 of 2 series used; left out: 1 cropped wider than without labels"


@pytest.mark.parametrize("name", REFUSED)
def test_what_prediction_cannot_repeat_is_refused_before_training(name: str, raw: Path, tmp_path: Path) -> None:
    options, option = REFUSED[name]
    corpus = harmonized(raw, tmp_path / "corpus", **options)
    with pytest.raises(UserError, match=option) as refusal:
        training.train(
            Recipe(data=DataConfig(patch=(160,) * 3)), corpus=corpus, encoder_folder=None, out=tmp_path / "run"
        )
    assert refusal.value.exit_code == 2
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_every_normaliser_is_either_repeated_or_refused() -> None:
    assert set(MRI_NORMS) == {name for name in (*REPEATABLE, *REFUSED) if name in MRI_NORMS}


@pytest.mark.parametrize("norm", ["nyul", "whitestripe"])
def test_a_corpus_of_ct_alone_is_free_to_name_any_normaliser(norm: str, raw: Path, tmp_path: Path) -> None:
    table = pd.read_csv(raw / "train.csv", dtype=str)
    ct = tmp_path / "ct"
    ct.mkdir()
    (ct / "series").symlink_to(raw / "series")
    table[table["Modality"] == "CTA"].to_csv(ct / "train.csv", index=False)
    corpus = harmonized(ct, tmp_path / "corpus", mri_norm=norm)
    cases = AneurysmTask().cases(corpus).cases
    assert cases
    assert irreproducible(corpus, AneurysmTask(), cases) is None


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SynthStrip's architecture with weights by hand: the brighter, the deeper in the brain."""
    model = pytest.importorskip("nipreps.synthstrip.model", reason="needs headspark[brain]").StripModel()
    first, last = model.encoder[0], model.remaining
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        skipped = last[0].conv.in_channels - first[-1].conv.out_channels
        for conv, channel in ((first[0].conv, 0), (first[1].conv, 0), (last[0].conv, skipped), (last[1].conv, 0)):
            conv.weight[0, channel, 1, 1, 1] = 1
        last[-1].conv.weight[0, 0, 1, 1, 1] = -200
        last[-1].conv.bias[0] = 60
    torch.save({brain.STATE: model.state_dict()}, tmp_path / "weights.pt")
    # A coarse grid in the smallest frame: it is the same network, and quick.
    monkeypatch.setattr(brain, "NETWORK_SPACING_MM", 4.0)
    monkeypatch.setattr(brain, "MIN_SIDE", brain.SIDE_STEP)
    monkeypatch.setattr(brain, "MAX_SIDE", brain.SIDE_STEP)
    return tmp_path / "weights.pt"


@pytest.fixture
def two(raw: Path, tmp_path: Path) -> Path:
    """A raw tree of one CT and one MRI."""
    table = pd.read_csv(raw / "train.csv", dtype=str)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "series").symlink_to(raw / "series")
    table[~(table["Modality"] == "CTA").duplicated()].to_csv(tmp_path / "two" / "train.csv", index=False)
    return tmp_path / "two"


def test_brain_masks_that_are_only_stored_need_no_weights_later(two: Path, weights: Path, tmp_path: Path) -> None:
    engine.run("rsna", two, tmp_path / "corpus", Settings(**COARSE, brain_model=weights), workers=0, limit=1)
    corpus = Corpus.open(tmp_path / "corpus")
    assert irreproducible(corpus, AneurysmTask(), AneurysmTask().cases(corpus).cases) is None
    assert any("SynthStrip" in line for line in AneurysmTask().cases(corpus).cases[0].decisions)
    # Such a mask changes no voxel of the image, so prediction makes none.
    assert settings_of(corpus, ("rsna",), brain_model=weights) == settings_of(corpus, ("rsna",)) == Settings(**COARSE)
    assert not (model_of(corpus, tmp_path / "model", DATA) / BRAIN).exists()


def test_an_applied_brain_mask_travels_with_the_model(two: Path, weights: Path, tmp_path: Path) -> None:
    corpus = harmonized(two, tmp_path / "corpus", brain_model=weights, apply_brain=True)
    cases = AneurysmTask().cases(corpus).cases
    assert "--brain-model" in str(irreproducible(corpus, AneurysmTask(), cases))
    other = tmp_path / "other.pt"
    other.write_bytes(weights.read_bytes() + b"0")
    assert "SHA-256" in str(irreproducible(corpus, AneurysmTask(), cases, brain_model=other))
    assert irreproducible(corpus, AneurysmTask(), cases, brain_model=weights) is None
    recipe = Recipe(data=DataConfig(patch=(160,) * 3))
    with pytest.raises(UserError, match="--apply-brain") as refusal:
        training.train(recipe, corpus=corpus, encoder_folder=None, out=tmp_path / "run")
    assert refusal.value.exit_code == 2
    model = model_of(corpus, tmp_path / "model", DATA, weights)
    weights.unlink()
    assert_same_input(two, corpus, model)
    (model / BRAIN).write_bytes(b"other")
    with pytest.raises(UserError, match="missing or damaged"):
        read_bundle(model)


def test_a_model_takes_the_histograms_of_its_corpus_and_nothing_that_lies_beside_them(tmp_path: Path) -> None:
    corpus, model = tmp_path / "nyul", tmp_path / "model"
    values = nyul.StandardHistogram(scale=np.arange(3.0), percentiles=np.array([1.0, 50.0, 99.0]))
    nyul.save(corpus / "T1w.npy", values)
    nyul.save(tmp_path / "private.npy", values)
    (corpus / "linked.npy").symlink_to(tmp_path / "private.npy")
    (corpus / "private.txt").write_text("mine")
    (corpus / "private.npy").write_bytes(b"mine")
    (corpus / "folder").symlink_to(tmp_path)
    weights = Network(build_encoder(TINY), HEAD, (), AneurysmTask()).state_dict()
    settings = Settings(mri_norm="nyul", nyul_folder=corpus)
    save_bundle(model, Bundle(encoder=TINY, head=HEAD, data=DATA, settings=settings), weights)
    assert [path.name for path in (model / "nyul").iterdir()] == ["T1w.npy"]
    assert (model / "nyul/T1w.npy").read_bytes() == (corpus / "T1w.npy").read_bytes()
