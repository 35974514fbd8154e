"""What a fine-tuning run is: one frozen dataclass that a YAML recipe fills, checked as a whole before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from finetune.losses import LossConfig
from finetune.models.assemble import HeadConfig
from finetune.samples import DataConfig
from finetune.stages import StageConfig
from finetune.views.box import AugmentConfig
from headspark.config.checks import require
from headspark.encoder import EncoderConfig
from headspark.optim import LARGEST_RATE
from headspark.recipe import RunConfig

DEFAULT_STAGES = (
    StageConfig(name="head", steps=1000, head_lr=1e-3, warmup=100),
    StageConfig(name="deep", steps=4000, head_lr=3e-4, encoder_lr=1e-5, layers=2, warmup=100),
    StageConfig(name="all", steps=20000, head_lr=1e-4, encoder_lr=1e-4, layers="all", warmup=1000, final=0.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(RunConfig):
    """How the run goes; its length is that of its stages.

    Attributes:
        optimizer: ``adamw``, or ``sgd`` with Nesterov's momentum, which nnU-Net fine-tunes with.
        momentum: Of ``sgd``.
        weight_decay: On matrices and kernels, in stages that give none of their own.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.99
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        require(0 < self.momentum < 1, f"train.momentum {self.momentum}: must lie between 0 and 1")
        decay = self.weight_decay
        message = f"train.weight_decay {decay}: must be 0 or more, and no more than {LARGEST_RATE:g}"
        require(0 <= decay <= LARGEST_RATE, message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One fine-tuning run.

    Attributes:
        data: What is cut out of the corpus.
        augment: How it is varied.
        scratch: The encoder of a run from scratch; a pretrained one brings its own shape.
        head: What sits on top of it.
        loss: What it is trained to say.
        stages: Which parameters train when, and at which rate.
        train: How the run goes.
    """

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    scratch: EncoderConfig = field(default_factory=EncoderConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    stages: tuple[StageConfig, ...] = DEFAULT_STAGES
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        named = bool(names) and len(set(names)) == len(names)
        require(named, f"stages {names}: one or more are needed, each with a name of its own")
