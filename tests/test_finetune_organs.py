"""Recipes of published masks at toy size on their phantoms: TopCoW's arteries, AMOS's organs and on to the brain."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_finetune_recipes import FIXTURES, ROOT, TOY, toy

from finetune.cli import main
from finetune.models.assemble import Network
from finetune.models.heads.decoder import DecoderConfig
from finetune.models.heads.segmentation import SegmentationConfig
from finetune.origin import read_given
from finetune.recipe import Recipe
from finetune.series import Sample
from finetune.targets import IGNORE
from finetune.tasks import make_task
from finetune.tasks.aneurysm import TOPCOW, AneurysmConfig, AneurysmTask
from finetune.train import train
from finetune.views import make_view
from finetune.views.box import BoxConfig
from harmonize import phantom
from harmonize.cli import main as harmonize
from harmonize.corpus import Corpus, read_volume
from harmonize.errors import UserError, WrongUse
from harmonize.phantom import amos, topcow
from headspark.config import read_recipe
from headspark.run.claim import read_metrics

SCANS = {"topcow": 4, "amos": 3, "nifti": 4}
SPACING = {"topcow": 4, "amos": 8, "nifti": 5}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw trees in raw/, a corpus of each beside it, and one of TopCoW and series of aneurysms together."""
    out = tmp_path_factory.mktemp("organs")
    for name, scans in SCANS.items():
        (raw,) = phantom.write(name, out / "raw", scans=scans, size=40, seed=1)
        masks = ["--masks", str(raw / "derivatives/hemispheres")] if name == "nifti" else []
        command = ["nifti", str(raw), "--out", str(out / name), "--spacing", str(SPACING[name]), "--workers", "0"]
        assert harmonize([*command, *masks]) == 0
    shutil.copytree(FIXTURES / "corpus", out / "both")
    command = ["nifti", str(out / "raw/topcow"), "--out", str(out / "both"), "--spacing", "5", "--workers", "0"]
    assert harmonize(command) == 0
    return out


def small(name: str) -> Recipe:
    """A recipe whose network, patch and stages are tiny; kinds, windows, rates and the order of stages stay."""
    recipe: Any = toy(read_recipe(Recipe, ROOT / f"{name}.yaml"))
    kept = tuple(term for term in recipe.losses if term.of in ("masks", "masks_2", "domain"))
    return dataclasses.replace(
        recipe,
        scratch=dataclasses.replace(TOY, in_channels=recipe.scratch.in_channels),
        head=SegmentationConfig(deep_supervision=1),
        losses=kept,
    )


def run(name: str, corpus: Path, out: Path, encoder: Path | None = None) -> list[dict[str, Any]]:
    """Train a recipe; gives what its steps measured."""
    given = None if encoder is None else str(encoder)
    assert train(small(name), corpus=Corpus.open(corpus), encoder_folder=given, out=out) is not None
    return [line for line in read_metrics(out) if "loss" in line]


def drawn(model: Path, image: Path, folder: Path) -> tuple[nib.Nifti1Image, set[int]]:
    """What a model draws into an image, and the values that there are."""
    assert main(["predict", str(model), str(image), "--masks", str(folder), "--device", "cpu"]) == 0
    (path,) = folder.glob("*.nii.gz")
    found = nib.load(path)
    raw = nib.load(image)
    assert found.shape == raw.shape
    np.testing.assert_allclose(found.affine, raw.affine, atol=1e-4)
    return found, set(np.unique(np.asanyarray(found.dataobj)).tolist())


@pytest.fixture(scope="module")
def arteries(made: Path) -> Path:
    steps = run("topcow", made / "topcow", made / "ft_topcow")
    assert [line["stage"] for line in steps] == ["decoder", "all"]
    return made / "ft_topcow"


def test_topcow_is_learned_in_both_modalities_and_drawn_with_its_own_values(
    made: Path, arteries: Path, tmp_path: Path
) -> None:
    task = make_task(read_recipe(Recipe, arteries / "recipe.yaml").task)
    assert dict(zip(task.mask_values, task.labels, strict=True)) == topcow.LABELS
    assert task.modalities == ("CT", "MR")
    assert task.mirror is not None
    swapped = {task.labels[one]: task.labels[other] for one, other in enumerate(task.mirror) if one != other}
    assert swapped["R-PCA"] == "L-PCA"
    assert len(swapped) == 10
    page = (arteries / "report.html").read_text()
    assert all(name in page for name in topcow.LABELS.values())
    _, values = drawn(arteries, made / "raw/topcow/imagesTr/topcow_mr_001_0000.nii.gz", tmp_path / "masks")
    assert values <= {0, *topcow.LABELS}


def test_vessels_of_aneurysms_begin_with_encoder_and_decoder_of_a_topcow_run(arteries: Path, tmp_path: Path) -> None:
    assert main(["export", str(arteries), "--out", str(tmp_path / "encoder")]) == 0
    given = read_given(str(tmp_path / "encoder"), decoder=True)
    assert given.decoder is not None
    assert given.decoder.outputs == {"masks": len(topcow.LABELS) + 1}
    recipe = toy(read_recipe(Recipe, ROOT / "rsna_vessels_first.yaml"))
    network = Network(given.network, recipe.head, (DecoderConfig(stride=2),), AneurysmTask())
    (head,) = network.auxiliary
    before = {name: value.clone() for name, value in head.decoder.state_dict().items()}
    head.begin_with(given.decoder)
    assert head.note == "the decoder begins as it was pretrained; the layer that predicts is new"
    trained = load_file(arteries / "model.safetensors")
    for name, value in head.decoder.state_dict().items():
        same = before if name.startswith("seg_layers.") else {name: trained[f"head.decoder.{name}"]}
        assert torch.equal(value, same[name]), name


