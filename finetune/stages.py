"""Which parameters train at which rate, as a pure function of the global step.

A fine-tuning run is a list of stages. Each says how many of the encoder's layers train, counted from the deepest, and
the learning rates of the head and of the encoder. Nothing about a stage is remembered between steps, so a run that is
resumed anywhere goes on exactly as if it had never stopped.

One optimizer serves the whole run: a layer that does not train has no gradient, AdamW leaves it and its (still absent)
moments alone, and whatever trained before keeps its moments across the switch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import nn
from torch.optim import Optimizer

from harmonize.errors import WrongUse
from headspark.optim import LARGEST_RATE

HEAD = "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """One stage of a fine-tuning run.

    Attributes:
        name: Shown in the logs and on the curves.
        steps: Optimizer steps.
        head_lr: Peak learning rate of the head.
        encoder_lr: Peak learning rate of the deepest encoder layer.
        layers: How many encoder layers train, counted from the deepest: 0 freezes the encoder.
        layer_decay: Factor on the rate from one encoder layer to the next shallower one.
        warmup: Steps over which the rates rise linearly from zero at the stage's start.
        final: Share of the peak that is left at the stage's end; the fall is a half cosine.
    """

    name: str
    steps: int
    head_lr: float
    encoder_lr: float = 0.0
    layers: int | Literal["all"] = 0
    layer_decay: float = 1.0
    warmup: int = 0
    final: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise WrongUse(f"stage {self.name!r}: steps must be at least 1, not {self.steps}")
        if not 0 <= self.warmup <= self.steps:
            raise WrongUse(f"stage {self.name!r}: warmup must lie between 0 and its {self.steps} steps")
        if self.layers != "all" and self.layers < 0:
            raise WrongUse(f"stage {self.name!r}: layers must be 'all' or a count of encoder layers, not {self.layers}")
        if (self.layers == 0) != (self.encoder_lr == 0):
            raise WrongUse(f"stage {self.name!r}: give encoder_lr and layers together, or neither (frozen encoder)")
        for name in ("head_lr", "encoder_lr"):
            if not 0 <= getattr(self, name) <= LARGEST_RATE:
                raise WrongUse(
                    f"stage {self.name!r}: {name} {getattr(self, name)} must be 0 or more, and no more than "
                    f"{LARGEST_RATE:g}"
                )
        if not 0 <= self.final <= 1 or not 0 < self.layer_decay <= 1:
            raise WrongUse(f"stage {self.name!r}: final in [0, 1] and layer_decay in (0, 1] are needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What trains at one step.

    Attributes:
        stage: Index of the stage.
        name: Its name.
        head: Learning rate of the head.
        encoder: Learning rate of each encoder layer, shallowest first; None where the layer is frozen.
    """

    stage: int
    name: str
    head: float
    encoder: tuple[float | None, ...]


class Staged(Protocol):
    """A model whose encoder can be told apart by layer."""

    @property
    def layers(self) -> Sequence[Sequence[nn.Module]]:
        """Encoder modules that own parameters, a group a layer, shallowest first; only their own parameters count."""
        ...

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        """Everything that is not the encoder."""
        ...

    @property
    def encoder(self) -> nn.Module:
        """The encoder."""
        ...

    def train(self, mode: bool = True) -> object:
        """Set training mode everywhere, as `nn.Module.train` does."""
        ...


def total_steps(stages: Sequence[StageConfig]) -> int:
    """Optimizer steps of the whole run."""
    return sum(stage.steps for stage in stages)


def rates_at(step: int, stages: Sequence[StageConfig], depth: int) -> Rates:
    """What trains at optimizer step `step`, counted from 0.

    Args:
        step: The global step; from the run's end on, the last step's rates hold.
        stages: The run's stages, in order.
        depth: How many layers the encoder has.

    Returns:
        The stage and its rates at this step.

    Raises:
        ValueError: If `step` is negative or there are no stages.

    Example:
        >>> stages = [StageConfig(name="head", steps=10, head_lr=1e-3),
        ...           StageConfig(name="deep", steps=10, head_lr=1e-3, encoder_lr=1e-4, layers=1)]
        >>> rates_at(9, stages, depth=3).encoder
        (None, None, None)
        >>> rates_at(10, stages, depth=3).encoder
        (None, None, 0.0001)
    """
    if step < 0 or not stages:
        raise ValueError("a step from 0 on and at least one stage are needed")
    index, within = _locate(min(step, total_steps(stages) - 1), stages)
    stage = stages[index]
    share = _shape(within, stage)
    training = depth if stage.layers == "all" else min(stage.layers, depth)
    encoder = tuple(
        stage.encoder_lr * stage.layer_decay ** (depth - 1 - layer) * share if layer >= depth - training else None
        for layer in range(depth)
    )
    return Rates(stage=index, name=stage.name, head=stage.head_lr * share, encoder=encoder)


def parameter_groups(model: Staged, *, weight_decay: float) -> list[dict[str, object]]:
    """Optimizer groups, one or two a layer: vectors and scalars (norms, biases) are spared the weight decay.

    Args:
        model: The model; every parameter lands in exactly one group.
        weight_decay: For the matrices and kernels.

    Returns:
        Groups with `layer` (the encoder layer's index or `HEAD`), `params`, `lr` and `weight_decay`.
    """
    parts: list[tuple[int | str, list[nn.Parameter]]] = [
        *((layer, _own_parameters(modules)) for layer, modules in enumerate(model.layers)),
        (HEAD, model.head_parameters),
    ]
    groups: list[dict[str, object]] = []
    for layer, parameters in parts:
        for decay, chosen in (
            (weight_decay, [p for p in parameters if p.ndim > 1]),
            (0.0, [p for p in parameters if p.ndim <= 1]),
        ):
            if chosen:
                groups.append({"layer": layer, "params": chosen, "lr": 0.0, "weight_decay": decay})
    return groups


def apply_rates(rates: Rates, model: Staged, optimizer: Optimizer) -> None:
    """Freeze, unfreeze and set the learning rates as `rates` say. Doing it twice changes nothing.

    A frozen layer needs no gradient, so autograd neither keeps its activations nor walks back through it, and its
    modules are in eval mode: running statistics of norms and dropout stand still.
    """
    model.train()
    # Modules without parameters (dropout, norms without scale) stand still until the whole encoder trains.
    model.encoder.train(all(rate is not None for rate in rates.encoder))
    for modules, rate in zip(model.layers, rates.encoder, strict=True):
        for module in modules:
            module.training = rate is not None
        for parameter in _own_parameters(modules):
            parameter.requires_grad_(rate is not None)
    for group in optimizer.param_groups:
        layer = group["layer"]
        rate = rates.head if layer == HEAD else rates.encoder[layer]
        group["lr"] = 0.0 if rate is None else rate


def _own_parameters(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters(recurse=False)]


def _locate(step: int, stages: Sequence[StageConfig]) -> tuple[int, int]:
    """Index of the stage that `step` falls into, and the step within it."""
    for index, stage in enumerate(stages):
        if step < stage.steps:
            return index, step
        step -= stage.steps
    raise AssertionError("the caller keeps the step inside the run")


def _shape(within: int, stage: StageConfig) -> float:
    """Share of the peak rate at step `within` of the stage, in (0, 1]."""
    if within < stage.warmup:
        return (within + 1) / stage.warmup
    progress = (within - stage.warmup) / max(1, stage.steps - stage.warmup - 1)
    return stage.final + (1 - stage.final) * (1 + math.cos(math.pi * progress)) / 2
