"""The folder of a fine-tuning run: recipe.yaml, run.json and metrics.jsonl, and who may write there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.folds import FOLDS
from finetune.origin import Given, encoder_facts, taken_up
from finetune.recipe import Recipe
from harmonize.errors import UserError
from harmonize.files import write_json, write_text
from harmonize.provenance import git_revision, library_versions
from headspark.config import WRONG_USE, read_recipe, to_plain, to_yaml
from headspark.run.claim import CHECKPOINTS, FINISHED, METRICS, NEW_FOLDER, RECIPE, STATE, Claim, claim, read_metrics
from headspark.run.diverged import Diverged
from headspark.run.folder import DIVERGED, INTERRUPTED, RUNNING, metrics_line

FREE_ON_RESUME = {
    "data.workers", "data.worker_kind", "data.cache_gb", "train.threads", "train.log_every", "train.validate_every",
    "train.checkpoint_every", "train.keep", "train.non_finite_patience",
}  # fmt: skip
"""Keys that change what is written down or how fast, and nothing that is computed."""


@dataclass(slots=True)
class RunFolder:
    """A run's folder, held by the process that writes to it.

    Attributes:
        claim: The hold on it.
        state: The content of run.json.
    """

    claim: Claim
    state: dict[str, Any]

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.claim.folder

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def encoder(self) -> dict[str, Any] | None:
        """The pretrained encoder that the run began with, as `finetune.origin.encoder_facts`."""
        return self.state["origin"]["encoder"]

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with (self.path / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(metrics_line(line))

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that will be taken again."""
        kept = [metrics_line(line) for line in read_metrics(self.path) if line["step"] <= step]
        write_text(self.path / METRICS, "".join(kept))

    def note(self, **facts: object) -> None:
        """Write facts to run.json; what is not finite becomes null, for JSON knows no NaN."""
        self.state |= plain(facts)
        write_json(self.path / STATE, self.state)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Mark the run as finished."""
        self.claim.keep()
        self.note(status=FINISHED, results=results)

    def interrupt(self, step: int) -> None:
        """Mark the run as one that was asked to stop after `step`."""
        self.claim.keep()
        self.note(status=INTERRUPTED, step=step)


@contextmanager
def hold_run(
    path: Path,
    recipe: Recipe,
    *,
    corpus: str,
    ranks: int,
    given: Given,
    first: Callable[[], None] | None = None,
) -> Iterator[RunFolder]:
    """Start a run in a new folder, or take up an unfinished one, and keep others out meanwhile.

    Until `Claim.keep` everything can be undone.

    Args:
        path: The folder.
        recipe: The run's.
        corpus: Hash of the corpus's manifest.
        ranks: Processes that train.
        given: The encoder that is asked for.
        first: Writes what must lie there before the recipe does, once the folder is known to be the run's.

    Raises:
        UserError: With exit code 2: the folder holds a finished run, one that began otherwise, or no run.
    """
    with claim(path, kind="fine-tuning", other="pretraining", key="origin", more=(FOLDS,)) as claimed:
        if claimed.state is None:
            encoder = encoder_facts(given)
        else:
            has_checkpoint = any((path / CHECKPOINTS).glob("step_*"))
            encoder = taken_up(
                path, claimed.state["origin"], corpus=corpus, ranks=ranks, given=given, has_checkpoint=has_checkpoint
            )
            _check_same(path, recipe)
        if first is not None:
            first()
        write_text(path / RECIPE, to_yaml(recipe))
        folder = RunFolder(claimed, {})
        folder.note(
            status=RUNNING,
            seed=recipe.train.seed,
            revision=git_revision(),
            libraries=library_versions(),
            origin={"corpus": corpus, "encoder": encoder, "ranks": ranks},
        )
        try:
            yield folder
        except Diverged as error:
            if claimed.kept:
                folder.note(status=DIVERGED, diverged=error.facts())
            raise


def _check_same(path: Path, recipe: Recipe) -> None:
    before, now = (_flat(to_plain(one)) for one in (read_recipe(Recipe, path / RECIPE), recipe))
    for key, value in now.items():
        if before[key] != value and key not in FREE_ON_RESUME:
            raise UserError(
                f"{path}: began with {key} {before[key]}, now {value} is asked for; {NEW_FOLDER}",
                exit_code=WRONG_USE,
            )


def _flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in sections.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def plain(value: Any) -> Any:
    """The same with null for each number that JSON does not know."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