def test_topcows_arteries_teach_territories_and_nothing_else(made: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(made / "both")
    recipe: Any = toy(read_recipe(Recipe, ROOT / "rsna_three_stage.yaml"))
    task = AneurysmTask(AneurysmConfig(topcow=("nifti",)))
    selection = task.cases(corpus)
    assert len(selection.masked) == SCANS["topcow"]
    view = make_view(BoxConfig(), recipe.data, task)
    for case in selection.masked:
        findings = view.findings(view.load(case))
        sample = Sample(
            findings=findings, shape=recipe.data.patch, spacing=(5, 5, 5), cells={"territory": 2, "vessels": 2}
        )
        targets = task.targets(sample)
        assert not targets["labels_known"]
        assert not targets["vessels_known"]
        raw = read_volume(case.mask).stored_XYZ
        named = {task.labels.index(TOPCOW[value]) for value in np.unique(raw).tolist() if value in TOPCOW}
        found = set(targets["territory"].unique().tolist()) - {IGNORE}
        assert found
        assert found <= named
    labelled = task.targets(
        Sample(findings=view.findings(view.load(selection.cases[0])), shape=recipe.data.patch, spacing=(5, 5, 5))
    )
    assert labelled["labels_known"]
    recipe = dataclasses.replace(recipe, task=AneurysmConfig(topcow=("nifti",)))
    recipe = dataclasses.replace(
        recipe, data=dataclasses.replace(recipe.data, pseudo_weight=1000.0, patch=(24, 24, 24))
    )
    assert train(recipe, corpus=corpus, encoder_folder=None, out=tmp_path / "ft") is not None
    steps = [line for line in read_metrics(tmp_path / "ft") if "loss" in line]
    # Nearly every draw is one of TopCoW's: the labels have no loss, the territories have.
    assert {line["labels"] for line in steps} == {0.0}
    assert all(line["territory"] > 0 for line in steps)
    with pytest.raises(UserError, match=r"^task\.topcow tcia: .* has no series of it with masks"):
        AneurysmTask(AneurysmConfig(topcow=("tcia",))).cases(corpus)
    (tmp_path / "other").mkdir()
    for path in (made / "both").iterdir():
        (tmp_path / "other" / path.name).symlink_to(path)
    facts = json.loads((made / "both/corpus.json").read_text())
    facts["sources"]["nifti"]["mri_norm"] = "fcm"
    (tmp_path / "other/corpus.json").unlink()
    (tmp_path / "other/corpus.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"^task\.topcow nifti: its MRI is normalised by fcm, that of rsna by zscore"):
        task.cases(Corpus.open(tmp_path / "other"))
    with pytest.raises(WrongUse, match=r"^task\.topcow rsna: has masks of its own values"):
        AneurysmConfig(topcow=("rsna",))


def test_organs_become_hemispheres_in_three_stages_with_another_window(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("amos_organs", made / "amos", tmp_path / "organs")
    task = make_task(read_recipe(Recipe, tmp_path / "organs/recipe.yaml").task)
    assert dict(zip(task.mask_values, task.labels, strict=True)) == amos.LABELS
    assert task.modalities == ("CT", "MR")
    _, values = drawn(tmp_path / "organs", made / "raw/amos/imagesTr/amos_0001.nii.gz", tmp_path / "organ_masks")
    assert values <= {0, *amos.LABELS}
    assert main(["export", str(tmp_path / "organs"), "--out", str(tmp_path / "encoder")]) == 0
    given = read_given(str(tmp_path / "encoder"), decoder=True)
    assert given.network.preprocessing["ct_windows"] == [{"name": "organs", "width": 400.0, "level": 40.0}]
    assert given.decoder is not None
    capsys.readouterr()

    steps = run("amos_to_brain", made / "nifti", tmp_path / "brain", tmp_path / "encoder")
    said = " ".join(capsys.readouterr())
    assert "its first convolution is adapted (brain is new and takes the place of organs)" in said
    assert "the decoder begins as it was pretrained; the layer that predicts is new" in said
    assert [(line["stage"], line["layers"]) for line in steps] == [("decoder", 0), ("deeper", 2), ("all", 4)]
    assert all({"masks", "masks_2", "domain"} <= line.keys() for line in steps)
    found = read_recipe(Recipe, tmp_path / "brain/recipe.yaml")
    assert [(window.width, window.level) for window in found.data.windows] == [(80, 40)]
    assert make_task(found.task).mirror == (1, 0)
    assert "left hemisphere" in (tmp_path / "brain/report.html").read_text()
    image = made / "raw/nifti/sub-001/anat/sub-001_ct.nii.gz"
    assert drawn(tmp_path / "brain", image, tmp_path / "masks")[1] <= {0, 1, 2}

    steps = run("brain_demo", made / "nifti", tmp_path / "demo", tmp_path / "encoder")
    assert [(line["stage"], line["layers"]) for line in steps] == [("decoder", 0), ("deeper", 2), ("all", 4)]
    assert all({"masks", "masks_2", "domain"} <= line.keys() for line in steps)
