"""Encoders as folders and on the Hub: the real client against a stand-in Hub in this process."""

from __future__ import annotations

import json
import logging
import runpy
import shutil
import time
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest
import standin_hub
import torch
from monai.networks.nets import SegResNetDS
from monai.networks.nets.flexible_unet import UNetDecoder
from safetensors.torch import load_file, save_file
from standin_hub import TOKEN, Hub

from harmonize.corpus import Corpus, write_manifest
from harmonize.errors import UserError, WrongUse
from headspark import Encoder, load_encoder, save_encoder
from headspark.config import read_recipe, run_command
from headspark.decoder import DecoderConfig
from headspark.encoder import EncoderConfig, MaskableEncoder, build_encoder
from headspark.hub.export import export_run
from headspark.hub.model_card import write_card
from headspark.interop.nnssl import read_nnssl, write_nnssl
from headspark.masking import MaskConfig
from headspark.packed import MaskGeometry
from headspark.recipe import DataConfig, Recipe, TrainConfig
from headspark.run.checkpoint import load_newest
from headspark.train import train

PUSH = Path(__file__).resolve().parents[1] / "ssl" / "push.py"
PREPROCESSING = {"spacing_mm": [1.0, 1.0, 1.0], "ct_windows": ["brain", "blood", "bone"]}


