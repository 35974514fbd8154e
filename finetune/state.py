"""What a fine-tuning step works on, made at its first step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from finetune.losses import TotalLoss, check_outputs
from finetune.model_folder import Bundle
from finetune.models.assemble import Network, fastest_weights, upgraded_names
from finetune.models.encoders import Shape, make_encoder
from finetune.models.heads.decoder import DecodingHead
from finetune.origin import scaling_of, windows_of
from finetune.recipe import Recipe, TrainConfig
from finetune.roi import finder_notes
from finetune.samples import DataConfig, DrawnBatch, check_patch, make_inputs, make_targets
from finetune.series import Findings, Sample
from finetune.stages import Rates, StageConfig, in_steps, parameter_groups, rates_at, total_steps
from finetune.tasks import KNOWN, Task
from finetune.views import View, make_view
from finetune.views.region import MARGIN, SAME_SPACING_MM
from harmonize.corpus import Corpus
from harmonize.errors import WrongUse
from harmonize.settings import Settings, StoredRegion, region_facts
from headspark.channels import DEFAULT_MRI_SCALING
from headspark.decoder import UNetDecoder
from headspark.encoder.stem import changes, with_windows
from headspark.run.fit import fit_plan, hold_what_later_steps_hold
from headspark.run.split_norms import split_norms
from headspark.run.state import TrainState


@dataclass(slots=True, kw_only=True)
class FinetuneState(TrainState[Network]):
    """The state of a fine-tuning run.

    Attributes:
        recipe: The run's.
        stages: Its stages, as `finetune.stages.in_steps` gives them.
        data: Its data section, with nothing left open.
        task: What is asked.
        view: What the network sees.
        loss: What it is trained to say.
        legacy_noise: Whether version 0.1.0 began the run: then its noise is drawn as that did.
    """

    advice: ClassVar[str] = "lower the rates of the stages or lengthen their warmup, and give --out a new folder"

    recipe: Recipe
    stages: tuple[StageConfig, ...]
    data: DataConfig
    task: Task
    view: View
    loss: TotalLoss
    legacy_noise: bool = False

    def make_targets(self, drawn: DrawnBatch) -> dict[str, Tensor]:
        """What the network should say of a batch."""
        return make_targets(drawn, self.view, self.task, cells=self.unwrapped.cells)

    def make_inputs(self, drawn: DrawnBatch) -> tuple[Tensor, ...]:
        """What the network is given of a batch: its input, CT or MR, and what a view tells besides.

        It takes several times the memory of what it is made of: keep that of one part of a step at a time.
        """
        x, *more = make_inputs(drawn, self.view)
        return (x if self.view.pictures else fastest_layout(x)), *more

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what a step measures."""
        return ("loss", *self.loss.names, "norm")

    def todays_names(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Weights of a checkpoint by the names of this version."""
        return upgraded_names(weights)

    def rates(self) -> Rates:
        """What the coming step trains."""
        return rates_at(self.step, self.stages, len(self.unwrapped.layers))

    def last_rates(self) -> Rates:
        """What the step trained that was taken last."""
        return rates_at(max(self.step - 1, 0), self.stages, len(self.unwrapped.layers))

    def bundle(self, settings: Settings) -> Bundle:
        """What must be known besides the weights to predict."""
        shape = cast(Shape, self.unwrapped.encoder.config)
        recipe = self.recipe
        return Bundle(
            task=recipe.task,
            view=recipe.view,
            encoder=shape,
            head=recipe.head,
            auxiliary=recipe.auxiliary,
            condition=recipe.condition,
            data=self.data,
            settings=settings,
        )


def stages_of_run(recipe: Recipe, *, epoch: int) -> tuple[StageConfig, ...]:
    """A recipe's stages with lengths in steps, and with the weight decay of those that give none.

    Args:
        recipe: The run's.
        epoch: Steps of an epoch.
    """
    return in_steps(recipe.stages, epoch=epoch, weight_decay=recipe.train.weight_decay)


def prepare(
    recipe: Recipe, stages: tuple[StageConfig, ...], task: Task, accelerator: Accelerator, pretrained: Any | None
) -> FinetuneState:
    """Model, optimizer, moving average and plan of a run at its first step.

    Args:
        recipe: The run's.
        stages: Its stages, with lengths in steps.
        task: What it asks.
        accelerator: Ranks, devices and precision.
        pretrained: What `Encoder.from_pretrained` gives; None trains the recipe's encoder from scratch.
    """
    data = recipe.data
    if pretrained is None:
        data = data.completed(data.windows, DEFAULT_MRI_SCALING)
    else:
        seen = windows_of(pretrained.preprocessing, pretrained.config.in_channels)
        data = data.completed(seen, scaling_of(pretrained.preprocessing))
        check_patch(data, pretrained.strides[-1])
        pretrained = with_windows(pretrained, seen, data.windows)
    view = make_view(recipe.view, data, task)
    plan = fit_plan(
        accelerator,
        steps=total_steps(stages),
        batch=recipe.train.batch,
        accumulate=recipe.train.accumulate,
        try_step=partial(try_step, recipe, task, accelerator, view, pretrained),
    )
    torch.manual_seed(recipe.train.seed)
    encoder = make_encoder(recipe.scratch) if pretrained is None else pretrained
    network = make_model(recipe, task, encoder).to(accelerator.device)
    groups = parameter_groups(network, weight_decay=recipe.train.weight_decay)
    optimizer = make_optimizer(groups, recipe.train)
    # Wrapped while everything wants a gradient: the wrapper for several ranks looks only once at who takes part.
    model, optimizer = accelerator.prepare(network.requires_grad_(True), optimizer)
    return FinetuneState(
        recipe=recipe,
        stages=stages,
        data=data,
        task=task,
        view=view,
        loss=TotalLoss(recipe.losses, task),
        accelerator=accelerator,
        plan=plan,
        model=model,
        unwrapped=network,
        optimizer=optimizer,
        ema=ModelEmaV3(network, decay=recipe.train.ema) if recipe.train.ema is not None else None,
    )


def make_optimizer(groups: Iterable[Any], config: TrainConfig) -> Optimizer:
    """The optimizer of all stages; its rates are set before each step.

    Args:
        groups: As `parameter_groups` gives them, or parameters.
        config: Which optimizer.
    """
    if config.optimizer == "sgd":
        return SGD(groups, lr=0.0, momentum=config.momentum, nesterov=True, fused=True)
    return AdamW(groups, lr=0.0, fused=True)


def make_model(recipe: Recipe, task: Task, encoder: Any) -> Network:
    """The network on an encoder, laid out in memory as convolutions are fastest.

    Raises:
        UserError: A head does not fit the encoder or the task, or a loss is about an output that none gives.
    """
    encoder.set_grad_checkpointing(recipe.train.activation_checkpointing)
    network = Network(encoder, recipe.head, recipe.auxiliary, task, recipe.condition)
    check_outputs(recipe.losses, network.outputs)
    # On a small grid: only the names are wanted.
    offered = [name for name in empty_targets(task, network, (8, 8, 8)) if not name.endswith(KNOWN)]
    for number, term in enumerate(recipe.losses):
        wanted = network.only_targets.get(term.of, term.wanted)
        if term.wanted != wanted:
            raise WrongUse(f"losses[{number}]: {term.of} can only be compared with {wanted}; add target: {wanted}")
        if wanted not in offered:
            raise WrongUse(f"losses[{number}].target {wanted!r}: the task makes none; there is {', '.join(offered)}")
    return fastest_weights(network)


def fastest_layout(x: Tensor) -> Tensor:
    """An input laid out in memory as convolutions are fastest."""
    return x.to(memory_format=torch.channels_last_3d) if x.ndim == 5 else x


def try_step(
    recipe: Recipe, task: Task, accelerator: Accelerator, view: View, pretrained: Any | None, batch: int
) -> None:
    """A step of a throw-away model on noise, in which everything trains, with all that the run has."""
    device, patch = accelerator.device, view.sample_shape
    encoder = make_encoder(recipe.scratch, weights=False) if pretrained is None else deepcopy(pretrained)
    model = make_model(recipe, task, encoder).to(device)
    average = None if recipe.train.ema is None else ModelEmaV3(model, decay=recipe.train.ema)
    optimizer = make_optimizer(model.parameters(), recipe.train)
    hold_what_later_steps_hold(model, optimizer)
    targets = {name: torch.stack([one] * batch).to(device) for name, one in empty_targets(task, model, patch).items()}
    x = torch.randn(batch, *view.input_shape, device=device)
    with accelerator.autocast():
        told = (
            torch.zeros((batch, 4), device=device) if view.zooms else torch.zeros(batch, dtype=torch.int64).to(device)
        )
        outputs = model(x if view.pictures else fastest_layout(x), told)
    TotalLoss(recipe.losses, task)(outputs, targets)[0].backward()
    optimizer.step()
    if average is not None:
        average.update(model)


def empty_targets(task: Task, model: Network, patch: tuple[int, int, int]) -> dict[str, Tensor]:
    """What a model should say of a series without findings."""
    nothing = Findings(
        points_K3=np.zeros((0, 3)),
        places_K=np.zeros(0, np.int64),
        mask_XYZ=None,
        labels_L=np.zeros(len(task.labels), np.int64),
    )
    return task.targets(Sample(findings=nothing, shape=patch, spacing=(1.0, 1.0, 1.0), cells=model.cells))


def begin_decoders(state: FinetuneState, pretrained: UNetDecoder | None) -> list[str]:
    """Let the decoders among the heads of a new run begin with a pretrained one.

    Args:
        state: At its first step.
        pretrained: What lies beside the encoder; None: they stay as they were drawn.

    Returns:
        How each begins, for people.
    """
    heads = [one for one in state.unwrapped.heads if isinstance(one, DecodingHead)]
    for head in heads:
        if pretrained is not None:
            head.begin_with(pretrained)
    if pretrained is not None and state.ema is not None:
        state.ema.set(state.unwrapped)
    return [head.note for head in heads]


def notes(state: FinetuneState, corpus: Corpus, pretrained: Any | None) -> list[str]:
    """What the user may not expect of a run that starts; `pretrained` as it was given to `prepare`."""
    plan = state.plan
    split = split_norms(
        state.unwrapped, batch=plan.batch, accumulate=plan.accumulate, ranks=plan.ranks, key="the encoder's norm"
    )
    lines = shortfalls(corpus, state.data) + finder_notes(state.view, state.data)
    if pretrained is not None:
        lines += differences(pretrained, corpus, state.task.sources[0], state.data)
    return lines if split is None else [*lines, split]


def shortfalls(corpus: Corpus, data: DataConfig) -> list[str]:
    """In what the corpus holds less of a head than the recipe asks for: finer voxels, or a larger box."""
    lines = []
    if data.spacing is not None and max(corpus.spacing) > data.spacing + SAME_SPACING_MM:
        lines.append(
            f"data.spacing {data.spacing:g}: the corpus has {_by(corpus.spacing)} mm, and what is smaller is lost; "
            f"harmonize with --spacing {data.spacing:g} to keep it"
        )
    stored_mm = corpus.circle_mm
    if stored_mm is None:
        return lines
    spacing = corpus.spacing if data.spacing is None else (data.spacing,) * 3
    patch_mm = [voxels * mm for voxels, mm in zip(data.patch, spacing, strict=True)]
    wanted_mm = [math.ceil(MARGIN * mm - SAME_SPACING_MM) for mm in patch_mm]
    if any(wanted > stored for wanted, stored in zip(wanted_mm, stored_mm, strict=True)):
        lines.append(
            f"data.patch {list(data.patch)}: is {_by(patch_mm)} mm, and reaches over {_by(wanted_mm)} mm when it is "
            f"turned and shifted, but the corpus stores {_by(stored_mm)} mm around the circle of Willis; the rest is "
            f"filled with air, unless you harmonize with --region-mm {','.join(map(str, wanted_mm))}"
        )
    return lines


def _region(facts: Mapping[str, Any]) -> str:
    named = {
        StoredRegion.ALL: "whole scans",
        StoredRegion.HEAD: "heads without the air around them",
        StoredRegion.CIRCLE: f"{_by(facts.get('region_mm') or [])} mm around the circle of Willis",
    }
    return named[StoredRegion(facts["region"])]


def _by(edges: Sequence[float]) -> str:
    return " x ".join(f"{edge:g}" for edge in edges)


def differences(encoder: Any, corpus: Corpus, source: str, data: DataConfig) -> list[str]:
    """In what the scans differ from those that a pretrained encoder has seen; it may still be meant so.

    Args:
        encoder: As it was pretrained.
        corpus: Where the series come from.
        source: The task's.
        data: The recipe's section, with nothing left open.
    """
    seen, lines = encoder.preprocessing, []
    spacing = [data.spacing] * 3 if data.spacing is not None else list(corpus.spacing)
    if seen.get("spacing_mm") and spacing != list(seen["spacing_mm"]):
        lines.append(f"the encoder was pretrained at {seen['spacing_mm']} mm, this run works at {spacing} mm")
    stored = region_facts(corpus.region, corpus.circle_mm)
    if "region" in seen and any(seen.get(key) != stored.get(key) for key in ("region", "region_mm")):
        lines.append(f"the encoder was pretrained on {_region(seen)}, this corpus stores {_region(stored)}")
    norm = corpus.mri_norms[source]
    if seen.get("mri_norms") and norm not in seen["mri_norms"].values():
        lines.append(f"the encoder was pretrained on MRI normalised by {seen['mri_norms']}, this corpus by {norm}")
    scaling = scaling_of(seen)
    if scaling != data.scaling:
        lines.append(f"the encoder was pretrained with data.mri_scaling {scaling}, this run has {data.scaling}")
    windows = windows_of(seen, encoder.config.in_channels)
    adapted = changes(windows, data.windows)
    if adapted is not None:
        names = [", ".join(window.name for window in each) for each in (windows, data.windows)]
        lines.append(
            f"the encoder was pretrained on the CT windows {names[0]}, this run cuts {names[1]}: its first convolution "
            f"is adapted ({adapted}); an MRI gives the same features as before"
        )
    return lines
