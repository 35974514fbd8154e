"""Checkpoints: whole or absent, verified, kept as long as they are needed, and never a foreign pickle."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from standin_disk import file_size_limit
from torch import nn

from harmonize.errors import UserError
from headspark.run.checkpoint import (
    Checkpoint,
    check_fits,
    load_checkpoint,
    load_newest,
    remove_leftovers,
    save_checkpoint,
)


def checkpoint(step: int, size: int = 8) -> Checkpoint:
    model = {"encoder.weight": torch.full((size,), float(step)), "count": torch.tensor(step)}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return Checkpoint(step=step, model=model, ema=None, training={"optimizer": optimizer, "pending": [1.5]})


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    saved = checkpoint(12)
    path = save_checkpoint(tmp_path, saved, keep=1)
    loaded = load_checkpoint(path)
    assert path.name == "step_000012"
    assert loaded.step == 12
    assert loaded.training == saved.training
    assert all(torch.equal(saved.model[name], loaded.model[name]) for name in saved.model)


def test_a_moving_average_is_kept_beside_the_weights(tmp_path: Path) -> None:
    plain = checkpoint(1)
    saved = Checkpoint(step=1, model=plain.model, ema={"a": torch.ones(2)}, training={})
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved, keep=1))
    assert loaded.ema is not None
    assert torch.equal(loaded.ema["a"], torch.ones(2))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 11, 1_000_000):
        save_checkpoint(tmp_path, checkpoint(step), keep=2)
    assert steps(tmp_path) == ["step_000011", "step_1000000"]


def test_a_damaged_later_checkpoint_never_counts_as_the_one_that_is_kept(tmp_path: Path) -> None:
    damaged = save_checkpoint(tmp_path, checkpoint(100), keep=1)
    (damaged / "training.pt").write_bytes(b"half")
    save_checkpoint(tmp_path, checkpoint(60), keep=1)
    save_checkpoint(tmp_path, checkpoint(70), keep=1)
    assert steps(tmp_path) == ["step_000070", "step_000100"]
    found = load_newest(tmp_path, say=print)
    assert found is not None
    assert found.step == 70


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_with_a_word(tmp_path: Path, name: str, damage: str) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=5)
    newest = save_checkpoint(tmp_path, checkpoint(2), keep=5) / name
    content = newest.read_bytes()
    newest.unlink()
    if damage == "cut":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        newest.write_bytes(bytes([content[0] ^ 0xFF]) + content[1:])
    said: list[str] = []
    found = load_newest(tmp_path, say=said.append)
    assert found is not None
    assert found.step == 1
    assert len(said) == 1
    assert "step_000002" in said[0]


def test_leftovers_of_killed_writes_are_never_loaded_and_are_removed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=5)
    (tmp_path / "step_000001").rename(tmp_path / ".tmp-77-step_000002")
    assert load_newest(tmp_path, say=print) is None
    remove_leftovers(tmp_path)
    assert steps(tmp_path) == []


def test_no_checkpoints_are_no_error(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "nowhere", say=print) is None


def test_a_full_disk_leaves_the_previous_checkpoint_and_says_so(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=1)
    with file_size_limit(10_000), pytest.raises(UserError, match="step 1 is intact: make room"):
        save_checkpoint(tmp_path, checkpoint(2, size=100_000), keep=1)
    assert steps(tmp_path) == ["step_000001"]
    assert load_checkpoint(tmp_path / "step_000001").step == 1


def seal(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a checkpoint's seal."""
    content = json.loads((path / "checkpoint.json").read_text())
    changed = change(content)
    (path / "checkpoint.json").write_text(json.dumps(content if changed is None else changed))


SEALS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no format": lambda seal: seal.pop("format") and None,
    "a later format": lambda seal: seal.update(format=2),
    "a format in words": lambda seal: seal.update(format=[1]),
    "no step": lambda seal: seal.pop("step") and None,
    "another step": lambda seal: seal.update(step=7),
    "a step that is true": lambda seal: seal.update(step=True),
    "no files": lambda seal: seal.pop("files") and None,
    "files in a list": lambda seal: seal.update(files=["model.safetensors"]),
    "a file without a hash": lambda seal: seal["files"]["model.safetensors"].pop("sha256") and None,
    "a file that is null": lambda seal: seal["files"].update({"training.pt": None}),
    "no model": lambda seal: seal["files"].pop("model.safetensors") and None,
    "no state": lambda seal: seal["files"].pop("training.pt") and None,
    "a file elsewhere": lambda seal: seal["files"].update({"../../x": {"bytes": 0, "sha256": ""}}),
    "a list": lambda seal: [1],
    "a number": lambda seal: 1,
    "null": lambda seal: "null",
}