@pytest.fixture(scope="module")
def run(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = Recipe(
        data=DataConfig(patch=16, workers=0, val_share=0.3),
        encoder=EncoderConfig(features=(4, 8), blocks=(1, 1), strides=(1, 2)),
        mask=MaskConfig(block=8, ratio=0.5),
        train=TrainConfig(steps=3, threads=1, val_samples=1, ema=0.5, log_every=1, trackers=()),
    )
    train(recipe, corpus=tiny_corpus, out=folder)
    return folder


def push(*words: object) -> int:
    return run_command(runpy.run_path(str(PUSH))["main"], [str(word) for word in words])


def features(encoder: torch.nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return encoder(torch.randn(1, 3, 16, 16, 16))


def test_a_folder_gives_the_same_features_as_the_run(run: Path, tmp_path: Path) -> None:
    assert push(run, "--folder", tmp_path / "encoder") == 0
    encoder = Encoder.from_pretrained(tmp_path / "encoder")
    checkpoint = load_newest(run / "checkpoints", say=print)
    assert checkpoint is not None
    assert checkpoint.ema is not None
    trained = build_encoder(encoder.config).eval()
    trained.load_state_dict({k[8:]: v for k, v in checkpoint.ema.items() if k.startswith("encoder.")})
    assert all(torch.equal(a, b) for a, b in zip(features(encoder), features(trained), strict=True))
    assert not encoder.training
    assert (encoder.channels, encoder.strides) == ((4, 8), (1, 2))
    assert encoder.preprocessing["spacing_mm"] == [1.0, 1.0, 1.0]
    assert (encoder.preprocessing["region"], "region_mm" in encoder.preprocessing) == ("all", False)
    assert encoder.preprocessing["ct_windows"] == ["brain", "blood", "bone"]
    assert encoder.preprocessing["mri_norms"] == {"openmind": "zscore", "tcia": "zscore"}


def test_the_weights_carry_nnunets_keys(run: Path, tmp_path: Path) -> None:
    push(run, "--folder", tmp_path / "encoder")
    keys = set(load_file(tmp_path / "encoder" / "model.safetensors"))
    assert {"stem.convs.0.conv.weight", "stages.1.blocks.0.conv2.norm.bias"} <= keys


def test_the_card_tells_how_to_load_what_it_saw_and_how_it_was_trained(run: Path, tmp_path: Path) -> None:
    push(run, "--folder", tmp_path / "encoder")
    card = (tmp_path / "encoder" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: headspark\n")
    for text in (
        'encoder = load_encoder("THIS_REPOSITORY_OR_FOLDER")',
        "| openmind | T1w | 4 | 3 | [CC-BY-4.0](https://huggingface.co/datasets/AnonRes/OpenMind) |",
        "| tcia | CT | 2 | 2 | [the collection's own](https://www.cancerimagingarchive.net/",
        "datasets:\n- AnonRes/OpenMind\n---",
        "patches a second |",
        (run / "recipe.yaml").read_text(),
    ):
        assert text in card
    for name in ("curves.png", "reconstruction.png"):
        assert f"]({name})" in card
        assert (tmp_path / "encoder" / name).read_bytes().startswith(b"\x89PNG")


def test_a_run_becomes_a_checkpoint_that_nnunet_fine_tunes_from(run: Path, tmp_path: Path) -> None:
    assert push(run, "--folder", tmp_path / "encoder") == 0
    assert push(run, "--nnunet", tmp_path / "nnunet") == 0
    plan = json.loads((tmp_path / "nnunet" / "adaptation_plan.json").read_text())
    assert plan["recommended_downstream_patchsize"] == [16, 16, 16]
    back = read_nnssl(tmp_path / "nnunet").encoder
    encoder = Encoder.from_pretrained(tmp_path / "encoder")
    assert all(torch.equal(a, b) for a, b in zip(features(encoder), features(back), strict=True))


def test_monais_decoder_sits_on_the_encoder(run: Path, tmp_path: Path) -> None:
    push(run, "--folder", tmp_path / "encoder")
    encoder = Encoder.from_pretrained(tmp_path / "encoder")
    c = encoder.channels
    decoder = UNetDecoder(3, c, c[-2::-1], "leakyrelu", "instance", 0.0, False, "deconv", None, "nearest", None, True)
    assert decoder(encoder(torch.zeros(1, 3, 16, 16, 16)), len(c) - 2).shape == (1, 4, 16, 16, 16)


def test_a_segresnet_goes_back_into_monais_own_network(tmp_path: Path) -> None:
    encoder = build_encoder(EncoderConfig(kind="segresnet", features=(8, 16), blocks=(1, 2), strides=(1, 2))).eval()
    save_encoder(encoder, tmp_path / "encoder", preprocessing=PREPROCESSING)
    network = SegResNetDS(in_channels=3, init_filters=8, blocks_down=(1, 2), norm=("instance", {"affine": True})).eval()
    weights = load_file(tmp_path / "encoder" / "model.safetensors")
    network.encoder.load_state_dict({name.removeprefix("net."): weight for name, weight in weights.items()})
    assert all(torch.equal(a, b) for a, b in zip(features(network.encoder), features(encoder), strict=True))


def test_an_nnssl_checkpoint_becomes_an_encoder_folder(tmp_path: Path) -> None:
    encoder = build_encoder(EncoderConfig(in_channels=1, features=(4, 8), blocks=(1, 1), strides=(1, 2))).eval()
    write_nnssl(tmp_path, encoder, patch=(16, 16, 16))  # type: ignore[arg-type]  # a residual one
    found = read_nnssl(tmp_path)
    save_encoder(found.encoder, tmp_path / "encoder", preprocessing=found.preprocessing)
    loaded = Encoder.from_pretrained(tmp_path / "encoder")
    assert loaded.preprocessing == {
        "orientation": "RAS", "spacing_mm": [1.0] * 3, "ct_windows": ["brain", "blood", "bone"],
        "mri_norms": {"headspark": "zscore"}, "mri_scaling": "linear",
    }  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(features(loaded), features(found.encoder), strict=True))


def test_an_encoder_is_replaced_but_nothing_else_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "encoder"
    assert [push(run, "--folder", folder), push(run, "--folder", folder)] == [0, 0]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    assert push(run, "--folder", tmp_path / "other") == 2
    assert "no encoder" in capsys.readouterr().err
    assert (tmp_path / "other" / "thesis.tex").read_text() == "mine"


def test_a_card_that_somebody_wrote_into_is_not_lost(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "encoder"
    card = folder / "README.md"
    assert push(run, "--folder", folder) == 0
    written = card.read_text()
    for own in (f"{written}\nOur notes.\n", written.replace("## ", "## Of our lab: ", 1)):
        card.write_text(own)
        capsys.readouterr()
        assert push(run, "--folder", folder) == 2
        assert f"error: {card}: was changed by hand" in capsys.readouterr().err
        assert card.read_text() == own
    # Editors and git end lines and files as they like.
    card.write_bytes(written.rstrip().replace("\n", "\r\n").encode())
    assert push(run, "--folder", folder) == 0
    card.write_text(written.replace("3D encoder", "Fine-tuned by headspark: 3D encoder"))
    assert push(run, "--folder", folder) == 2
    assert "an encoder of `finetune export`, which stays as it is" in capsys.readouterr().err


def test_what_is_no_run_cannot_be_pushed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(tmp_path, "--folder", tmp_path / "encoder") == 2
    assert "not a pretraining run" in capsys.readouterr().err


def test_an_encoder_goes_to_the_hub_and_back(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(run, "--repo", "user/name") == 0
    assert "user/name/commit/" in capsys.readouterr().out
    files = hub.repos["user/name"].commits[-1]
    assert set(files) >= {"config.json", "model.safetensors", "README.md", "curves.png", "reconstruction.png"}
    assert len(hub.repos["user/name"].commits) == 2  # the empty one, and one for everything
    encoder = Encoder.from_pretrained("user/name")
    assert features(encoder)[-1].shape == (1, 8, 8, 8, 8)


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"theirs", "README.md": b"theirs"},
        {"config.json": b'{"encoder": {}, "head": {}}', "model.safetensors": b"a fine-tuned one"},
        {"weights.gguf": b"theirs"},
        {"README.md": b"a page written by hand"},
    ],
)
def test_a_repository_with_something_else_stays_as_it_is(
    run: Path, hub: Hub, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repos["user/taken"] = standin_hub.Repo(private=False, commits=[{}, files])
    assert push(run, "--repo", "user/taken") == 2
    assert "user/taken: the repository holds something else" in capsys.readouterr().err
    assert hub.repos["user/taken"].commits == [{}, files]


def test_an_encoder_on_the_hub_is_replaced_and_files_beside_it_stay(run: Path, hub: Hub) -> None:
    assert push(run, "--repo", "user/name") == 0
    ours = hub.repos["user/name"].files
    hub.repos["user/name"].commits.append({**ours, "notes.txt": b"mine", "config.json": b"{}"})
    assert push(run, "--repo", "user/name") == 2
    hub.repos["user/name"].commits.append({**ours, "notes.txt": b"mine", "README.md": b"old"})
    hub.repos["datasets/user/name"] = standin_hub.Repo(private=False, commits=[{"data.parquet": b"theirs"}])
    assert push(run, "--repo", "user/name") == 0
    assert hub.repos["user/name"].files["notes.txt"] == b"mine"
    assert hub.repos["user/name"].files["README.md"].startswith(b"---\nlibrary_name: headspark")
    assert hub.repos["datasets/user/name"].files == {"data.parquet": b"theirs"}


def test_without_a_network_the_push_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    assert push(run, "--repo", "user/name") == 1
    assert "HF_HUB_OFFLINE forbids to ask it; unset it to push" in capsys.readouterr().err


def test_a_repository_that_was_made_on_the_hubs_page_is_new(run: Path, hub: Hub) -> None:
    hub.repos["user/new"] = standin_hub.Repo(private=False, commits=[{}, {"README.md": b"---\nlicense: mit\n---\n"}])
    assert push(run, "--repo", "user/new") == 0
    assert "model.safetensors" in hub.repos["user/new"].files


def test_a_run_itself_is_no_place_for_its_encoder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for option in ("--folder", "--nnunet"):
        assert push(run, option, run) == 2
        assert "a pretraining run" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_private_repository_needs_the_token(
    run: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(run, "--repo", "user/secret", "--private") == 0
    assert hub.repos["user/secret"].private
    assert Encoder.from_pretrained("user/secret").channels == (4, 8)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="user/secret"):
        Encoder.from_pretrained("user/secret", cache_dir=tmp_path / "cold-cache")
    assert push(run, "--repo", "user/another") == 1
    shown = capsys.readouterr()
    assert "hf auth login" in shown.err
    assert "hf_wrong" not in shown.out + shown.err
    assert TOKEN not in shown.out + shown.err


def test_an_interrupted_upload_leaves_the_repository_as_it_was_and_can_be_repeated(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fail_uploads = True
    assert push(run, "--repo", "user/name") == 1
    assert capsys.readouterr().err.count("\n") >= 1
    assert hub.repos["user/name"].commits[-1].keys() <= {".gitattributes"}
    hub.fail_uploads = False
    assert push(run, "--repo", "user/name") == 0
    assert "model.safetensors" in hub.repos["user/name"].commits[-1]


def test_an_upload_whose_connection_breaks_is_one_line_and_goes_on_with_what_is_missing(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits longer before each new attempt
    hub.break_after = 1
    with caplog.at_level(logging.DEBUG):
        assert push(run, "--repo", "user/name", "--private") == 1
    shown = capsys.readouterr()
    assert [line for line in shown.err.splitlines() if line.startswith("error: ")] == [shown.err.splitlines()[-1]]
    assert len(hub.objects) == 1
    assert hub.repos["user/name"].commits[-1].keys() <= {".gitattributes"}
    hub.break_after = None
    already = set(hub.objects)
    assert push(run, "--repo", "user/name", "--private") == 0
    assert not already & set(hub.uploads[-2:])
    assert set(hub.repos["user/name"].commits[-1]) >= {"config.json", "model.safetensors", "README.md", "curves.png"}
    assert TOKEN not in shown.out + shown.err + caplog.text


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    small = build_encoder(EncoderConfig(features=(4, 8), blocks=(1, 1), strides=(1, 2)))
    save_encoder(small, tmp_path / "encoder", preprocessing=PREPROCESSING)
    (tmp_path / "encoder" / "model.safetensors").unlink()
    torch.save(small.state_dict(), tmp_path / "encoder" / "pytorch_model.bin")
    with pytest.raises(UserError):
        Encoder.from_pretrained(tmp_path / "encoder")


def test_nothing_that_leaves_tells_where_it_was_made(
    tiny_corpus: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "zqxjkv"
    corpus, evil = shutil.copytree(tiny_corpus, home / "corpus"), "T1w | <img src=x>\n# `b`"
    rows = Corpus.open(corpus).scans.to_dict("records")
    write_manifest(corpus, [row | {"modality": evil} if row["modality"] == "T1w" else row for row in rows], [])
    monkeypatch.setenv("HOME", str(home))
    recipe = Recipe(
        data=DataConfig(patch=16, workers=0, val_share=0.3, cache="disk", cache_dir=str(home / "cache"),
                        weights={"a\n```\n<img src=y>": 2.0}),
        encoder=EncoderConfig(features=(4, 8), blocks=(1, 1), strides=(1, 2)),
        mask=MaskConfig(block=8, ratio=0.5),
        train=TrainConfig(steps=1, threads=1, val_samples=1, trackers=()),
    )  # fmt: skip
    train(recipe, corpus=corpus, out=home / "run")
    assert "zqxjkv" in (home / "run" / "recipe.yaml").read_text()
    assert push(home / "run", "--folder", home / "encoder") == 0
    assert push(home / "run", "--nnunet", home / "nnunet") == 0
    assert push(home / "run", "--repo", "user/name") == 0
    pushed = {f"hub/{name}": content for name, content in hub.repos["user/name"].files.items()}
    written = {str(path): path.read_bytes() for name in ("encoder", "nnunet") for path in (home / name).rglob("*.*")}
    assert len(pushed) > 3
    assert len(written) > 4
    assert [name for name, content in (pushed | written).items() if b"zqxjkv" in content] == []
    card = (home / "encoder" / "README.md").read_text()
    assert "| openmind | T1w \\| \\<img src=x\\>\\\\n\\# \\`b\\` | 4 | 3 |" in card
    assert card.count("\n````") == 2, "what is in the block of the recipe does not end it"


def test_nothing_that_a_run_says_of_itself_makes_markup_in_its_card() -> None:
    folder = Path(__file__).parent / "fixtures" / "v0_1_0" / "run"
    recipe, state = read_recipe(Recipe, folder / "recipe.yaml"), json.loads((folder / "run.json").read_text())
    evil = "x | <img src=y>\n---\n`z`"
    state["corpus"]["groups"][0] |= {"source": evil, "modality": evil}
    state["corpus"] |= {"manifest_sha256": evil, "mri_norms": {"a": evil}}
    state |= {"device": evil, "revision": evil, "libraries": {evil: evil}, "effective_batch": evil}
    weights = {"data": replace(recipe.data, weights={"\u202e": 2.0})}
    card = write_card(replace(recipe, **weights), state, [{"step": 1, "loss": 1.0, "lr": 0.1}], step=1, picture=None)
    assert card.text.count("\n---\n") == 1
    assert " <img" not in card.text
    assert "`z`" not in card.text
    assert card.text.count("x \\| \\<img src=y\\>\\\\n---\\\\n\\`z\\`") == 12
    assert all(line.isprintable() for line in card.text.splitlines())


@pytest.mark.parametrize(("words", "private"), [([], True), (["--private"], True), (["--public"], False)])
def test_a_new_repository_is_private_unless_it_shall_be_public(
    run: Path, hub: Hub, words: list[str], private: bool
) -> None:
    assert push(run, "--repo", "user/new", *words) == 0
    assert hub.repos["user/new"].private == private


def test_a_repository_that_is_public_stays_so(run: Path, hub: Hub) -> None:
    hub.repos["user/open"] = standin_hub.Repo(private=False, commits=[{}])
    assert push(run, "--repo", "user/open") == 0
    assert not hub.repos["user/open"].private


def test_load_encoder_gives_what_from_pretrained_gives(run: Path, hub: Hub, tmp_path: Path) -> None:
    assert push(run, "--out", tmp_path / "encoder") == 0
    assert push(run, "--repo", "user/name") == 0
    first = hub.repos["user/name"].commits[-1]
    for place in (tmp_path / "encoder", str(tmp_path / "encoder"), "user/name"):
        encoder = load_encoder(place)
        assert isinstance(encoder, MaskableEncoder)
        assert not encoder.training
        assert encoder.preprocessing["ct_windows"] == ["brain", "blood", "bone"]
        expected = features(Encoder.from_pretrained(tmp_path / "encoder"))
        assert all(torch.equal(a, b) for a, b in zip(features(encoder), expected, strict=True))
    assert first["model.safetensors"] == (tmp_path / "encoder" / "model.safetensors").read_bytes()


def test_load_encoder_asks_the_hub_for_the_revision(run: Path, hub: Hub, tmp_path: Path) -> None:
    assert push(run, "--out", tmp_path / "encoder", "--decoder") == 2  # this run has a light one
    assert push(run, "--repo", "user/name") == 0
    newer = {**hub.repos["user/name"].files, "config.json": b"{}"}
    hub.repos["user/name"].commits.append(newer)
    assert load_encoder("user/name", revision="step_000003").channels == (4, 8)
    assert load_encoder("user/name@step_000003").channels == (4, 8)
    for name, revision in (("user/name", None), ("user/name", "main"), ("user/name@main", None)):
        with pytest.raises(UserError, match="user/name"):
            load_encoder(name, revision=revision)
    with pytest.raises(UserError, match="no such revision; its tags and branches stand at http"):
        load_encoder("user/name@step_000004")
    with pytest.raises(WrongUse, match="another revision"):
        load_encoder("user/name@main", revision="step_000003")
    assert push(run, "--out", tmp_path / "encoder") == 0
    with pytest.raises(WrongUse, match="a folder has no revision v1"):
        load_encoder(tmp_path / "encoder", revision="v1")


@pytest.fixture(scope="module")
def unet_run(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run whose decoder is worth keeping."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = Recipe(
        data=DataConfig(patch=16, workers=0, val_share=0.3),
        encoder=EncoderConfig(features=(4, 8, 8), blocks=(1, 1, 1), strides=(1, 2, 2)),
        mask=MaskConfig(block=8, ratio=0.5),
        decoder=DecoderConfig(kind="unet"),
        train=TrainConfig(steps=2, threads=1, val_samples=1, ema=0.5, trackers=()),
    )
    train(recipe, corpus=tiny_corpus, out=folder)
    return folder


def test_the_decoder_comes_back_with_its_encoder(unet_run: Path, tmp_path: Path) -> None:
    assert push(unet_run, "--out", tmp_path / "encoder", "--decoder") == 0
    encoder, decoder = load_encoder(tmp_path / "encoder", decoder=True)
    assert not decoder.training
    model = export_run(unet_run).model
    torch.manual_seed(0)
    x_BCDHW = torch.randn(2, 3, 16, 16, 16)
    everything = MaskGeometry(torch.ones(2, 2, 2, 2, dtype=torch.bool))
    with torch.no_grad():
        predicted, expected = decoder(encoder(x_BCDHW)), model.predict(x_BCDHW, everything)
    assert predicted.shape == x_BCDHW.shape
    assert torch.allclose(predicted, expected, atol=1e-5)
    assert all(torch.equal(weight, decoder.state_dict()[name]) for name, weight in model.decoder.state_dict().items())
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert config["decoder"] == {"kind": "unet", "file": "decoder.safetensors"}
    assert "decoder=True)" in (tmp_path / "encoder" / "README.md").read_text()
    assert {"transpconvs.0.weight", "stages.0.convs.0.conv.weight"} <= set(
        load_file(tmp_path / "encoder" / "decoder.safetensors")
    )


def test_a_decoder_can_be_trained_on(unet_run: Path, tmp_path: Path) -> None:
    assert push(unet_run, "--out", tmp_path / "encoder", "--decoder") == 0
    encoder, decoder = load_encoder(tmp_path / "encoder", decoder=True)
    decoder(encoder(torch.randn(1, 3, 16, 16, 16))).square().mean().backward()
    assert all(weight.grad is not None for weight in encoder.parameters())
    assert decoder.seg_layers[-1].weight.grad is not None


def test_an_encoder_with_a_decoder_is_an_encoder_for_all_who_want_no_more(unet_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    assert push(unet_run, "--out", folder, "--decoder") == 0
    assert features(load_encoder(folder))[-1].shape == (1, 8, 4, 4, 4)
    assert push(unet_run, "--out", folder) == 0, "it is ours to replace"
    assert not (folder / "decoder.safetensors").exists()
    assert set(json.loads((folder / "config.json").read_text())) == {"encoder", "preprocessing"}
    with pytest.raises(UserError, match="an encoder without a decoder; `headspark push RUN --decoder`"):
        load_encoder(folder, decoder=True)


def test_a_decoder_goes_to_the_hub_and_away_again(unet_run: Path, hub: Hub) -> None:
    assert push(unet_run, "--repo", "user/name", "--decoder") == 0
    assert "decoder.safetensors" in hub.repos["user/name"].files
    encoder, decoder = load_encoder("user/name", decoder=True)
    assert decoder(encoder(torch.zeros(1, 3, 16, 16, 16))).shape == (1, 3, 16, 16, 16)
    assert push(unet_run, "--repo", "user/name") == 0
    assert "decoder.safetensors" not in hub.repos["user/name"].files


def damage(folder: Path, how: str) -> None:
    file, config = folder / "decoder.safetensors", json.loads((folder / "config.json").read_text())
    weights = load_file(file)
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:100])
    elif how == "of another shape":
        save_file({**weights, "transpconvs.0.weight": torch.zeros(2, 2, 2, 2, 2)}, file)
    elif how == "without a layer":
        save_file({name: weight for name, weight in weights.items() if "seg_layers" not in name}, file)
    elif how == "not finite":
        save_file({**weights, "transpconvs.0.weight": weights["transpconvs.0.weight"] * torch.nan}, file)
    else:
        (folder / "config.json").write_text(json.dumps({**config, "decoder": {"kind": "unet", "file": "../x"}}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"decoder\.safetensors: missing"),
        ("truncated", r"decoder\.safetensors: truncated"),
        ("of another shape", r"decoder\.safetensors: transpconvs\.0\.weight is \(2, 2, 2, 2, 2\)"),
        ("without a layer", r"decoder\.safetensors: .* missing \(seg_layers"),
        ("not finite", r"decoder\.safetensors: transpconvs\.0\.weight is not finite"),
        ("of another name", r"names a decoder that this headspark does not know"),
    ],
)
def test_a_bad_decoder_is_one_line_and_the_encoder_still_loads(
    unet_run: Path, tmp_path: Path, how: str, message: str
) -> None:
    assert push(unet_run, "--out", tmp_path / "encoder", "--decoder") == 0
    damage(tmp_path / "encoder", how)
    with pytest.raises(UserError, match=message) as refused:
        load_encoder(tmp_path / "encoder", decoder=True)
    assert "\n" not in str(refused.value)
    assert str(tmp_path / "encoder") in str(refused.value)
    assert load_encoder(tmp_path / "encoder").channels == (4, 8, 8)
