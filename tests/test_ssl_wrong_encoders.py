"""What is given for a pretrained encoder and is none: one line that says what was seen and what was expected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest
import standin_hub
import torch
from safetensors.torch import load_file, save_file

from finetune.model_folder import Bundle, load_model, read_bundle, save_bundle
from finetune.models.assemble import Network
from finetune.models.heads.cells import CellsConfig
from finetune.origin import windows_of
from finetune.samples import DataConfig
from finetune.tasks.aneurysm import AneurysmTask
from harmonize.errors import WRONG_USE, UserError
from harmonize.settings import Settings
from headspark import Encoder, save_encoder
from headspark.encoder import EncoderConfig, build_encoder
from headspark.folder_kind import seen_at
from headspark.interop.nnssl import read_nnssl, write_nnssl

SMALL = EncoderConfig(features=(4, 8), blocks=(1, 1), strides=(1, 2))
PREPROCESSING = {"spacing_mm": [1.0, 1.0, 1.0], "ct_windows": ["brain", "blood", "bone"], "mri_norms": {}}
STEM = "stem.convs.0.conv.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, a fine-tuned model, and a checkpoint for nnU-Net."""
    folder = tmp_path_factory.mktemp("made")
    encoder, head = build_encoder(SMALL), CellsConfig(stride=2, width=8)
    save_encoder(encoder, folder / "encoder", preprocessing=PREPROCESSING)
    bundle = Bundle(encoder=SMALL, head=head, data=DataConfig(patch=(16, 16, 16)), settings=Settings())
    save_bundle(folder / "tuned", bundle, Network(encoder, head, (), AneurysmTask()).state_dict())
    write_nnssl(folder / "nnssl", encoder, patch=(16, 16, 16))  # type: ignore[arg-type]  # a residual one
    return folder


@pytest.fixture
def encoder(made: Path, tmp_path: Path) -> Path:
    """An encoder to damage."""
    return shutil.copytree(made / "encoder", tmp_path / "encoder")


def refusal(name: Path | str, *, exit_code: int | None = None) -> str:
    with pytest.raises(UserError) as error:
        Encoder.from_pretrained(name)
    assert exit_code in (None, error.value.exit_code)
    assert str(name) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_of_another_kind_are_named(made: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"status": "finished", "corpus": {}}')
    (tmp_path / "tuning").mkdir()
    (tmp_path / "tuning" / "run.json").write_text('{"status": "running", "origin": {}}')
    (tmp_path / "empty").mkdir()
    for folder, said in {
        made / "tuned": "but a fine-tuned model",
        made / "nnssl": "read_nnssl",
        made / "nnssl" / "checkpoint_final.pth": "read_nnssl",
        made / "encoder" / "model.safetensors": "a file of weights; its folder is wanted",
        tiny_corpus: r"but a corpus of `harmonize`; `headspark push",
        tmp_path / "run": r"but a pretraining run \(status finished\); `headspark push RUN --out ENCODER` writes one$",
        tmp_path / "tuning": r"but a fine-tuning run without a model yet \(status running\)",
        tmp_path / "empty": r"no encoder there \(config\.json is missing\), but an empty folder",
        tmp_path: "but a folder that holds empty, run, tuning",
    }.items():
        with pytest.raises(UserError, match=said) as error:
            Encoder.from_pretrained(folder)
        assert str(error.value).startswith(f"{folder}: ")
        assert error.value.exit_code == WRONG_USE


def test_an_encoder_that_is_there_and_damaged_is_no_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert "config.json is damaged" in refusal(tmp_path, exit_code=1)


@pytest.mark.parametrize("name", ["./nowhere/enc", "nowhere", "/nowhere/at/all", "../enc", "a/b/c", "enc oder/x"])
def test_a_path_that_is_not_there_is_no_question_for_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refusal(name, exit_code=WRONG_USE)
    assert "no such folder" in said
    assert "repo id" not in said.lower()


def test_a_repository_offline_or_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    assert "no such folder, and the cache lacks it, and HF_HUB_OFFLINE" in refusal("user/nothing")
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    with standin_hub.serving() as served:
        monkeypatch.setattr(hub_constants, "ENDPOINT", served.url)
        template = hub_constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", served.url)
        monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        assert "no such folder, and no such repository on the Hub" in refusal("user/nothing")
        served.repos["user/bert"] = standin_hub.Repo(
            private=False, commits=[{"config.json": b'{"model_type": "bert"}'}]
        )
        served.repos["user/none"] = standin_hub.Repo(private=False, commits=[{"weights.gguf": b""}])
        for name, said in (
            ("user/bert", "it has no config.json of a headspark encoder"),
            ("user/none", "config.json of an encoder is missing"),
        ):
            assert said in refusal(name)


def test_a_size_mismatch_keeps_the_tensors_name_and_both_shapes(encoder: Path) -> None:
    config = json.loads((encoder / "config.json").read_text())
    config["encoder"]["features"] = [4, 16]
    (encoder / "config.json").write_text(json.dumps(config))
    said = refusal(encoder)
    assert (
        "its files do not make an encoder: model.safetensors: stages.1.blocks.0.conv1.conv.weight is (8, 4, 3, 3, 3), "
    )
    assert "is (8, 4, 3, 3, 3), config.json asks for (16, 4, 3, 3, 3)" in said
    assert "stages.1.blocks.0." in said


