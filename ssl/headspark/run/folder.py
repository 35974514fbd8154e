"""The folder of a run: what it is (recipe.yaml), how it stands (run.json) and what it measured (metrics.jsonl)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from harmonize.errors import UserError, WrongUse
from harmonize.files import write_json, write_text
from harmonize.provenance import git_revision, library_versions
from headspark.channels import DEFAULT_MRI_SCALING, CtWindow, MriScaling
from headspark.config import read_recipe, to_plain, to_yaml
from headspark.data.config import LoaderConfig
from headspark.run.claim import (
    CHECKPOINTS,
    FINISHED,
    LOCK,
    METRICS,
    NEW_FOLDER,
    RECIPE,
    STATE,
    Claim,
    claim,
    has_taken_a_step,
    read_metrics,
    read_state,
)
from headspark.run.diverged import Diverged

__all__ = ["FINISHED", "LOCK", "METRICS", "RECIPE", "STATE", "read_metrics", "read_state"]  # of headspark.run.claim
RUNNING, INTERRUPTED, DIVERGED = "running", "interrupted", "diverged"
SAMPLES_PER_STEP = "effective_batch"
"""Name in run.json of how many samples per step there are, as version 0.1.0 wrote it."""

_LONGEST_DIFFERENCE = 400
"""Characters of two values that a message shows."""

OF_A_STEP = {"train.batch", "train.accumulate"}
"""Keys that may change as long as a step has as many samples as before; a checkpoint knows how many those are."""

FREE_ON_RESUME = {
    "data.cache", "data.cache_dir", "data.workers", "data.worker_kind", "train.threads", "train.log_every",
    "train.validate_every", "train.checkpoint_every", "train.keep", "train.non_finite_patience", *OF_A_STEP,
}  # fmt: skip
"""Keys of every recipe that change what is written down or how fast, and nothing that is computed."""


class Recipe(Protocol):
    """What a run is: a dataclass of sections, of which one says how it trains, and one what it sees."""

    @property
    def train(self) -> Any:
        """With the ``seed``."""

    @property
    def data(self) -> Any:
        """A `LoaderConfig`."""


R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunKind:
    """What tells the runs of one program from those of another.

    Attributes:
        name: For people: ``pretraining``.
        other: What else may have written a run.json.
        key: What run.json holds for runs of this kind and no other.
        free: Keys of the recipe that may change when a run is taken up, besides `FREE_ON_RESUME`.
        files: Files that runs of this kind write besides those that all write.
    """

    name: str
    other: str
    key: str
    free: frozenset[str] = frozenset()
    files: tuple[str, ...] = ()


@dataclass(slots=True)
class RunFolder:
    """A run's folder, held by the one process that writes to it.

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

    def log(self, **facts: object) -> None:
        """Append a line to metrics.jsonl."""
        with (self.path / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(metrics_line(facts))

    def log_once(self, **facts: object) -> None:
        """The same unless it stands there already: whoever wrote it was killed before the run was finished."""
        if json.loads(metrics_line(facts)) not in read_metrics(self.path):
            self.log(**facts)

    def forget_after(self, step: int) -> None:
        """Drop the lines of metrics.jsonl that a killed run wrote after its last checkpoint."""
        lines = [metrics_line(line) for line in read_metrics(self.path) if line["step"] <= step]
        write_text(self.path / METRICS, "".join(lines))

    def note(self, **facts: object) -> None:
        """Write facts to run.json: how the run stands, what it runs on."""
        self.state |= without_odd_numbers(facts)
        write_json(self.path / STATE, self.state)

    def end(self, status: str, **facts: object) -> None:
        """Write how the run ended, and let its folder stay."""
        self.claim.keep()
        self.note(status=status, **facts)


@contextmanager
def open_run(
    path: Path,
    recipe: Recipe,
    kind: RunKind,
    *,
    began_with: Callable[[Mapping[str, Any] | None], Mapping[str, Any]],
    first: Callable[[], None] | None = None,
) -> Iterator[RunFolder]:
    """Start a run in a new folder, or take up an unfinished one, and keep others out meanwhile.

    Until `Claim.keep` all can be undone.

    Args:
        path: The folder.
        recipe: What the run is.
        kind: Whose run.
        began_with: Given run.json of the run that is taken up (None for a new one), says for run.json what the run
            begins with besides its recipe; refuses what is not what that run began with.
        first: Writes what must lie there before the recipe does, once the folder is known to be the run's.

    Raises:
        UserError: With exit code 2: the folder holds a finished run, one that began otherwise, one that is running
            now, or no run at all.
    """
    with claim(path, kind=kind.name, other=kind.other, key=kind.key, more=kind.files) as claimed:
        facts = began_with(claimed.state)
        if claimed.state is not None:
            free = FREE_ON_RESUME | kind.free
            # Runs of version 0.1.0's fine-tuning do not say how many samples a step has.
            check_same_recipe(path, recipe, free if SAMPLES_PER_STEP in claimed.state else free - OF_A_STEP)
        if first is not None:
            first()
        write_text(path / RECIPE, to_yaml(recipe))
        run = RunFolder(claimed, dict(claimed.state or {}))
        run.state.pop("diverged", None)
        run.note(
            status=RUNNING,
            seed=recipe.train.seed,
            revision=git_revision(),
            libraries=library_versions(),
            **facts,
        )
        try:
            yield run
        except Diverged as error:
            if claimed.kept:
                run.note(status=DIVERGED, diverged=error.facts())
            raise


def read_run_recipe(recipe_class: type[R], folder: Path) -> R:
    """The recipe of a run, with what its version of headspark did where it says nothing.

    Raises:
        WrongUse: It is missing or damaged.
    """
    recipe = read_recipe(recipe_class, folder / RECIPE)
    return _with_data(recipe, recipe.data.as_begun())


def completed(
    recipe: R, folder: Path, windows: Sequence[CtWindow] = (), scaling: MriScaling = DEFAULT_MRI_SCALING
) -> R:
    """A recipe that says how the network sees scans where it left that open.

    Args:
        recipe: As it was given.
        folder: Of the run: if it goes on, it sees what it saw.
        windows: For a new run.
        scaling: For a new run.
    """
    data: LoaderConfig = recipe.data
    begun: LoaderConfig | None = None
    with suppress(UserError):  # whoever claims the folder says what is wrong with it
        begun = read_recipe(type(recipe), folder / RECIPE).data if has_taken_a_step(folder) else None
    if begun is None:
        return _with_data(recipe, data.completed(windows, scaling))
    seen = begun.as_begun()
    names = seen.ct_windows if data.ct_windows in ((), begun.ct_windows) else data.ct_windows
    return _with_data(recipe, replace(data, ct_windows=names, mri_scaling=data.mri_scaling or seen.mri_scaling))


def check_same_recipe(path: Path, recipe: Any, free: frozenset[str] | set[str]) -> None:
    """Refuse to go on with another recipe than a run began with.

    Args:
        path: The run's folder, with the recipe that it began with.
        recipe: The one that is asked for now.
        free: Keys that may differ.

    Raises:
        UserError: With exit code 2; names the first key that differs.
    """
    fault = first_difference(read_run_recipe(type(recipe), path), recipe, free)
    if fault is not None:
        raise WrongUse(f"{path}: {fault}; {NEW_FOLDER}")


def first_difference(before: Any, now: Any, free: Collection[str] = ()) -> str | None:
    """The first key in which two recipes of one kind differ, in words; None where they are the same.

    Args:
        before: What something began with.
        now: What is asked for.
        free: Keys that may differ.
    """
    then, wanted = _flat(to_plain(before)), _flat(to_plain(now))
    for key in (*wanted, *(key for key in then if key not in wanted)):  # a kind has keys of its own
        one, other = then.get(key, "nothing"), wanted.get(key, "nothing")
        if one != other and key not in free:
            is_long = len(f"{one}{other}") > _LONGEST_DIFFERENCE
            return f"began with another {key}" if is_long else f"began with {key} {one}, now {other} is asked for"
    return None


def metrics_line(facts: Mapping[str, Any]) -> str:
    """A line of metrics.jsonl; a number that JSON does not know (NaN, infinity) is null, and named under `not_finite`.

    Example:
        >>> metrics_line({"step": 3, "loss": float("inf"), "lr": 0.1})
        '{"step": 3, "loss": null, "lr": 0.1, "not_finite": {"loss": "inf"}}\\n'
    """
    odd = {name: str(value) for name, value in facts.items() if isinstance(value, float) and not math.isfinite(value)}
    plain = {name: None if name in odd else value for name, value in facts.items()}
    if odd:
        plain["not_finite"] = odd
    return json.dumps(plain, allow_nan=False) + "\n"


def without_odd_numbers(value: Any) -> Any:
    """The same with null for each number that JSON does not know."""
    if isinstance(value, Mapping):
        return {name: without_odd_numbers(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_odd_numbers(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_data(recipe: R, data: LoaderConfig) -> R:
    return replace(recipe, data=data)  # type: ignore[type-var]


def _flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in sections.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat
