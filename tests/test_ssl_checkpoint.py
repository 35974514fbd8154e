"""Checkpoints: whole or absent, verified, kept as long as they are needed, and never a foreign pickle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from standin_disk import file_size_limit

from harmonize.errors import UserError
from headspark.checkpoint import Checkpoint, load_checkpoint, load_newest, remove_leftovers, save_checkpoint


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


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("a foreign pickle ran",)


def test_a_foreign_pickle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = checkpoint(3)
    path = save_checkpoint(tmp_path, Checkpoint(step=3, model=saved.model, ema=None, training={"x": Evil()}), keep=1)
    with pytest.raises(UserError, match="something else than weights"):
        load_checkpoint(path)
    assert "ran" not in capsys.readouterr().out
