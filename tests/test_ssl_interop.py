"""Weights from nnssl and OpenMind, weights for nnU-Net; files in the formats of both, made here."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harmonize.errors import UserError
from headspark.decoder import DecoderConfig, UNetDecoder, build_decoder
from headspark.encoder import PRESETS, EncoderConfig, ResidualEncoder
from headspark.folder_kind import NNSSL_CHECKPOINT
from headspark.interop.adaptation_plan import PLAN_NAME, adaptation_plan
from headspark.interop.nnssl import read_nnssl, single_channel, write_nnssl

CONFIG = EncoderConfig(in_channels=1, features=(4, 6, 6), blocks=(1, 2, 1), strides=(1, 2, 2))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def trained_encoder(config: EncoderConfig = CONFIG) -> ResidualEncoder:
    encoder = ResidualEncoder(config)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    return encoder.eval()


def foreign_weights(encoder: ResidualEncoder, *, dead: bool) -> dict[str, Tensor]:
    """Lay weights out as nnssl's Spark trainer does: trained under all_modules, the twins at initialisation."""
    weights = {}
    for key, value in encoder.state_dict().items():
        for kind, index in ((".conv.", 0), (".norm.", 1)):
            layer, found, parameter = key.rpartition(kind)
            if found:
                weights[f"encoder.{layer}.all_modules.{index}.{parameter}"] = value
                weights[f"encoder.{key}"] = torch.zeros_like(value) if dead else value
    decoder = {f"decoder.{key}": torch.ones_like(value) for key, value in weights.items()}
    return {**weights, **decoder, "decoder.seg_layers.0.weight": torch.zeros(1)}


def foreign_checkpoint(folder: Path, weights: dict[str, Tensor], *, plan: str = "beside") -> Path:
    content = {
        "network_weights": weights,
        "spark_weights": {},
        "optimizer_state": {"state": {}, "param_groups": []},
        "grad_scaler_state": None,
        "logging": {"train_losses": [np.float32(0.5), np.float64(0.4)]},  # as SparkMAETrainer leaves them
        "_best_ema": np.float32(0.4),
        "current_epoch": 1000,
        "init_args": {"fold": "all"},
        "trainer_name": "SparkTrainer",
    }
    description = adaptation_plan(CONFIG, patch=(160, 160, 160), spacing=(1.0, 1.0, 1.0), dataset="OpenMind")
    if plan == "inside":
        content["nnssl_adaptation_plan"] = description
    elif plan == "beside":
        (folder / PLAN_NAME).write_text(json.dumps(description))
    torch.save(content, folder / NNSSL_CHECKPOINT)
    return folder / NNSSL_CHECKPOINT


