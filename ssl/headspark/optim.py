"""Optimizers and learning rates: torch's and timm's, the rate being a pure function of the step."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from harmonize.errors import WrongUse

LARGEST_RATE = 1e30
"""Of learning rates and weight decays: a step with a larger one overflows float32 whatever the gradient is."""

LARGEST_SEED = 2**63 - 1
"""PyTorch takes 64 bits, and runs add the number of their steps."""

POLY_POWER = 0.9
"""Exponent of the ``poly`` schedule (nnU-Net)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """How the weights move.

    Attributes:
        name: Any of timm's: ``adamw``, ``sgd`` (with Nesterov momentum), ``lamb``, ``muon``, ...
        lr: Largest learning rate.
        weight_decay: Not applied to biases and norms.
        momentum: Of ``sgd`` and its kin; others ignore it.
        betas: Of ``adamw`` and its kin; None: the optimizer's own.
        schedule: ``cosine``, ``poly`` (power 0.9) or ``constant``, after the warm-up.
        warmup: Steps over which the rate rises linearly.
        min_lr: The last rate of ``cosine`` and ``poly``.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    momentum: float = 0.99
    betas: tuple[float, float] | None = None
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup: int = 0
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in list_optimizers():
            known = list(map(str, list_optimizers()))
            near = difflib.get_close_matches(self.name.lower(), known, n=1)
            hint = f"none of that name; did you mean {near[0]}?" if near else ", ".join(known)
            raise WrongUse(f"optim.name {self.name[:60]}: timm knows {hint}")
        if self.warmup < 0:
            raise WrongUse(f"optim.warmup {self.warmup}: must be 0 or more")
        for name in ("lr", "weight_decay", "momentum", "min_lr"):
            if not 0 <= getattr(self, name) <= LARGEST_RATE:
                message = f"optim.{name} {getattr(self, name)}: must be 0 or more, and no more than {LARGEST_RATE:g}"
                raise WrongUse(message)
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise WrongUse(f"optim.betas {list(self.betas)}: must lie in [0, 1)")


def make_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimizer over all parameters of `model` that want a gradient.

    PyTorch's own go through each parameter once: a kernel for all on a GPU, a sixth of the time of AdamW on a CPU.

    Args:
        model: Of the run.
        config: Which optimizer.
    """
    given: dict[str, Any] = {} if config.betas is None else {"betas": config.betas}
    try:
        known = signature(get_optimizer_class(config.name, bind_defaults=False)).parameters
        if "fused" in known:
            given["fused"] = True
        if "max_grad_norm" in known:
            given["max_grad_norm"] = None  # Lamb's own clipping, at 1: `train.clip` alone says how far gradients go
        optimizer = create_optimizer_v2(
            model, opt=config.name, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum, **given
        )
    # What a library that is not here, or a GPU that is not, makes timm raise has no common base below Exception.
    except (TypeError, AssertionError, ImportError) as error:
        raise WrongUse(f"optim.name {config.name}: {' '.join(str(error).split()) or 'cannot be used here'}") from error
    if getattr(optimizer, "is_second_order", False):
        raise WrongUse(f"optim.name {config.name}: wants second derivatives, which no step computes; take another")
    return optimizer


def make_schedule(optimizer: Optimizer, config: OptimConfig, *, steps: int) -> Scheduler:
    """The learning rate of every step: ``schedule.step_update(step)`` sets it; nothing else is remembered.

    Args:
        optimizer: Whose groups are set, each scaled by its ``lr_scale`` if it has one.
        config: The curve.
        steps: Length of the run, warm-up included.
    """
    shared: dict[str, Any] = {
        "t_in_epochs": False,
        "warmup_t": config.warmup,
        "warmup_lr_init": config.lr / (config.warmup + 1),
        "warmup_prefix": True,
    }
    length = steps - config.warmup
    if config.schedule == "cosine":
        return CosineLRScheduler(optimizer, t_initial=length, lr_min=config.min_lr, **shared)
    if config.schedule == "poly":
        return PolyLRScheduler(optimizer, t_initial=length, lr_min=config.min_lr, power=POLY_POWER, **shared)
    return StepLRScheduler(optimizer, decay_t=steps, decay_rate=1.0, **shared)
