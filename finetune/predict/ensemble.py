"""Models that answer together: each says its probabilities, and the mean of their logits counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch

from finetune.candidates import Candidate, rows_of, together
from finetune.inference import Sight, look_at
from finetune.model_folder import CONFIG, WEIGHTS, Bundle, load_model, read_bundle
from finetune.models.assemble import fastest_weights
from finetune.predict.folds import models_in, warn_of_unfinished
from finetune.predict.inputs import Input, decisions_of, inputs_of, kinds_of, regions_of
from finetune.raw.look import Harmonized, Wish
from finetune.series import Region
from finetune.tasks import make_task
from finetune.views import make_view
from harmonize.errors import Reason, Rejection, WrongUse
from harmonize.files import sha256_of
from harmonize.voxels import brain

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One model of several.

    Attributes:
        folder: Where it lies.
        bundle: What is needed besides the weights.
        weight: What its logits count.
        input: The number of its input among those of all.
    """

    folder: Path
    bundle: Bundle
    weight: float
    input: int

    def facts(self) -> list[object]:
        """What its answers follow from, for whoever wants to know whether they are still the same."""
        return [sha256_of(self.folder / CONFIG), sha256_of(self.folder / WEIGHTS), self.weight]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Models that are asked together, before their weights are read.

    Attributes:
        members: The models.
        wishes: The different ways to harmonize for them.
        inputs: The different inputs that they want.
        labels: What they answer.
    """

    members: tuple[Member, ...]
    wishes: tuple[Wish, ...]
    inputs: tuple[Input, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What models say of a series.

    Attributes:
        probabilities: By label, in the task's order.
        decisions: What was found and done on the way, in order.
        candidates: Where they see something, rows as of `finetune.candidates.rows_of`; None where they do not say, or
            were not asked.
    """

    probabilities: dict[str, float]
    decisions: tuple[str, ...]
    candidates: tuple[dict[str, object], ...] | None = None


def read_panel(folders: Sequence[Path], weights: Sequence[float] | None = None) -> Panel:
    """Read the configurations of models; says of a cross-validation that it is not finished.

    Args:
        folders: Of finished runs, or of cross-validations, whose folds share the weight of their folder.
        weights: What the logits of each folder's models count; None: all models the same.

    Raises:
        UserError: There is no model, two answer other labels, or the weights do not fit.
    """
    if weights is not None and len(weights) != len(folders):
        raise WrongUse(f"--weights: {len(weights)} for {len(folders)} models; give one each, with commas between")
    if weights is not None and not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise WrongUse("--weights: must be positive numbers")
    found: list[tuple[Path, float]] = []
    for number, folder in enumerate(folders):
        models = models_in(folder)
        warn_of_unfinished(folder)
        share = 1.0 if weights is None else weights[number] / len(models)
        found += [(model, share) for model in models]
    bundles = [read_bundle(folder) for folder, _ in found]
    wishes, inputs, numbers = inputs_of(bundles)
    first = make_task(bundles[0].task)
    labels = first.labels
    for (folder, _), bundle in zip(found, bundles, strict=True):
        task = make_task(bundle.task)
        if (task.labels, task.link) != (labels, first.link):
            raise WrongUse(f"{folder}: answers other labels than {found[0][0]}; models of one task are wanted")
        if bundle.settings.brain_model is not None:
            brain.check_model(bundle.settings.brain_model)
    members = tuple(
        Member(folder=folder, bundle=bundle, weight=weight, input=number)
        for (folder, weight), bundle, number in zip(found, bundles, numbers, strict=True)
    )
    return Panel(members=members, wishes=wishes, inputs=inputs, labels=labels)


