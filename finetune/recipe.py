"""What a fine-tuning run is: one frozen dataclass that a YAML recipe fills, checked as a whole before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from finetune import tasks, views
from finetune.augment import AugmentConfig
from finetune.losses import DEFAULT_LOSSES, TermConfig, check_names, loss_configs
from finetune.models import condition, encoders, heads
from finetune.models.condition import CONDITIONS, ConditionConfig, SpacingCondition
from finetune.models.encoders import ENCODERS, Shape
from finetune.models.heads import AUXILIARY, HEADS, HeadConfig, configs_of
from finetune.models.heads.decoder import DecoderConfig
from finetune.models.heads.segmentation import SegmentationConfig
from finetune.models.pictures import TimmConfig
from finetune.samples import DataConfig
from finetune.series import Case
from finetune.stages import StageConfig
from finetune.views.roi import ResizedConfig
from harmonize.corpus import Corpus
from harmonize.errors import UserError
from headspark.config import one_of, read_recipe, some_of
from headspark.config.checks import require
from headspark.optim import LARGEST_RATE
from headspark.recipe import RunConfig
from headspark.run.folder import RECIPE

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
        activation_checkpointing: Of the encoder: keep less for the backward pass and recompute the rest.
        weight_decay: On matrices and kernels, in stages that give none of their own.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.99
    activation_checkpointing: bool = False
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
        task: What is asked.
        view: What the network sees of a head.
        data: What is cut out of the corpus.
        augment: How it is varied.
        scratch: The encoder of a run from scratch; a pretrained one brings its own shape. Views of pictures want one of
            kind ``timm``.
        head: What sits on top of it and gives the task's answers.
        auxiliary: Further heads, which help to train, or say what `head` or `condition` makes use of.
        condition: What the network is told of the modality.
        losses: What it is trained to say; each term is about one output.
        stages: Which parameters train when, and at which rate.
        train: How the run goes.
    """

    task: tasks.TaskConfig = one_of(tasks.task_configs(), tasks.DEFAULT)
    view: views.ViewConfig = one_of(views.view_configs(), views.DEFAULT)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    scratch: Shape = one_of(ENCODERS, encoders.DEFAULT)
    head: HeadConfig = one_of(configs_of(HEADS), heads.DEFAULT)
    auxiliary: tuple[HeadConfig, ...] = some_of(configs_of(AUXILIARY))
    condition: ConditionConfig = one_of(CONDITIONS, condition.DEFAULT)
    losses: tuple[TermConfig, ...] = some_of(loss_configs(), DEFAULT_LOSSES)
    stages: tuple[StageConfig, ...] = DEFAULT_STAGES
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        named = bool(names) and len(set(names)) == len(names)
        require(named, f"stages {names}: one or more are needed, each with a name of its own")
        check_names(self.losses)
        check_encoder(self.view, self.scratch)
        told = not isinstance(self.condition, SpacingCondition) or isinstance(self.view, ResizedConfig)
        require(told, f"condition.kind spacing: voxels of view.kind {self.view.kind} have one size; use resized")

    @property
    def has_decoder(self) -> bool:
        """Whether one of its heads can begin with the decoder that lies beside a pretrained encoder."""
        return any(isinstance(one, DecoderConfig | SegmentationConfig) for one in (self.head, *self.auxiliary))

    def settled(self, corpus: Corpus, labels: Path | None = None, *, run: Path | None = None) -> Recipe:
        """The same with what its task leaves open as the corpus and the user's table say it.

        Args:
            corpus: With the scans.
            labels: The table; None takes the corpus's.
            run: A folder; of a run that began there the table is read as it was then.

        Raises:
            UserError: They do not say it.
        """
        task, table = self.task, None if run is None else _begun_table(run)
        if table and hasattr(task, "table"):
            task = replace(task, table=table)  # type: ignore[type-var]
        return replace(self, task=tasks.settled(task, corpus, labels))

    def fitted(self, training: Sequence[Case]) -> Recipe:
        """The same with what its task takes from the training series.

        Raises:
            UserError: Nothing can be learned of them.
        """
        return replace(self, task=tasks.fitted(self.task, training))

    @classmethod
    def upgrade(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe with today's keys: in version 0.1.0 `loss` was a section with a weight for each of three terms."""
        if not isinstance(values.get("loss"), Mapping) or "losses" in values:
            return dict(values)
        old = {"labels": 0.15, "presence": 1.0, "territory": 0.5, "focal": 0.0, **values["loss"]}
        labels = {name: old.pop(name) for name in ("positive_weight", "present_weight") if name in old}
        gamma = old.pop("focal")
        kind = {"kind": "focal", "gamma": gamma} if gamma else {"kind": "bce"}
        terms = [
            {**kind, "of": "labels", "weight": old.pop("labels"), **labels},
            {"kind": "heat", "of": "presence", "weight": old.pop("presence")},
            {"kind": "cross_entropy", "of": "territory", "weight": old.pop("territory")},
        ]
        upgraded = {"losses" if name == "loss" else name: value for name, value in values.items()}
        upgraded["losses"] = terms
        if old:  # misspelt: named as it was written
            upgraded["loss"] = old
        return upgraded


def check_encoder(view: views.ViewConfig, shape: Shape) -> None:
    """Refuse an encoder that cannot look at what a view shows.

    Raises:
        WrongUse: Names the key.
    """
    of_pictures = isinstance(shape, TimmConfig)
    want = "pictures; use scratch.kind timm" if view.pictures else f"a volume; use scratch.kind {encoders.DEFAULT}"
    require(view.pictures == of_pictures, f"scratch.kind {shape.kind}: view.kind {view.kind} shows {want}")
    if isinstance(shape, TimmConfig):
        need = f"view.kind {view.kind} shows {view.streams} pictures that belong together; give that"
        require(shape.streams == view.streams, f"scratch.streams {shape.streams}: {need}")


def _begun_table(run: Path) -> str | None:
    """The hash of the table that a run began with; None where it has none, or cannot be read."""
    if not (run / RECIPE).is_file():
        return None
    with suppress(UserError):  # whoever claims the folder says what is wrong with it
        return getattr(read_recipe(Recipe, run / RECIPE).task, "table", None)
    return None
