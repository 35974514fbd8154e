"""Which parameters train at which rate, as a pure function of the global step.

A fine-tuning run is a list of stages. Each says how many of the encoder's layers train, counted from the deepest, the
learning rates of the head and of the encoder, dropout and weight decay. Nothing about a stage is remembered between
steps, so a run that is resumed anywhere goes on exactly as if it had never stopped.

One optimizer serves the whole run: a layer that does not train has no gradient, the optimizer leaves it and its (still
absent) moments alone, and whatever trained before keeps its moments across the switch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from torch import nn
from torch.optim import Optimizer

from harmonize.errors import WrongUse
from headspark.optim import LARGEST_RATE, POLY_POWER

HEAD = "head"
Schedule = Literal["constant", "cosine", "poly"]
LARGEST_STEPS = 1e9
"""Of a stage: more are not taken in a lifetime."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """One stage of a fine-tuning run.

    Attributes:
        name: Shown in the logs and on the curves.
        steps: Its length in optimizer steps; or give `epochs`.
        epochs: Its length in passes over as many samples as there are training series, rounded to whole steps.
        head_lr: Peak learning rate of the head.
        encoder_lr: Peak learning rate of the deepest encoder layer.
        layers: How many encoder layers train, counted from the deepest: 0 freezes the encoder.
        layer_decay: Factor on the rate from one encoder layer to the next shallower one.
        warmup: Over how long the rates rise linearly from zero at the stage's start, in the unit of its length.
        schedule: How the rates go on from their peak: they stay (``constant``), fall by a half cosine (``cosine``), or
            by nnU-Net's power of 0.9 (``poly``).
        final: Share of the peak to which they fall. Empty: 0, or 1 where no `schedule` is named.
        dropout: Of the heads while the stage lasts; empty: what each has by itself.
        weight_decay: While the stage lasts, on matrices and kernels; empty: that of `train`.
    """

    name: str
    steps: int | None = None
    epochs: float | None = None
    head_lr: float
    encoder_lr: float = 0.0
    layers: int | Literal["all"] = 0
    layer_decay: float = 1.0
    warmup: int | float = 0
    schedule: Schedule | None = None
    final: float | None = None
    dropout: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        # One spelling, for runs that are compared with what they began with.
        final = float(self.schedule in (None, "constant")) if self.final is None else self.final
        object.__setattr__(self, "final", final)
        object.__setattr__(self, "schedule", self.schedule or "cosine")
        for fault in self._faults():
            raise WrongUse(f"stage {self.name!r}: {fault}")

    def _faults(self) -> Iterator[str]:
        length, unit = (self.epochs, "epochs") if self.steps is None else (self.steps, "steps")
        if length is None or (self.steps is not None and self.epochs is not None):
            yield "its length is needed, in steps or in epochs"
        elif self.steps is not None and self.steps < 1:
            yield f"steps must be at least 1, not {self.steps}"
        elif not 0 < length <= LARGEST_STEPS:
            yield f"{unit} must be more than 0, and no more than {LARGEST_STEPS:g}, not {length}"
        elif not 0 <= self.warmup <= length:
            yield f"warmup must lie between 0 and its {length} {unit}"
        elif self.steps is not None and self.warmup != int(self.warmup):
            yield f"warmup {self.warmup}: must be whole steps"
        if self.layers != "all" and self.layers < 0:
            yield f"layers must be 'all' or a count of encoder layers, not {self.layers}"
        if (self.layers == 0) != (self.encoder_lr == 0):
            yield "give encoder_lr and layers together, or neither (frozen encoder)"
        for name in ("head_lr", "encoder_lr", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= LARGEST_RATE:
                yield f"{name} {value} must be 0 or more, and no more than {LARGEST_RATE:g}"
        if not 0 <= _given(self.final) <= 1 or not 0 < self.layer_decay <= 1:
            yield "final in [0, 1] and layer_decay in (0, 1] are needed"
        if self.schedule == "constant" and self.final != 1:
            yield f"final {self.final}: a constant schedule has none; leave it out, or name another schedule"
        if self.dropout is not None and not 0 <= self.dropout < 1:
            yield f"dropout {self.dropout}: must lie in [0, 1)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What trains at one step.

    Attributes:
        stage: Index of the stage.
        name: Its name.
        head: Learning rate of the head.
        encoder: Learning rate of each encoder layer, shallowest first; None where the layer is frozen.
        dropout: Of the heads; None: what each has by itself.
        weight_decay: Of matrices and kernels; None leaves it as it is.
    """

    stage: int
    name: str
    head: float
    encoder: tuple[float | None, ...]
    dropout: float | None = None
    weight_decay: float | None = None


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

    @property
    def dropouts(self) -> Sequence[tuple[nn.Module, str, float]]:
        """The heads' modules that drop features, the attribute that says which share, and its value in the recipe."""
        ...

    def train(self, mode: bool = True) -> object:
        """Set training mode everywhere, as `nn.Module.train` does."""
        ...


