"""What an export may replace: what an export wrote, and nothing else, byte for byte."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from standin_disk import file_size_limit

from harmonize.errors import UserError
from headspark import Encoder, folders, save_encoder
from headspark.encoder import EncoderConfig, ResidualEncoder, build_encoder
from headspark.folder_kind import NNSSL_CHECKPOINT
from headspark.hub.encoder_folder import CARD, ENCODER_FILES, Card
from headspark.interop.adaptation_plan import PLAN_NAME, adaptation_plan
from headspark.interop.nnssl import read_nnssl, write_nnssl

SMALL = EncoderConfig(features=(4, 8), blocks=(1, 1), strides=(1, 2))
PREPROCESSING = {"spacing_mm": [1.0, 1.0, 1.0], "ct_windows": ["brain", "blood", "bone"]}
OURS = json.dumps({"encoder": {"features": [4]}, "preprocessing": {}})


def encoder(seed: int) -> ResidualEncoder:
    torch.manual_seed(seed)
    return build_encoder(SMALL).eval()  # type: ignore[return-value]  # a residual one


def export(folder: Path, seed: int = 0, card: Card | None = None) -> None:
    save_encoder(encoder(seed), folder, preprocessing=PREPROCESSING, card=card)


def export_nnunet(folder: Path, seed: int = 0) -> None:
    write_nnssl(folder, encoder(seed), patch=(16, 16, 16))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def stem(folder: Path) -> torch.Tensor:
    return Encoder.from_pretrained(folder).state_dict()["stem.convs.0.conv.weight"]


def content(folder: Path) -> dict[str, object]:
    """Everything below a folder: what each thing is, and its bytes."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def refused(command: Callable[[Path], None], target: Path, around: Path) -> str:
    """The one line with which a command refuses a folder, around which nothing has changed."""
    before = content(around)
    with pytest.raises(UserError) as error:
        command(target)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    assert content(around) == before
    return str(error.value)


FOREIGN: dict[str, tuple[dict[str, str], str]] = {
    "a fine-tuned model": (
        {"config.json": json.dumps({"encoder": {}, "head": {}, "labels": []}), "model.safetensors": "w"},
        "a fine-tuned model",
    ),
    "a model of another library": ({"config.json": '{"model_type": "bert"}', "model.safetensors": "w"}, r"bert"),
    "a foreign config": ({"config.json": "{}"}, "foreign config.json"),
    "a damaged config": ({"config.json": '{"enc'}, "config.json"),
    "a run": ({"run.json": '{"status": "running", "corpus": {}}', "recipe.yaml": ""}, "a pretraining run"),
    "a corpus": ({"corpus.json": "{}", "metadata.parquet": ""}, "a corpus"),
    "notes": ({"thesis.tex": "mine"}, "thesis.tex"),
    "a project around an encoder": ({"config.json": OURS, ".git/HEAD": "ref: x"}, r"\.git"),
    "an encoder and notes": ({"config.json": OURS, "notes.txt": "mine"}, "notes.txt"),
    "an encoder with somebody's page": ({"config.json": OURS, CARD: "# My thesis"}, "give a new folder"),
    "an encoder with another key": (
        {"config.json": json.dumps({**json.loads(OURS), "mine": 1}), "model.safetensors": "w"},
        "give a new folder",
    ),
    "an encoder whose weights are a folder": ({"config.json": OURS, "model.safetensors/mine.txt": "x"}, "model.safe"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("command", [export, export_nnunet], ids=["encoder", "nnunet"])
def test_what_an_export_did_not_write_is_named_and_stays(
    tmp_path: Path, name: str, command: Callable[[Path], None]
) -> None:
    files, said = FOREIGN[name]
    line = refused(command, write(tmp_path / "target", files), tmp_path)
    assert "target" in line
    if command is export:
        assert re.search(said, line)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    present=st.sets(st.sampled_from([*ENCODER_FILES, "notes.txt", ".git", "model.pt", "CONFIG.JSON", "x.safetensors"])),
    config=st.sampled_from([OURS, "{}", "[]", "null", "", '{"encoder": 1, "preprocessing": {}}']),
)
def test_a_folder_is_ours_only_with_our_configuration_and_our_names(
    tmp_path_factory: pytest.TempPathFactory, present: set[str], config: str
) -> None:
    around = tmp_path_factory.mktemp("any")
    target = around / "target"
    target.mkdir()
    for name in present:
        (target / name).write_text(config if name == "config.json" else "library_name: headspark\n")
    ours = not present or (present <= set(ENCODER_FILES) and "config.json" in present and config == OURS)
    if ours:
        export(target)
        assert names(target) == {"config.json", "model.safetensors", CARD}
        assert names(around) == {"target"}
    else:
        refused(export, target, around)


@pytest.mark.parametrize("command", [export, export_nnunet], ids=["encoder", "nnunet"])
def test_links_files_and_the_folder_one_stands_in_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[[Path], None]
) -> None:
    command(tmp_path / "there")
    write(tmp_path, {"file": "mine"})
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "work" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "deeper")
    for target, said in {
        tmp_path / "link": "a link",
        tmp_path / "broken": "a link",
        tmp_path / "file": "a file",
        tmp_path / "file" / "below": "is no folder",
        Path(): "runs in",
        Path(".."): "runs in",
        tmp_path / "work": "or one above it",
        Path("/"): "or one above it",
    }.items():
        assert said in refused(command, target, tmp_path)