def test_missing_and_unexpected_tensors_are_named_and_counted(encoder: Path) -> None:
    weights = load_file(encoder / "model.safetensors")
    taken = weights.pop(STEM)
    save_file({**weights, **{f"mine.{number}": taken.clone() for number in range(5)}}, encoder / "model.safetensors")
    assert f"1 missing ({STEM}) and 5 unexpected (mine.0, mine.1, mine.2 ...)" in refusal(encoder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated_weights_name_their_file(encoder: Path, share: float) -> None:
    file = encoder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert f"{file}: truncated, or no safetensors file" in refusal(encoder)


def test_a_pickle_under_the_name_of_weights_is_not_read(encoder: Path) -> None:
    torch.save({STEM: torch.zeros(1)}, encoder / "model.safetensors")
    assert "no safetensors file" in refusal(encoder)
    (encoder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(encoder)


def test_a_configuration_that_makes_no_encoder_names_the_key(encoder: Path) -> None:
    config = json.loads((encoder / "config.json").read_text())
    for change, said in (
        ({"featuress": [4, 8]}, "unknown key featuress"),
        ({"blocks": [1]}, "encoder.blocks has 1 entries"),
        ({"kind": "vit"}, "kind"),
    ):
        wrong = {**config, "encoder": {**config["encoder"], **change}}
        (encoder / "config.json").write_text(json.dumps(wrong))
        assert said in refusal(encoder)
    (encoder / "config.json").write_text('{"encoder": {"feat')
    assert "config.json is damaged" in refusal(encoder)


def test_what_is_given_for_a_fine_tuned_model_is_named(made: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    for folder, said in {
        made / "encoder": "no fine-tuned model there .* but a pretrained encoder",
        tiny_corpus: "but a corpus of `harmonize`",
        tmp_path: "but an empty folder",
        tmp_path / "nowhere": "nowhere: no such folder; give the --out of a finished",
        made / "tuned" / "model.safetensors": "but a file of weights; its folder is wanted",
    }.items():
        with pytest.raises(UserError, match=said) as error:
            read_bundle(folder)
        assert error.value.exit_code == 2


def test_a_models_weights_that_do_not_fit_are_named(made: Path, tmp_path: Path) -> None:
    bundle = read_bundle(made / "tuned")
    tuned = shutil.copytree(made / "tuned", tmp_path / "tuned")
    weights = load_file(tuned / "model.safetensors")
    name = next(name for name in weights if name.endswith(STEM))
    save_file({**weights, name: torch.zeros(1, 2)}, tuned / "model.safetensors")
    with pytest.raises(UserError, match=rf"{name} is \(1, 2\), config.json asks for \(4, 3, 3, 3, 3\)"):
        load_model(tuned, bundle)


def test_what_is_given_for_an_nnssl_checkpoint_is_named(made: Path, tmp_path: Path) -> None:
    for path, said in {
        made / "encoder": "a pretrained encoder; there is no checkpoint_final.pth",
        made / "encoder" / "model.safetensors": "no nnssl checkpoint",
        tmp_path / "nowhere": "no such file or folder",
        tmp_path: "an empty folder",
    }.items():
        with pytest.raises(UserError, match=said):
            read_nnssl(path)
    broken = shutil.copytree(made / "nnssl", tmp_path / "broken")
    (broken / "adaptation_plan.json").write_text('{"arch')
    checkpoint = torch.load(broken / "checkpoint_final.pth", weights_only=True)
    del checkpoint["nnssl_adaptation_plan"]
    torch.save(checkpoint, broken / "checkpoint_final.pth")
    with pytest.raises(UserError, match=r"adaptation_plan\.json is damaged"):
        read_nnssl(broken)
    checkpoint["network_weights"]["encoder.stem.convs.0.norm.weight"] = torch.ones(7)
    checkpoint["network_weights"]["encoder.stem.convs.0.all_modules.1.weight"] = torch.ones(7)
    (broken / "adaptation_plan.json").unlink()
    torch.save(checkpoint, broken / "checkpoint_final.pth")
    with pytest.raises(UserError, match=r"stem.convs.0.norm.weight is \(7,\), .* asks for \(4,\)"):
        read_nnssl(broken)


@pytest.mark.parametrize("windows", [None, [], ["brain"], "brain", ["brain", "blood", "lung"]])
def test_an_encoder_that_does_not_say_its_windows_is_no_encoder_to_fine_tune(tmp_path: Path, windows: object) -> None:
    kept = {} if windows is None else {"ct_windows": windows}
    save_encoder(build_encoder(SMALL), tmp_path / "encoder", preprocessing=kept)
    encoder = Encoder.from_pretrained(tmp_path / "encoder")
    with pytest.raises(
        UserError, match=r"ct_windows in its config\.json is .* of its 3 channels, of brain, blood, bone"
    ):
        windows_of(encoder.preprocessing, encoder.config.in_channels)


def test_seeing_never_fails(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert seen_at(tmp_path / "loop") == "a link to something that is not there"
    assert seen_at(tmp_path) == "a folder that holds config.json, loop"
    assert seen_at(Path("/dev/null")) == "neither a file nor a folder"
