"""What a fine-tuning run is: one frozen dataclass that a YAML recipe fills, checked as a whole before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.losses import LossConfig
from finetune.models.assemble import HeadConfig
from finetune.samples import DataConfig
from finetune.stages import StageConfig
from finetune.views.box import AugmentConfig
from headspark.config.checks import MOST_THREADS
from headspark.encoder import EncoderConfig
from headspark.optim import LARGEST_RATE, LARGEST_SEED
from headspark.recipe import Precision

DEFAULT_STAGES = (
    StageConfig(name="head", steps=1000, head_lr=1e-3, warmup=100),
    StageConfig(name="deep", steps=4000, head_lr=3e-4, encoder_lr=1e-5, layers=2, warmup=100),
    StageConfig(name="all", steps=20000, head_lr=1e-4, encoder_lr=1e-4, layers="all", warmup=1000, final=0.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How the run goes, and what is written down on the way. Its length is that of its stages.

    Attributes:
        seed: Of the head's weights and the samples.
        batch: Samples in one forward pass of one rank.
        accumulate: Forward passes summed into one step.
        precision: ``fp32``, or ``bf16`` or ``fp16`` where that is precise enough; fp16 needs a GPU.
        weight_decay: AdamW's, on matrices and kernels.
        clip: Largest norm of the gradient; 0 leaves it as it is.
        ema: Decay of a moving average of the weights, which is then validated and kept; 0 for none.
        threads: CPU threads of a rank; None: the cores that this process may use, shared among the node's ranks.
        non_finite_patience: Steps in a row with a non-finite loss or gradient after which the run stops.
        log_every: Steps between two lines of metrics.jsonl, each with their means.
        validate_every: Steps between two validations; 0: only at the end.
        checkpoint_every: Steps between two checkpoints.
        keep: Checkpoints that are kept.
    """

    seed: int = 0
    batch: int = 2
    accumulate: int = 1
    precision: Precision = "fp32"
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.0
    threads: int | None = None
    non_finite_patience: int = 10
    log_every: int = 10
    validate_every: int = 0
    checkpoint_every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "non_finite_patience", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} {getattr(self, name)}: must be 1 or more")
        for name in ("seed", "weight_decay", "clip", "validate_every"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"train.{name} {getattr(self, name)}: must be 0 or more")
        if self.seed > LARGEST_SEED:
            raise ValueError(f"train.seed {self.seed}: must be no more than {LARGEST_SEED} (2**63 - 1)")
        if self.weight_decay > LARGEST_RATE:
            raise ValueError(f"train.weight_decay {self.weight_decay}: must be no more than {LARGEST_RATE:g}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"train.ema {self.ema}: must be 0, or lie between 0 and 1")
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise ValueError(f"train.threads {self.threads}: use 1 to {MOST_THREADS}")


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
        if not names or len(set(names)) != len(names):
            raise ValueError(f"stages {names}: one or more are needed, each with a name of its own")
