"""What a pretraining run is: one frozen dataclass that a YAML recipe fills, checked as a whole before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from headspark.config.checks import MOST_THREADS, require
from headspark.data.augment import AugmentConfig
from headspark.data.cohort import LABELS
from headspark.data.config import DataConfig
from headspark.data.decoders import SCANS, SCANS_WITH_VESSELS, ScanDecoder
from headspark.data.samples import Sampling
from headspark.decoder import DecoderConfig
from headspark.encoder import EncoderConfig
from headspark.hybrid import HybridConfig
from headspark.masking import MaskConfig, ratio_bounds, second_count, visible_count
from headspark.optim import LARGEST_SEED, OptimConfig
from headspark.spark import SparKConfig
from headspark.vessels import VesselConfig

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How a run goes, and what is written down on the way, in pretraining and in fine-tuning.

    Attributes:
        seed: Of the weights and the samples.
        batch: Samples in one forward pass of one rank.
        accumulate: Forward passes summed into one step.
        precision: ``fp32``, or ``bf16`` or ``fp16`` where that is precise enough; fp16 needs a GPU.
        clip: Largest norm of the gradient; 0 leaves it as it is.
        ema: Decay of a moving average of the weights, which is then what is validated and exported; 0 or none: none.
        threads: CPU threads of a rank; None: the cores that this process may use, shared among the node's ranks.
        non_finite_patience: Steps in a row with a non-finite loss or gradient after which the run stops.
        log_every: Steps between two lines of metrics.jsonl, each with their means.
        validate_every: Steps between two validations; 0: only at the end.
        checkpoint_every: Steps between two checkpoints.
        keep: Checkpoints that are kept; the newest good one always is.
    """

    seed: int = 0
    batch: int = 2
    accumulate: int = 1
    precision: Precision = "fp32"
    clip: float = 1.0
    ema: float | None = None
    threads: int | None = None
    non_finite_patience: int = 10
    log_every: int = 10
    validate_every: int = 0
    checkpoint_every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        if self.ema == 0:
            object.__setattr__(self, "ema", None)  # one spelling, for runs that are compared with what they began with
        for name in ("batch", "accumulate", "non_finite_patience", "log_every", "checkpoint_every", "keep"):
            require(getattr(self, name) >= 1, f"train.{name} {getattr(self, name)}: must be 1 or more")
        for name in ("seed", "clip", "validate_every"):
            require(getattr(self, name) >= 0, f"train.{name} {getattr(self, name)}: must be 0 or more")
        require(self.seed <= LARGEST_SEED, f"train.seed {self.seed}: must be no more than {LARGEST_SEED} (2**63 - 1)")
        require(self.ema is None or 0 < self.ema < 1, f"train.ema {self.ema}: must be 0, or lie between 0 and 1")
        threads = self.threads
        require(threads is None or 1 <= threads <= MOST_THREADS, f"train.threads {threads}: use 1 to {MOST_THREADS}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(RunConfig):
    """How long a pretraining run is, and what it writes down on the way.

    Attributes:
        steps: Optimizer steps of the whole run.
        activation_checkpointing: Keep less for the backward pass and recompute the rest.
        val_samples: Patches of a validation, spread over the held-out scans; the same ones, with the same masks, every
            time.
        picture_every: Steps between two reconstruction pictures; 0: only at the end.
        probe_every: Steps between two probes of the frozen features; 0: never.
        probe_labels: Columns of the manifest that the probe tries to tell: ``modality``, ``source``, ``sex``.
        profile: Steps that are profiled after the first few, into RUN/profile; 0: none.
        trackers: Where metrics go besides metrics.jsonl: ``tensorboard``, ``wandb`` or another that accelerate knows.
    """

    steps: int = 1000
    clip: float = 12.0
    activation_checkpointing: bool = False
    validate_every: int = 100
    val_samples: int = 8
    picture_every: int = 100
    probe_every: int = 0
    probe_labels: tuple[str, ...] = ("modality",)
    checkpoint_every: int = 100
    keep: int = 3
    profile: int = 0
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        require(self.steps >= 1, f"train.steps {self.steps}: must be 1 or more")
        for name in ("val_samples", "picture_every", "probe_every", "profile"):
            require(getattr(self, name) >= 0, f"train.{name} {getattr(self, name)}: must be 0 or more")
        for name in self.probe_labels if self.probe_every else ():
            require(name in LABELS, f"train.probe_labels {name[:60]}: use some of {', '.join(LABELS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One pretraining run.

    Attributes:
        data: What is drawn from the corpus.
        augment: How it is varied.
        encoder: The network that is pretrained.
        mask: What it does not see.
        decoder: The network that fills it in.
        spark: How what it fills in is scored.
        vessels: What is hidden and predicted of vessels in particular.
        hybrid: A second objective beside the masked one.
        optim: How the weights move.
        train: How long, and what is written down.
    """

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    spark: SparKConfig = field(default_factory=SparKConfig)
    vessels: VesselConfig = field(default_factory=VesselConfig)
    hybrid: HybridConfig = field(default_factory=HybridConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        patch, block, stride = self.data.patch, self.mask.block, self.encoder.cumulative_strides[-1]
        require(patch % block == 0, f"data.patch {patch}: must be a multiple of mask.block {block}")
        require(patch >= 2 * block, f"data.patch {patch}: one block of mask.block {block} leaves nothing to see")
        require(patch % stride == 0, f"data.patch {patch}: must be a multiple of the encoder's total stride {stride}")
        require(
            patch >= 2 * stride,
            f"data.patch {patch}: must be twice the encoder's total stride {stride} or more, for norms of its last map",
        )
        require(
            block % stride == 0 or stride % block == 0,
            f"mask.block {block}: must divide the encoder's total stride {stride} or be a multiple of it",
        )
        if self.hybrid.weight > 0 and block < 2 * stride:
            cells = (patch // block) ** 3
            visible = visible_count((patch // block,) * 3, ratio_bounds(self.mask.ratio)[1])
            require(
                second_count(cells, visible, self.hybrid.share) >= 2,
                f"hybrid.share {self.hybrid.share}: one block is all that is seen the second time of data.patch "
                f"{patch}, one cell of the encoder's last map, which its norm makes the same whatever it is; the "
                f"nearest that shows two is {math.ceil(150 / visible) / 100:g}, or take a larger data.patch",
            )
        windows, channels = len(self.data.ct_windows), self.encoder.in_channels
        require(windows == channels, f"encoder.in_channels {channels}: data.ct_windows names {windows} channels")
        require(
            self.optim.warmup < self.train.steps,
            f"optim.warmup {self.optim.warmup}: must be less than train.steps {self.train.steps}",
        )

    @property
    def sampling(self) -> Sampling:
        """How samples are drawn, as `headspark.data.samples` takes it."""
        return Sampling(
            data=self.data,
            augment=self.augment,
            mask=self.mask,
            seed=self.train.seed,
            val_samples=self.train.val_samples,
            vessels=self.vessels,
            hybrid=self.hybrid,
        )

    @property
    def decoder_of_scans(self) -> ScanDecoder:
        """How scans are read from the corpus."""
        return SCANS_WITH_VESSELS if self.vessels.wanted else SCANS
