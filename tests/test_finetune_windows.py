"""What a fine-tuning run shows an encoder: the windows and the scaling of its recipe, else those of its pretraining."""

from __future__ import annotations

import dataclasses
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune import train as training
from finetune.model_folder import read_bundle
from finetune.models.heads.cells import CellsConfig
from finetune.predict import Predictor
from finetune.recipe import Recipe, TrainConfig
from finetune.samples import DataConfig
from finetune.stages import StageConfig
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from headspark.config import read_recipe
from headspark.encoder import EncoderConfig, build_encoder
from headspark.hub.encoder_folder import save_encoder

FIXTURES = Path(__file__).parent / "fixtures" / "v0_1_0"
TINY = EncoderConfig(features=(4, 8), blocks=(1, 1), strides=(1, 2))
THREE = ("brain", "blood", "bone")
FROZEN = (StageConfig(name="head", steps=2, head_lr=1e-2),)
ALL = (StageConfig(name="all", steps=4, head_lr=1e-2, encoder_lr=1e-2, layers="all"),)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus.open(shutil.copytree(FIXTURES / "corpus", tmp_path_factory.mktemp("windows") / "corpus"))


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "write_report", lambda run, corpus: run)


def tiny(stages: tuple[StageConfig, ...] = FROZEN, **data: Any) -> Recipe:
    return Recipe(
        data=DataConfig(patch=(16, 16, 16), folds=2, mirror=False, **data),
        scratch=TINY,
        head=CellsConfig(stride=2, width=4, top=2),
        stages=stages,
        train=TrainConfig(batch=2, log_every=1, checkpoint_every=100, threads=1),
    )


def pretrained(folder: Path, *windows: Any, **preprocessing: Any) -> Path:
    torch.manual_seed(3)
    facts = {"spacing_mm": [5.0] * 3, "mri_norms": {}, "ct_windows": list(windows), **preprocessing}
    save_encoder(build_encoder(dataclasses.replace(TINY, in_channels=len(windows))), folder, preprocessing=facts)
    return folder


def run(recipe: Recipe, corpus: Corpus, out: Path, encoder: Path | None = None) -> Any:
    return training.train(recipe, corpus=corpus, encoder_folder=None if encoder is None else str(encoder), out=out)


def test_a_recipe_that_names_a_further_window_gets_it(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, out = pretrained(tmp_path / "encoder", *THREE), tmp_path / "run"
    run(tiny(ct_windows=(*THREE, "vessel")), corpus, out, encoder)
    said = capsys.readouterr().err
    assert "this run cuts brain, blood, bone, vessel: its first convolution is adapted (vessel is new and" in said
    old, new = load_file(encoder / "model.safetensors"), load_file(out / "model.safetensors")
    kernel = "stem.convs.0.conv.weight"
    torch.testing.assert_close(new[f"encoder.{kernel}"][:, :3], old[kernel] * 3 / 4)
    torch.testing.assert_close(new[f"encoder.{kernel}"][:, 3], old[kernel].mean(1) * 3 / 4)
    assert all(torch.equal(new[f"encoder.{name}"], value) for name, value in old.items() if name != kernel)
    bundle = read_bundle(out)
    assert bundle.encoder.in_channels == 4
    assert bundle.data.ct_windows == (*THREE, "vessel")
    series = next((FIXTURES / "raw" / "rsna" / "series").iterdir())
    assert all(0 < value < 1 for value in Predictor(out)(series).values())


@pytest.mark.parametrize(
    ("stated", "preprocessing", "windows", "scaling"),
    [
        ({}, {"mri_scaling": "linear"}, ("blood",), "linear"),
        ({}, {}, ("blood",), "clip"),  # an encoder of version 0.1.0
        ({"mri_scaling": "soft"}, {}, ("blood",), "soft"),
        ({"ct_windows": ("bone", "vessel")}, {"mri_scaling": "soft"}, ("bone", "vessel"), "soft"),
    ],
)
def test_what_a_recipe_leaves_open_is_the_encoders(
    stated: dict[str, Any],
    preprocessing: dict[str, str],
    windows: tuple[str, ...],
    scaling: str,
    corpus: Corpus,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(tiny(**stated), corpus, tmp_path / "run", pretrained(tmp_path / "encoder", "blood", **preprocessing))
    stored = read_recipe(Recipe, tmp_path / "run" / "recipe.yaml").data
    for data in (stored, read_bundle(tmp_path / "run").data):
        assert (data.ct_windows, data.mri_scaling) == (windows, scaling)
    differs = "the encoder was pretrained with data.mri_scaling clip, this run has soft" in capsys.readouterr().err
    assert differs == (scaling == "soft" and not preprocessing)


def test_from_scratch_the_windows_are_as_many_as_the_channels(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match=r"scratch\.in_channels 3: data\.ct_windows names 2 channels"):
        run(tiny(ct_windows=("brain", "vessel")), corpus, tmp_path / "run")
    own = {"name": "sinus", "width": 400, "level": 50}
    recipe = dataclasses.replace(tiny(ct_windows=("vessel", own)), scratch=dataclasses.replace(TINY, in_channels=2))
    run(recipe, corpus, tmp_path / "run")
    data = read_bundle(tmp_path / "run").data
    assert [window[1:] for window in data.windows] == [(700.0, 250.0), (400.0, 50.0)]
    assert data.mri_scaling == "soft"


def test_an_encoder_of_a_scaling_that_nobody_knows_is_refused_by_name(corpus: Corpus, tmp_path: Path) -> None:
    encoder = pretrained(tmp_path / "encoder", *THREE, mri_scaling="sqrt")
    with pytest.raises(UserError, match=r"--encoder: .*config\.json: mri_scaling sqrt: use one of soft, clip, linear"):
        run(tiny(), corpus, tmp_path / "run", encoder)


def test_a_run_with_an_adapted_encoder_goes_on_to_the_same_weights(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, recipe = pretrained(tmp_path / "encoder", *THREE), tiny(ALL, ct_windows=("vessel", "blood"))
    run(recipe, corpus, tmp_path / "whole", encoder)
    taken = training.train_step

    def step_and_signal(state: Any, *rest: Any) -> Any:
        if state.step == 1:
            signal.raise_signal(signal.SIGTERM)
        return taken(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", step_and_signal)
        assert run(recipe, corpus, tmp_path / "cut", encoder) is None
    shutil.rmtree(encoder)  # the checkpoint holds the weights
    assert run(recipe, corpus, tmp_path / "cut", encoder) is not None
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_was_begun_before_there_was_a_choice_goes_on_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FIXTURES, tmp_path / "v0_1_0")
    monkeypatch.chdir(tmp_path)
    out, encoder, corpus = Path("v0_1_0/finetuning"), Path("v0_1_0/encoder"), Corpus.open(FIXTURES / "corpus")
    recipe = read_recipe(Recipe, out / "recipe.yaml")
    for change, said in (
        ({"mri_scaling": "soft"}, "began with data.mri_scaling clip, now soft is asked for"),
        ({"ct_windows": ("vessel",)}, r"began with data.ct_windows .*now \['vessel'\] is asked for"),
    ):
        with pytest.raises(WrongUse, match=said):
            run(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **change)), corpus, out, encoder)
    run(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, ct_windows=())), corpus, out, encoder)
    data = read_bundle(out).data
    assert (data.ct_windows, data.mri_scaling) == (THREE, "clip")