def assert_same_features(one: ResidualEncoder, other: ResidualEncoder, x: Tensor | None = None) -> None:
    x = torch.randn(1, one.config.in_channels, 8, 8, 8) if x is None else x
    for a, b in zip(one(x), other(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("plan", ["beside", "inside", "absent"])
def test_the_trained_layers_are_read_not_their_dead_twins(tmp_path: Path, dead: bool, plan: str) -> None:
    encoder = trained_encoder()
    foreign_checkpoint(tmp_path, foreign_weights(encoder, dead=dead), plan=plan)
    read = read_nnssl(tmp_path, in_channels=None)
    assert read.encoder.config == CONFIG
    assert_same_features(read.encoder, encoder)
    assert bool(read.dead_keys) is dead
    assert read.spacing == ((1.0, 1.0, 1.0) if plan != "absent" else None)


def test_the_statistics_of_batch_norms_are_the_trained_ones_too(tmp_path: Path) -> None:
    encoder = trained_encoder(replace(CONFIG, norm="batch"))
    encoder.train()(torch.randn(2, 1, 8, 8, 8) + 3)
    weights = foreign_weights(encoder.eval(), dead=True)
    assert_same_features(read_nnssl(foreign_checkpoint(tmp_path, weights), in_channels=None).encoder, encoder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_around_the_network_are_seen_through(tmp_path: Path, prefix: str) -> None:
    encoder = trained_encoder()
    weights = {prefix + key: value for key, value in foreign_weights(encoder, dead=True).items()}
    assert_same_features(read_nnssl(foreign_checkpoint(tmp_path, weights), in_channels=None).encoder, encoder)


def test_an_image_in_all_channels_gives_the_features_of_one(tmp_path: Path) -> None:
    encoder = trained_encoder()
    wide = read_nnssl(foreign_checkpoint(tmp_path, foreign_weights(encoder, dead=False)), in_channels=3).encoder
    x = torch.randn(1, 1, 8, 8, 8)
    for a, b in zip(wide(x.expand(-1, 3, -1, -1, -1)), encoder(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    back = single_channel(wide)
    assert back.config == CONFIG
    for a, b in zip(back(x), encoder(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, in_channels=3, kernel=5, conv_bias=False),
        EncoderConfig(in_channels=2, features=(4, 4), blocks=(1, 2), strides=(1, 4), norm="batch"),
    ],
)
def test_a_round_trip_gives_the_same_features_to_the_last_bit(tmp_path: Path, config: EncoderConfig) -> None:
    encoder = trained_encoder(config)
    write_nnssl(tmp_path, encoder, patch=(64, 64, 64), spacing=(1.0, 1.0, 1.0))
    read = read_nnssl(tmp_path, in_channels=None)
    assert read.encoder.config == config
    assert read.dead_keys == ()
    assert_same_features(read.encoder, encoder)


def nnunet_loads(checkpoint: Path, stem_keys: set[str], stage_keys: set[str], channels: int) -> dict[str, Tensor]:
    """Do what nnU-Net's PretrainedTrainer.load_pretrained_weights does, and be as strict about keys."""
    content = torch.load(checkpoint, weights_only=True)
    plan, weights = content["nnssl_adaptation_plan"], content["network_weights"]
    loaded: dict[str, Tensor] = {}
    for prefix, expected in ((plan["key_to_stem"], stem_keys), (plan["key_to_encoder"], stage_keys)):
        part = {key: value for key, value in weights.items() if key.startswith(prefix)}
        if channels > plan["pretrain_num_input_channels"] and prefix == plan["key_to_stem"]:
            first = part[plan["keys_to_in_proj"][0] + ".weight"]
            for name in plan["keys_to_in_proj"]:
                part[name + ".weight"] = first.repeat(1, channels, 1, 1, 1) / channels
        assert {key.removeprefix(prefix + ".") for key in part} == expected
        loaded |= part
    return loaded


def both_names(encoder: ResidualEncoder, start: str) -> set[str]:
    keys = set()
    for key in encoder.state_dict():
        if key.startswith(start):
            key = key.removeprefix(start)
            keys |= {key, key.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")}
    return keys


@pytest.mark.parametrize("channels", [1, 2])
def test_what_is_written_loads_strictly_in_nnunet(tmp_path: Path, channels: int) -> None:
    encoder = trained_encoder()
    path = write_nnssl(tmp_path, encoder, patch=(64, 64, 64))
    loaded = nnunet_loads(path, both_names(encoder, "stem."), both_names(encoder, "stages."), channels)
    used = loaded["encoder.stem.convs.0.all_modules.0.weight"]
    trained = encoder.stem.convs[0].conv.weight
    torch.testing.assert_close(used.sum(1, keepdim=True), trained)
    assert torch.equal(used, loaded["encoder.stem.convs.0.conv.weight"])


def test_the_plan_says_how_nnunet_builds_the_network(tmp_path: Path) -> None:
    write_nnssl(tmp_path, trained_encoder(), patch=(64, 96, 64), spacing=(1.0, 1.0, 2.0))
    plan = json.loads((tmp_path / PLAN_NAME).read_text())
    architecture = plan["architecture_plans"]
    assert architecture["arch_class_name"].endswith("ResidualEncoderUNet")
    assert architecture["arch_kwargs"]["features_per_stage"] == [4, 6, 6]
    assert architecture["arch_kwargs"]["strides"] == [[1] * 3, [2] * 3, [2] * 3]
    assert plan["pretrain_num_input_channels"] == 1
    assert plan["recommended_downstream_patchsize"] == [64, 96, 64]
    assert plan["pretrain_plan"]["configurations"]["onemmiso"]["spacing"] == [1.0, 1.0, 2.0]
    large = adaptation_plan(
        replace(PRESETS["resenc_l"], in_channels=1),
        patch=(160,) * 3,
        spacing=(1.0,) * 3,
        dataset="d",  # type: ignore[arg-type]
    )
    assert large["architecture_plans"]["arch_class_name"] == "ResEncL"


def test_a_decoder_travels_with_the_encoder(tmp_path: Path) -> None:
    encoder = trained_encoder()
    decoder = build_decoder(DecoderConfig(kind="unet"), encoder.channels, encoder.strides, 1)
    assert isinstance(decoder, UNetDecoder)
    path = write_nnssl(tmp_path, encoder, decoder=decoder, patch=(64, 64, 64))
    weights = torch.load(path, weights_only=True)["network_weights"]
    for key, value in decoder.state_dict().items():
        assert torch.equal(weights[f"decoder.{key}"], value)
    assert torch.equal(
        weights["decoder.stages.0.convs.0.all_modules.0.weight"], weights["decoder.stages.0.convs.0.conv.weight"]
    )


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("ran foreign code",)


def test_a_foreign_pickle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"network_weights": {}, "init_args": _Evil()}, tmp_path / NNSSL_CHECKPOINT)
    with pytest.raises(UserError, match="nothing else is loaded"):
        read_nnssl(tmp_path)
    (tmp_path / NNSSL_CHECKPOINT).write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(UserError, match="nothing else is loaded"):
        read_nnssl(tmp_path)
    assert "ran foreign code" not in capsys.readouterr().out


def test_other_files_are_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no"):
        read_nnssl(tmp_path)
    torch.save({"model": {}}, tmp_path / NNSSL_CHECKPOINT)
    with pytest.raises(UserError, match="no network_weights"):
        read_nnssl(tmp_path)
    torch.save({"network_weights": {"encoder.eva.blocks.0.norm1.weight": torch.ones(1)}}, tmp_path / NNSSL_CHECKPOINT)
    with pytest.raises(UserError, match="only ResEnc"):
        read_nnssl(tmp_path)
    names = ("stem.convs.0.conv.weight", "stem.convs.0.all_modules.0.weight")
    for weights in ({names[0]: 1, names[1]: torch.ones(1)}, {names[0]: torch.ones(1), names[1]: 1}):
        encoder = {f"encoder.{name}": value for name, value in weights.items()}
        torch.save({"network_weights": encoder}, tmp_path / NNSSL_CHECKPOINT)
        with pytest.raises(UserError, match="is no tensor"):
            read_nnssl(tmp_path)