class Ensemble:
    """The models of a panel on a device.

    Args:
        panel: The models.
        device: Where they compute.
        precision: ``bf16`` computes in half the bytes, with three digits.
    """

    def __init__(self, panel: Panel, device: torch.device, precision: Precision = "fp32") -> None:
        self.panel, self.device, self.precision = panel, device, precision
        self.models = [fastest_weights(load_model(member.folder, member.bundle)).to(device) for member in panel.members]
        self.tasks = [make_task(member.bundle.task) for member in panel.members]
        self.views = [
            make_view(member.bundle.view, member.bundle.data, task)
            for member, task in zip(panel.members, self.tasks, strict=True)
        ]

    def answer(self, batch: Sequence[Harmonized], *, where: bool = False) -> list[Said | Rejection]:
        """What is said of each series, or why nothing is.

        Where the batch does not fit into the memory of a GPU, its halves are tried.

        Args:
            batch: Series of one kind.
            where: Look for candidates too.
        """
        found: list[Rejection | None] = [None] * len(batch)
        regions: list[list[Region | None]] = []
        decisions: list[tuple[str, ...]] = []
        for number, series in enumerate(batch):
            try:
                regions.append(regions_of(series, self.panel.inputs))
                decisions.append(decisions_of(series, regions[-1]))
            except Rejection as error:
                found[number] = error.at(error.stage)
        said = iter(map(self._checked, self._seen(regions, batch[0].kind, where=where) if regions else [], decisions))
        return [next(said) if fault is None else fault for fault in found]

    def look_at(self, regions: Sequence[Sequence[Region | None]], kind: str) -> list[Sight]:
        """What all models together say of regions, and where they see something.

        Args:
            regions: Of each series one for each input of the panel.
            kind: Of the series.
        """
        return self._seen(regions, kind, where=True)

    @torch.inference_mode()
    def _seen(self, regions: Sequence[Sequence[Region | None]], kind: str, *, where: bool) -> list[Sight]:
        """What the only model that takes the series says, or the mean of the logits of several."""
        asked = [number for number, member in enumerate(self.panel.members) if kind in kinds_of(member.bundle.data)]
        try:
            found = [self._of_member(number, regions, where=where) for number in asked]
        except torch.OutOfMemoryError:
            if len(regions) == 1:
                raise
            torch.cuda.empty_cache()
            half = len(regions) // 2
            return [one for part in (regions[:half], regions[half:]) for one in self._seen(part, kind, where=where)]
        if len(found) == 1:
            return found[0]
        weights = [self.panel.members[number].weight for number in asked]
        values_MBL = [torch.stack([one.values_L for one in member]) for member in found]
        mean_BL = self.tasks[0].link.mean(values_MBL, weights)
        places = (_places_of(of_series, weights) for of_series in zip(*found, strict=True))
        return [Sight(values_L=mean_L, candidates=own) for mean_L, own in zip(mean_BL, places, strict=True)]

    def _of_member(self, number: int, regions: Sequence[Sequence[Region | None]], *, where: bool) -> list[Sight]:
        member, task, view = self.panel.members[number], self.tasks[number], self.views[number]
        own = [cast(Region, of_series[member.input]) for of_series in regions]
        bf16 = torch.autocast(self.device.type, dtype=torch.bfloat16) if self.precision == "bf16" else nullcontext()
        with bf16:
            return look_at(self.models[number], own, member.bundle.data, task, view, self.device, where=where)

    def _checked(self, seen: Sight, decisions: tuple[str, ...]) -> Said | Rejection:
        values_L = seen.values_L.tolist()
        if not all(map(math.isfinite, values_L)):
            message = "the model's answer is no number: its weights or the values diverged"
            return Rejection(Reason.BAD_INTENSITY, message)
        probabilities = dict(zip(self.panel.labels, values_L, strict=True))
        rows = None if seen.candidates is None else tuple(rows_of(seen.candidates, self.panel.labels))
        return Said(probabilities=probabilities, decisions=decisions, candidates=rows)


def _places_of(said: Sequence[Sight], weights: Sequence[float]) -> list[Candidate] | None:
    """What the models of a panel see together, of those that say where; None where none does."""
    saying = [(one.candidates, weight) for one, weight in zip(said, weights, strict=True) if one.candidates is not None]
    return together([found for found, _ in saying], [weight for _, weight in saying]) if saying else None
