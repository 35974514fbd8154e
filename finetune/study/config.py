"""What a transfer study is: its heads, its arms and its seeds, in one frozen dataclass that a YAML recipe fills."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from finetune.stages import StageConfig
from headspark.config.checks import require

PROBE = "probe of"
"""Begins the names of the arms that fit a linear probe to a frozen encoder."""

PRETRAINED, RANDOM = "the pretrained encoder", "a random encoder"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The phantoms, and how they become corpora.

    Attributes:
        phantom: Options of ``harmonize phantom --source rsna`` for every tree, besides ``--out``, ``--scans``,
            ``--size`` and ``--seed``.
        outside: More of them, for the tree out of distribution.
        counterfactuals: More of them, for the tree of pairs with and without a sac; empty: there is none.
        harmonize: Options of ``harmonize rsna``, besides ``--out``.
        size: Voxels along the longest side of a raw scan.
        seed: Of the trees: each has another number, counted from this one.
        unlabelled: Heads to pretrain on, besides the labelled ones of all seeds, whose labels are not looked at.
        inside: Held-out series like those that are trained on.
        outside_series: Held-out series out of distribution.
        pairs: Counterfactual pairs.
        validation: Series that each fine-tuning holds out for its own curves; nothing is chosen by them.
        keep_raw: Whether raw trees stay when their corpora are written.
    """

    phantom: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    counterfactuals: tuple[str, ...] = ()
    harmonize: tuple[str, ...] = ()
    size: int = 96
    seed: int = 100
    unlabelled: int = 0
    inside: int = 300
    outside_series: int = 100
    pairs: int = 60
    validation: int = 8
    keep_raw: bool = False

    def __post_init__(self) -> None:
        for name in ("size", "inside", "outside_series", "pairs", "validation"):
            require(getattr(self, name) >= 1, f"data.{name} {getattr(self, name)}: must be 1 or more")
        for name in ("seed", "unlabelled"):
            require(getattr(self, name) >= 0, f"data.{name} {getattr(self, name)}: must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A recipe of a run, and what is changed of it.

    Attributes:
        recipe: Its file, or the name of one that comes along.
        options: As on the command line: ``[--train.precision, bf16]``.
    """

    recipe: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig(RunConfig):
    """Of the pretraining."""

    recipe: str = "transfer_pretrain"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Of all fine-tunings; their stages, seed and number of series are the study's."""

    recipe: str = "transfer_finetune"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmConfig:
    """One way to fine-tune.

    Attributes:
        name: In tables.
        pretrained: Whether it begins with the pretrained encoder, or with one of the same shape as it was drawn.
        stages: Of the fine-tuning, instead of its recipe's.
    """

    name: str
    pretrained: bool = True
    stages: tuple[StageConfig, ...]

    def __post_init__(self) -> None:
        require(self.name.isidentifier(), f"arms: name {self.name!r}: use letters, digits and _")
        names = [stage.name for stage in self.stages]
        require(bool(names) and len(set(names)) == len(names), f"arms: {self.name}: name each of one or more stages")
        counted = all(stage.steps is not None for stage in self.stages)
        require(counted, f"arms: {self.name}: give the length of its stages in steps, so that arms can be compared")

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps or 0 for stage in self.stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerConfig:
    """What is assumed beforehand to say which difference the study can see (`finetune.study.power`).

    Attributes:
        auc: Area under the ROC curve of both arms, in both measures.
        same_seed: Correlation of the areas of two arms with one seed, over other held-out series.
        same_arm: Of one arm with two seeds.
        neither: Of two arms with two seeds.
        seed_sd: Standard deviation of an arm's measure over seeds, without what all arms of a seed share.
        power: Chance with which a difference shall be seen.
    """

    auc: float = 0.75
    same_seed: float = 0.5
    same_arm: float = 0.5
    neither: float = 0.4
    seed_sd: float = 0.02
    power: float = 0.8

    def __post_init__(self) -> None:
        require(0.5 <= self.auc < 1, f"power.auc {self.auc}: must be 0.5 or more, and less than 1")
        for name in ("same_seed", "same_arm", "neither"):
            value = getattr(self, name)
            require(0 <= value < 1, f"power.{name} {value}: must be 0 or more, and less than 1")
        ordered = self.neither <= min(self.same_seed, self.same_arm)
        require(ordered, f"power.neither {self.neither}: must not be more than power.same_seed and power.same_arm")
        require(self.seed_sd >= 0, f"power.seed_sd {self.seed_sd}: must be 0 or more")
        require(0.5 <= self.power < 1, f"power.power {self.power}: must be 0.5 or more, and less than 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One fine-tuning, or one probe.

    Attributes:
        labelled: Series whose labels it learns from.
        arm: Its name.
        seed: Of the labelled series, of their order and of the weights that begin at random.
    """

    labelled: int
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.labelled:04d}_{self.arm.replace(' ', '_')}_{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DesignConfig:
    """What is varied.

    Attributes:
        labels: Numbers of labelled series.
        seeds: Each has labelled series of its own, the same for all arms; a larger number holds the smaller one.
        probes: Whether linear probes of the frozen encoders are fitted too.
        draws: Of the bootstrap over patients.
    """

    labels: tuple[int, ...] = (32, 128)
    seeds: tuple[int, ...] = (0, 1, 2)
    probes: bool = True
    draws: int = 1000

    def __post_init__(self) -> None:
        for name in ("labels", "seeds"):
            values = list(getattr(self, name))
            once = bool(values) and len(set(values)) == len(values)
            require(once, f"design.{name} {values}: one or more are needed, each once")
        require(min(self.labels) >= 2, f"design.labels {list(self.labels)}: 2 or more series, one of them ill")
        require(min(self.seeds) >= 0, f"design.seeds {list(self.seeds)}: must be 0 or more")
        require(self.draws >= 1, f"design.draws {self.draws}: must be 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyConfig:
    """One transfer study.

    Attributes:
        design: What is varied.
        data: The heads.
        pretraining: Of the encoder, once for all arms.
        finetuning: What all fine-tunings share.
        arms: The first one begins at random, and is what the others are compared with.
        power: What is assumed beforehand.
    """

    design: DesignConfig = field(default_factory=DesignConfig)
    data: DataConfig = field(default_factory=DataConfig)
    pretraining: PretrainConfig = field(default_factory=PretrainConfig)
    finetuning: FinetuneConfig = field(default_factory=FinetuneConfig)
    arms: tuple[ArmConfig, ...] = ()
    power: PowerConfig = field(default_factory=PowerConfig)

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        several = len(names) >= 2 and len(set(names)) == len(names)
        require(several, f"arms {names}: two or more are needed, each name once")
        first = self.arms[0]
        others = "the first one begins at random, for the others are compared with it"
        require(not first.pretrained, f"arms: {first.name}: pretrained must be false: {others}")
        lengths = {arm.name: arm.steps for arm in self.arms}
        alike = len(set(lengths.values())) == 1
        require(alike, f"arms: their stages have {lengths} steps in all; give all arms the same number")

    def arm(self, name: str) -> ArmConfig:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def fine_tunings(self) -> Iterator[Cell]:
        """All of them, seed by seed, so that a study that is stopped has whole comparisons."""
        for seed in self.design.seeds:
            for labelled in self.design.labels:
                for arm in self.arms:
                    yield Cell(labelled=labelled, arm=arm.name, seed=seed)

    def probings(self) -> Iterator[Cell]:
        """The linear probes of the frozen encoders."""
        for seed in self.design.seeds if self.design.probes else ():
            for labelled in self.design.labels:
                for encoder in (RANDOM, PRETRAINED):
                    yield Cell(labelled=labelled, arm=f"{PROBE} {encoder}", seed=seed)

    def cells(self) -> list[Cell]:
        """All of them, seed by seed: arms are compared on the seeds that all have, the probes among them."""
        return sorted([*self.fine_tunings(), *self.probings()], key=lambda cell: self.design.seeds.index(cell.seed))