def in_steps(
    stages: Sequence[StageConfig], *, epoch: int, weight_decay: float | None = None
) -> tuple[StageConfig, ...]:
    """The same stages with everything that they leave to the run filled in, and their lengths in steps.

    Args:
        stages: As the recipe has them.
        epoch: Steps of an epoch, as `steps_of_epoch` counts them.
        weight_decay: Of stages that give none.

    Example:
        >>> (stage,) = in_steps([StageConfig(name="all", epochs=2.5, warmup=0.5, head_lr=1e-3)], epoch=10)
        >>> stage.steps, stage.epochs, stage.warmup
        (25, None, 5)
    """

    def filled(stage: StageConfig) -> StageConfig:
        steps, warmup = stage.steps, int(stage.warmup)
        if stage.epochs is not None:
            steps = max(1, round(stage.epochs * epoch))
            warmup = min(round(stage.warmup * epoch), steps)
        return replace(
            stage,
            steps=steps,
            epochs=None,
            warmup=warmup,
            weight_decay=weight_decay if stage.weight_decay is None else stage.weight_decay,
        )

    return tuple(filled(stage) for stage in stages)


def steps_of_epoch(series: int, samples_per_step: int) -> int:
    """Steps that draw at least as many samples as there are training series.

    Example:
        >>> steps_of_epoch(3478, 8)
        435
    """
    return -(-series // samples_per_step)


def total_steps(stages: Sequence[StageConfig]) -> int:
    """Optimizer steps of the whole run.

    Raises:
        ValueError: A stage's length is still in epochs.
    """
    return sum(_length(stage) for stage in stages)


def rates_at(step: int, stages: Sequence[StageConfig], depth: int) -> Rates:
    """What trains at optimizer step `step`, counted from 0.

    Args:
        step: The global step; from the run's end on, the last step's rates hold.
        stages: The run's stages, in order, with lengths in steps.
        depth: How many layers the encoder has.

    Returns:
        The stage and its rates at this step.

    Raises:
        ValueError: If `step` is negative, there are no stages, or one's length is still in epochs.

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
    return Rates(
        stage=index,
        name=stage.name,
        head=stage.head_lr * share,
        encoder=encoder,
        dropout=stage.dropout,
        weight_decay=stage.weight_decay,
    )


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
            (weight_decay, [p for p in parameters if _decays(p)]),
            (0.0, [p for p in parameters if not _decays(p)]),
        ):
            if chosen:
                groups.append({"layer": layer, "params": chosen, "lr": 0.0, "weight_decay": decay})
    return groups


def apply_rates(rates: Rates, model: Staged, optimizer: Optimizer) -> None:
    """Freeze, unfreeze and set learning rates, dropout and weight decay as `rates` say; twice changes nothing.

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
        if rates.weight_decay is not None and _decays(group["params"][0]):
            group["weight_decay"] = rates.weight_decay
    for module, name, own in model.dropouts:
        setattr(module, name, own if rates.dropout is None else rates.dropout)


def _own_parameters(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters(recurse=False)]


def _decays(parameter: nn.Parameter) -> bool:
    """Whether weight decay is for it: not for the vectors and scalars of norms, biases and scales."""
    return parameter.ndim > 1


def _given(value: float | None) -> float:
    assert value is not None, "StageConfig fills it in"
    return value


def _length(stage: StageConfig) -> int:
    if stage.steps is None:
        raise ValueError(f"stage {stage.name!r} is {stage.epochs} epochs long: in_steps says how many steps those are")
    return stage.steps


def _locate(step: int, stages: Sequence[StageConfig]) -> tuple[int, int]:
    """Index of the stage that `step` falls into, and the step within it."""
    for index, stage in enumerate(stages):
        if step < _length(stage):
            return index, step
        step -= _length(stage)
    raise AssertionError("the caller keeps the step inside the run")


def _shape(within: int, stage: StageConfig) -> float:
    """Share of the peak rate at step `within` of the stage, in [0, 1]."""
    if within < stage.warmup:
        return (within + 1) / stage.warmup
    final, left = _given(stage.final), _length(stage) - int(stage.warmup)
    if stage.schedule == "poly":
        # As nnU-Net's, which would reach the end one step after the last.
        return final + (1 - final) * (1 - (within - stage.warmup) / left) ** POLY_POWER
    progress = (within - stage.warmup) / max(1, left - 1)
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
