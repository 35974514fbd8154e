"""The auxiliary decoder: what it segments, that it learns, how it begins, and that an encoder is exported with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.cli import main
from finetune.losses import TotalLoss
from finetune.losses.dense import DiceCrossEntropyConfig
from finetune.models.assemble import Network
from finetune.models.heads.cells import PRESENCE_PRIOR, CellsConfig
from finetune.models.heads.decoder import DecoderConfig, DecoderHead
from finetune.models.maps import Maps
from finetune.origin import read_given
from finetune.recipe import Recipe, TrainConfig
from finetune.samples import DataConfig
from finetune.stages import StageConfig
from finetune.tasks.aneurysm import AneurysmTask
from finetune.train import train
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from headspark import load_encoder, save_encoder
from headspark.decoder import UNetDecoder
from headspark.encoder import EncoderConfig, build_encoder
from headspark.run.claim import read_metrics

FIXTURES = Path(__file__).parent / "fixtures" / "v0_1_0"
TINY = EncoderConfig(features=(4, 8, 8), blocks=(1, 1, 1), strides=(1, 2, 2))
MAPS = Maps(strides=TINY.cumulative_strides, channels=TINY.features)
TASK: Any = SimpleNamespace(labels=("left", "right", "any"), places=2, any_label=2, label_weights=(1, 1, 2))
DENSE = (DiceCrossEntropyConfig(of="vessels"), DiceCrossEntropyConfig(of="spheres"))
EDGE = 16


def toy_series() -> tuple[Tensor, dict[str, Tensor]]:
    """Four volumes with a bright vessel left or right, the brighter end of which is a finding; and their mirrors."""
    x = torch.zeros(4, 3, EDGE, EDGE, EDGE)
    vessels = torch.zeros(4, EDGE, EDGE, EDGE, dtype=torch.int64)
    spheres = torch.zeros(4, EDGE, EDGE, EDGE)
    for number in range(4):
        side = number % 2
        vessel = (slice(2, 6) if side == 0 else slice(10, 14), slice(4, 12), slice(4 + number, 8 + number))
        x[number][:, *vessel] = 1
        vessels[number][vessel] = 1 + side
        if number < 2:
            end = (vessel[0], slice(4, 8), vessel[2])
            x[number][:, *end] = 2
            spheres[number][end] = 1
    swapped = torch.tensor([0, 2, 1])[vessels].flip(1)
    targets = {"vessels": torch.cat([vessels, swapped]), "spheres": torch.cat([spheres, spheres.flip(1)])}
    return torch.cat([x, x.flip(2)]), {name: one[:, ::2, ::2, ::2] for name, one in targets.items()}


def test_it_learns_and_a_mirrored_input_gives_mirrored_outputs_with_the_sides_swapped() -> None:
    torch.manual_seed(0)
    encoder, head = build_encoder(TINY), DecoderHead(DecoderConfig(stride=2), MAPS, TASK)
    (x, targets), loss = toy_series(), TotalLoss(DENSE, TASK)
    constant = torch.zeros(4, requires_grad=True)
    parameters_of_both = [*encoder.parameters(), *head.parameters()]

    def same_everywhere() -> dict[str, Tensor]:
        cells = constant.view(1, 4, 1, 1, 1).expand(8, 4, 8, 8, 8)
        return {"vessels": cells[:, :3], "spheres": cells[:, 3]}

    found = []
    for answer, parameters in ((same_everywhere, [constant]), (lambda: head(encoder(x)), parameters_of_both)):
        optimizer = torch.optim.Adam(parameters, lr=0.02)
        for _ in range(80):
            value = loss(answer(), targets)[0]
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        found.append(float(loss(answer(), targets)[0].detach()))
    assert found[1] < found[0] / 2
    outputs, mirrored = (head(encoder(one)) for one in (x, x.flip(2)))
    swapped = torch.tensor([0, 2, 1])[outputs["vessels"].argmax(1)].flip(1)
    assert (outputs["vessels"].argmax(1) == targets["vessels"]).float().mean() > 0.98
    assert (swapped == mirrored["vessels"].argmax(1)).float().mean() > 0.98
    assert ((outputs["spheres"] > 0).flip(1) == (mirrored["spheres"] > 0)).float().mean() > 0.98


@pytest.mark.parametrize("stride", [1, 2])
def test_its_outputs_lie_on_the_chosen_grid_and_spheres_begin_unlikely(stride: int) -> None:
    config = DecoderConfig(gives=("blobs", "vessels"), stride=stride)
    network = Network(build_encoder(TINY), CellsConfig(stride=4, width=8), (config,), AneurysmTask())
    outputs = network(torch.randn(2, 3, 16, 12, 8))
    cells = (16 // stride, 12 // stride, 8 // stride)
    assert outputs["blobs"].shape == (2, *cells)
    assert outputs["vessels"].shape == (2, AneurysmTask.places + 1, *cells)
    assert network.cells["blobs"] == network.cells["vessels"] == stride
    assert outputs["blobs"].sigmoid().median().item() == pytest.approx(PRESENCE_PRIOR, rel=2)
    assert "vessels" not in network.eval()(torch.randn(1, 3, 8, 8, 8))


@pytest.mark.parametrize("values", [{"stride": 4}, {"stride": 3}, {"gives": ()}, {"gives": ("spheres", "spheres")}])
def test_what_no_encoder_has_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(WrongUse, match=r"^auxiliary: "):
        DecoderHead(DecoderConfig(**values), MAPS, TASK)


@pytest.mark.parametrize("stride", [1, 2])
def test_it_begins_with_the_decoder_of_pretraining_but_for_the_layer_that_predicts(stride: int) -> None:
    pretrained = UNetDecoder(MAPS.channels, MAPS.strides, 3)
    head = DecoderHead(DecoderConfig(stride=stride), MAPS, TASK)
    last = next(head.decoder.seg_layers[-1].parameters()).clone()
    assert head.note == "the decoder begins at random"
    head.begin_with(pretrained)
    maps = [torch.randn(1, count, *[8 // edge] * 3) for count, edge in zip(MAPS.channels, MAPS.strides, strict=True)]
    other = DecoderHead(DecoderConfig(stride=stride), MAPS, TASK)
    other.load_state_dict(head.state_dict())
    for name, value in pretrained.state_dict().items():
        if not name.startswith("seg_layers") and name in head.decoder.state_dict():
            assert torch.equal(head.decoder.state_dict()[name], value)
    assert torch.equal(next(head.decoder.seg_layers[-1].parameters()), last)
    assert torch.equal(other(maps)["spheres"], head(maps)["spheres"])
    assert head.note == "the decoder begins as it was pretrained; the layer that predicts is new"


def test_a_decoder_that_said_the_same_is_taken_whole_and_a_finer_one_says_how_much_of_it_is_new() -> None:
    coarse, again = (DecoderHead(DecoderConfig(stride=2), MAPS, TASK) for _ in range(2))
    again.begin_with(coarse.decoder)
    assert again.note == "the decoder begins as it was pretrained"
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), coarse.parameters(), strict=True))
    fine = DecoderHead(DecoderConfig(stride=1), MAPS, TASK)
    fine.begin_with(coarse.decoder)
    assert "1 of its 2 scales" in fine.note


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("export") / "corpus"
    shutil.copytree(FIXTURES / "corpus", folder)
    return Corpus.open(folder)


def recipe(stride: int = 2, **values: Any) -> Recipe:
    return Recipe(
        data=DataConfig(patch=(16, 16, 16), folds=2, masked_share=0.5, workers=0),
        scratch=TINY,
        head=CellsConfig(stride=2, width=8),
        auxiliary=(DecoderConfig(stride=stride),),
        losses=DENSE,
        stages=(StageConfig(name="all", steps=2, head_lr=1e-3, encoder_lr=1e-3, layers="all"),),
        train=TrainConfig(batch=2, threads=1, log_every=1, ema=0.9),
        **values,
    )


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> Path:
    out = corpus.path.parent / "ft"
    assert train(recipe(), corpus=corpus, encoder_folder=None, out=out) is not None
    return out


def test_a_run_trains_and_logs_vessels_and_spheres(model: Path) -> None:
    lines = [line for line in read_metrics(model) if "loss" in line]
    assert len(lines) == 2
    assert all(line["vessels"] > 0 and line["spheres"] > 0 for line in lines)


def test_an_exported_encoder_is_that_of_the_model_and_says_what_its_input_is(model: Path, tmp_path: Path) -> None:
    from finetune.model_folder import load_model, read_bundle

    assert main(["export", str(model), "--out", str(tmp_path / "encoder")]) == 0
    network = load_model(model, read_bundle(model))
    encoder, decoder = load_encoder(tmp_path / "encoder", decoder=True)
    x_BCDHW = torch.randn(1, 3, 16, 16, 16)
    with torch.no_grad():
        maps = encoder(x_BCDHW)
        assert all(torch.equal(one, other) for one, other in zip(maps, network.encoder(x_BCDHW), strict=True))
        parts = network.auxiliary[0](maps)
        assert torch.equal(decoder(maps), torch.cat([parts["vessels"], parts["spheres"][:, None]], 1))
    assert list(decoder.outputs.items()) == [("vessels", 14), ("spheres", 1)]
    assert encoder.preprocessing["ct_windows"] == ["brain", "blood", "bone"]
    assert encoder.preprocessing["spacing_mm"] == list(Corpus.open(model.parent / "corpus").spacing)
    assert encoder.preprocessing["region"] == "all"
    assert encoder.preprocessing["mri_norms"] == {"rsna": "zscore"}
    card = (tmp_path / "encoder" / "README.md").read_text()
    assert "vessels and spheres" in card
    assert str(model) not in card + (tmp_path / "encoder" / "config.json").read_text()


def test_a_run_goes_on_from_an_exported_encoder_and_its_decoder(
    model: Path, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export", str(model), "--out", str(tmp_path / "encoder")])
    assert train(recipe(), corpus=corpus, encoder_folder=str(tmp_path / "encoder"), out=tmp_path / "ft") is not None
    assert "note: the decoder begins as it was pretrained\n" in capsys.readouterr().err
    given = read_given(str(tmp_path / "encoder"), decoder=True)
    assert given.decoder is not None
    (tmp_path / "encoder" / "decoder.safetensors").unlink()
    assert read_given(str(tmp_path / "encoder"), decoder=True).fault is not None
    assert read_given(str(tmp_path / "encoder")).fault is None


def test_without_a_pretrained_decoder_the_run_says_that_it_begins_at_random(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_encoder(build_encoder(TINY), tmp_path / "encoder", preprocessing={"ct_windows": ["brain", "blood", "bone"]})
    assert train(recipe(), corpus=corpus, encoder_folder=str(tmp_path / "encoder"), out=tmp_path / "ft") is not None
    assert "note: the decoder begins at random\n" in capsys.readouterr().err


def test_an_export_takes_the_place_of_nothing_but_an_export(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_encoder(build_encoder(TINY), tmp_path / "encoder", preprocessing={"ct_windows": ["brain", "blood", "bone"]})
    before = (tmp_path / "encoder" / "model.safetensors").read_bytes()
    assert main(["export", str(model), "--out", str(tmp_path / "encoder")]) == 2
    assert "encoder: an encoder that this command did not write, which stays as it is" in capsys.readouterr().err
    assert (tmp_path / "encoder" / "model.safetensors").read_bytes() == before
    assert [main(["export", str(model), "--out", str(tmp_path / "again")]) for _ in range(2)] == [0, 0]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert main(["export", str(model), "--out", str(tmp_path / "mine")]) == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert main(["export", str(tmp_path / "mine"), "--out", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "decoder",
    [
        "unet",
        {"kind": "unet", "file": "other.safetensors"},
        {"kind": "unet", "file": "decoder.safetensors", "stride": 3},
        {"kind": "unet", "file": "decoder.safetensors", "outputs": [["vessels", -1]]},
        {"kind": "unet", "file": "decoder.safetensors", "outputs": [["vessels", 10**9]]},
        {"kind": "unet", "file": "decoder.safetensors", "outputs": {"vessels": 14}},
        {"kind": "unet", "file": "decoder.safetensors", "stride": 1, "outputs": [["vessels", 14]]},
    ],
)
def test_a_decoder_that_config_json_describes_wrongly_is_refused(model: Path, tmp_path: Path, decoder: Any) -> None:
    main(["export", str(model), "--out", str(tmp_path / "encoder")])
    path = tmp_path / "encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "decoder": decoder}))
    with pytest.raises(UserError, match="decoder"):
        load_encoder(tmp_path / "encoder", decoder=True)
