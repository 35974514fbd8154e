"""The folder of a fine-tuning run: recipe.yaml, run.json and metrics.jsonl, and who may write there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.recipe import Recipe
from harmonize.errors import UserError
from harmonize.files import write_json, write_text
from harmonize.lock import exclusive
from harmonize.provenance import git_revision, library_versions
from headspark.config import WRONG_USE, read_recipe, to_plain, to_yaml
from headspark.run import FINISHED, LOCK, METRICS, RECIPE, RUNNING, STATE, read_metrics, read_state

FREE_ON_RESUME = {
    "data.workers", "data.cache_gb", "train.threads", "train.log_every", "train.validate_every",
    "train.checkpoint_every", "train.keep", "train.non_finite_patience",
}  # fmt: skip
"""Keys that change what is written down or how fast, and nothing that is computed."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's folder, held by the process that writes to it.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl; what is not finite becomes null, for JSON knows no NaN."""
        with (self.path / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(_plain(line)) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that will be taken again."""
        kept = [json.dumps(line) + "\n" for line in read_metrics(self.path) if line["step"] <= step]
        write_text(self.path / METRICS, "".join(kept))

    def finish(self, results: Mapping[str, Any]) -> None:
        """Mark the run as finished."""
        write_json(self.path / STATE, {**(read_state(self.path) or {}), "status": FINISHED, "results": _plain(results)})


@contextmanager
def hold_run(
    path: Path, recipe: Recipe, origin: Mapping[str, Any], *, first: Callable[[], None] | None = None
) -> Iterator[RunFolder]:
    """Start a run in a new folder, or take up an unfinished one, and keep others out meanwhile.

    Args:
        path: The folder.
        recipe: The run's.
        origin: What it is made from (corpus, encoder); must not change when it is taken up again.
        first: Writes what must lie there before the recipe does, once the folder is known to be the run's.

    Raises:
        UserError: With exit code 2: the folder holds a finished run, one of another recipe or origin, or no run.
    """
    there = read_state(path)
    if there is None and path.is_dir() and any(entry.name not in (LOCK, RECIPE) for entry in path.iterdir()):
        raise UserError(f"{path}: not empty and no run; give --out a new folder", exit_code=WRONG_USE)
    with exclusive(path / LOCK, f"{path}: another process is writing to this run"):
        if there is not None:
            _check_same(path, there, recipe, origin)
        if first is not None:
            first()
        write_text(path / RECIPE, to_yaml(recipe))
        write_json(
            path / STATE,
            {
                "status": RUNNING,
                "seed": recipe.train.seed,
                "revision": git_revision(),
                "libraries": library_versions(),
                "origin": dict(origin),
            },
        )
        yield RunFolder(path)


def _check_same(path: Path, there: Mapping[str, Any], recipe: Recipe, origin: Mapping[str, Any]) -> None:
    if there["status"] == FINISHED:
        raise UserError(f"{path}: this run is finished; give --out a new folder", exit_code=WRONG_USE)
    for name, value in origin.items():
        if there["origin"].get(name) != value:
            raise UserError(f"{path}: began with another {name}; give --out a new folder", exit_code=WRONG_USE)
    before, now = (_flat(to_plain(one)) for one in (read_recipe(Recipe, path / RECIPE), recipe))
    for key, value in now.items():
        if before[key] != value and key not in FREE_ON_RESUME:
            raise UserError(
                f"{path}: began with {key} {before[key]}, now {value} is asked for; give --out a new folder",
                exit_code=WRONG_USE,
            )


def _flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in sections.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