def test_an_encoder_whose_weights_are_a_link_keeps_what_it_points_to(tmp_path: Path) -> None:
    export(tmp_path / "target")
    (tmp_path / "target" / "model.safetensors").rename(tmp_path / "weights")
    (tmp_path / "target" / "model.safetensors").symlink_to(tmp_path / "weights")
    refused(export, tmp_path / "target", tmp_path)


def test_an_encoder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "sub" / "encoder"
    export(target, 0, Card(text="---\nlibrary_name: headspark\n---\n", pictures={"reconstruction.png": b"1"}))
    export(target, 1)
    assert torch.equal(stem(target), encoder(1).state_dict()["stem.convs.0.conv.weight"])
    assert names(target) == {"config.json", "model.safetensors", CARD}
    assert names(target.parent) == {"encoder"}


def test_a_checkpoint_for_nnunet_is_replaced_but_a_published_one_is_not(tmp_path: Path) -> None:
    export_nnunet(tmp_path / "ours", 0)
    export_nnunet(tmp_path / "ours", 1)
    back = read_nnssl(tmp_path / "ours").encoder.state_dict()
    assert all(torch.equal(back[name], value) for name, value in encoder(1).state_dict().items())
    theirs = tmp_path / "ResEncL-OpenMind-MAE"
    theirs.mkdir()
    plan = adaptation_plan(SMALL, patch=(16,) * 3, spacing=(1.0,) * 3, dataset="OpenMind") | {"trainer_name": "MAE"}
    (theirs / PLAN_NAME).write_text(json.dumps(plan))
    torch.save({"network_weights": {}, "trainer_name": "MAE"}, theirs / NNSSL_CHECKPOINT)
    assert "nnssl" in refused(export_nnunet, theirs, theirs)
    (theirs / PLAN_NAME).write_bytes((tmp_path / "ours" / PLAN_NAME).read_bytes())
    refused(export_nnunet, theirs, theirs)  # our plan beside their weights


@pytest.mark.parametrize("can_exchange", [True, False])
def test_an_export_that_fails_leaves_the_old_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    export(tmp_path / "encoder", 0)
    export(tmp_path / "encoder", 0)
    before = content(tmp_path)
    with file_size_limit(5_000), pytest.raises(UserError, match="what was there is intact: make room") as error:
        export(tmp_path / "encoder", 1)
    assert error.value.exit_code == 1
    assert content(tmp_path) == before
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.startswith(".tmp-") and not self.name.endswith(".old"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    with pytest.raises(UserError, match="Input/output error"):
        export(tmp_path / "encoder", 1)
    assert content(tmp_path) == before
    with pytest.raises(UserError, match="nothing was written"):
        export(tmp_path / "new" / "deep" / "encoder", 1)
    assert content(tmp_path) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from headspark import folders
put = folders._put
folders._put = lambda one, other: (put(one, other) if {after} else None, os.kill(os.getpid(), signal.SIGKILL))
folders.shutil.rmtree = lambda *_, **__: None
with folders.replaced(Path(sys.argv[1]), names=("a", "b"), is_ours=lambda folder: True, what="pair") as made:
    (made / "a").write_text("new")
    (made / "b").write_text("new")
"""


@pytest.mark.parametrize("after", [False, True])
def test_a_killed_export_leaves_a_whole_folder_and_the_next_one_clears_up(tmp_path: Path, after: bool) -> None:
    target = write(tmp_path / "pair", {"a": "old", "b": "old"})
    bystanders = {".tmp-x-pair/a": "mine", ".tmp-999999999-pair/mine.txt": "mine", ".tmp-1-pair/a": "of a living one"}
    write(tmp_path, bystanders)
    code = subprocess.run([sys.executable, "-c", KILLED.format(after=after), target], check=False).returncode
    assert code == -signal.SIGKILL
    expected = "new" if after else "old"
    assert content(target) == {"a": expected.encode(), "b": expected.encode()}
    assert len(list(tmp_path.glob(".tmp-*-pair"))) == len(bystanders) + 1
    with folders.replaced(target, names=("a", "b"), is_ours=lambda folder: True, what="pair") as made:
        (made / "a").write_text("newest")
    assert content(target) == {"a": b"newest"}
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob(".tmp-*/*")} == set(bystanders)