@pytest.mark.parametrize("odd", SEALS)
def test_an_odd_seal_is_passed_over_with_a_word(tmp_path: Path, odd: str) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=5)
    seal(save_checkpoint(tmp_path, checkpoint(2), keep=5), SEALS[odd])
    said: list[str] = []
    found = load_newest(tmp_path, say=said.append)
    assert found is not None
    assert found.step == 1
    assert len(said) == 1
    assert "step_000002" in said[0]
    assert said[0].endswith("; passed over")


@given(data=st.data())
def test_a_seal_with_any_byte_changed_never_ends_in_anything_but_a_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    save_checkpoint(folder, checkpoint(1), keep=5)
    file = save_checkpoint(folder, checkpoint(2), keep=5) / "checkpoint.json"
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.sampled_from([place, len(content)]))])
    said: list[str] = []
    found = load_newest(folder, say=said.append)
    assert found is not None
    assert found.step == 2 - len(said)


def sealed_again(path: Path, name: str, content: bytes) -> None:
    """Put another content into a checkpoint, under a right seal."""
    (path / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    seal(path, lambda seal: seal["files"].update({name: {"bytes": len(content), "sha256": digest}}))


@pytest.mark.parametrize("kind", ["a list", "cut", "empty", "text", "a foreign safetensors"])
def test_a_state_of_another_kind_is_passed_over_even_under_a_right_seal(tmp_path: Path, kind: str) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=5)
    path = save_checkpoint(tmp_path, checkpoint(2), keep=5)
    whole = (path / "training.pt").read_bytes()
    stream = io.BytesIO()
    torch.save([1, 2], stream)
    contents = {"a list": stream.getvalue(), "cut": whole[: len(whole) // 2], "empty": b"", "text": b"mine"}
    name = "model.safetensors" if kind == "a foreign safetensors" else "training.pt"
    sealed_again(path, name, contents.get(kind, whole))
    said: list[str] = []
    found = load_newest(tmp_path, say=said.append)
    assert found is not None
    assert found.step == 1
    assert "something else than weights" in said[0]


def test_a_checkpoint_that_a_run_cannot_go_on_from_is_passed_over(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = {"optimizer": optimizer.state_dict(), "pending": []}
    whole = Checkpoint(step=1, model=model.state_dict(), ema=model.state_dict(), training=state)
    other = nn.Sequential(model, nn.Linear(2, 2))
    odd = {
        2: (replace(whole, training={"optimizer": optimizer.state_dict()}), "lacks pending"),
        3: (replace(whole, training={"pending": []}), "lacks optimizer"),
        4: (replace(whole, training=state | {"optimizer": {}}), "another optimizer's state"),
        5: (
            replace(whole, training=state | {"optimizer": torch.optim.SGD(other.parameters(), 1).state_dict()}),
            "another",
        ),
        6: (replace(whole, model=nn.Linear(3, 4).state_dict()), r"weight is \(4, 3\), the recipe asks for \(2, 3\)"),
        7: (replace(whole, ema=other.state_dict()), r"ema\.safetensors: .* 2 missing"),
    }
    save_checkpoint(tmp_path, whole, keep=9)
    for step, (one, _) in odd.items():
        save_checkpoint(tmp_path, replace(one, step=step), keep=9)
    said: list[str] = []
    found = load_newest(
        tmp_path, say=said.append, fits=partial(check_fits, model=model, optimizer=optimizer, needs=("pending",))
    )
    assert found is not None
    assert found.step == 1
    for line, (step, (_, reason)) in zip(reversed(said), odd.items(), strict=True):
        assert re.search(rf"step_{step:06d}: .*{reason}.*; passed over", line)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("a foreign pickle ran",)


def test_a_foreign_pickle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = checkpoint(3)
    path = save_checkpoint(tmp_path, Checkpoint(step=3, model=saved.model, ema=None, training={"x": Evil()}), keep=1)
    with pytest.raises(UserError, match="something else than weights"):
        load_checkpoint(path)
    assert "ran" not in capsys.readouterr().out
