"""Training and validation samples of a fine-tuning run; sample n is a pure function of the seed and n."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from finetune.augment import AugmentConfig, Variation, draw_pose, draw_variation, vary_intensity, vary_pictures
from finetune.drawing import Balance, with_masked_share, with_pseudo_labelled
from finetune.regions import RegionStore
from finetune.series import Pose, Region, Sample, told_of
from finetune.sliding import OVERLAP
from finetune.tasks import KNOWN, LABELS, Task
from finetune.views import View
from harmonize.errors import WrongUse
from headspark.channels import DEFAULT_CT_WINDOWS
from headspark.config.checks import require
from headspark.data.batches import Plan, planned_batches
from headspark.data.config import CacheConfig
from headspark.page_locked import copied

MOST_VOXELS = 512**3
"""Of a patch; no head has more at half a millimetre."""

LARGEST_PATCH_MM = 1000.0
"""A longer box is air for the most part: its numbers are a slip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig(CacheConfig):
    """What is cut out of the corpus, and how it is dealt out.

    Attributes:
        ct_windows: As in pretraining. Empty: those of the pretrained encoder, or from scratch brain, blood and bone;
            an encoder that was pretrained with others has its first convolution adapted.
        patch: Size of the box that the network sees, in voxels.
        spacing: Its voxel size in mm; None takes the corpus as it is.
        folds: Into how many folds the patients of the corpus are dealt, once and for all of its runs.
        fold: The fold that is validated on and never trained on.
        fold_seed: Of that dealing.
        positive_share: Share of the training draws that have what the task looks for.
        masked_share: Share of the training draws that have a mask; 0: as many as it happens.
        balance: Whether that share holds in all series together (``presence``), or in those of each modality
            (``modality``), which are then drawn by the square root of their number.
        modalities: Train on and judge by series of these alone: as in the corpus, or ``CT`` and ``MR``; empty: of all.
        limit: At most so many training and so many held-out series, both classes and all modalities among them.
        pseudo_weight: How often a series with pseudo-labels is drawn against an average one with labels.
        mirror: Average validation and prediction over the patch and its mirror image.
        inference: What validation and prediction look at: the ``box`` that training varies, or a ``bag`` of such boxes
            that cover the whole head, of which the highest answer to each label counts.
        overlap: Share of its edge that a box of a bag has in common with the next, at least.
    """

    ct_windows: tuple[str | dict[str, str | float], ...] = ()
    patch: tuple[int, int, int] = (160, 192, 160)
    spacing: float | None = None
    folds: int = 5
    fold: int = 0
    fold_seed: int = 0
    positive_share: float = 0.5
    masked_share: float = 0.0
    balance: Balance = "presence"
    modalities: tuple[str, ...] = ()
    limit: tuple[int, int] | None = None
    pseudo_weight: float = 0.5
    mirror: bool = True
    inference: Literal["box", "bag"] = "box"
    overlap: float = OVERLAP

    def __post_init__(self) -> None:
        CacheConfig.__post_init__(self)
        patch = list(self.patch)
        require(min(patch) >= 8, f"data.patch {patch}: 8 voxels or more are needed each way")
        require(
            math.prod(patch) <= MOST_VOXELS, f"data.patch {patch}: more than {MOST_VOXELS} voxels (512 x 512 x 512)"
        )
        fits = self.spacing is None or 0.1 <= self.spacing <= 10
        require(fits, f"data.spacing {self.spacing}: must lie between 0.1 and 10 mm")
        last = self.folds - 1
        require(0 <= self.fold <= last, f"data.fold {self.fold}: must lie between 0 and data.folds - 1 = {last}")
        require(self.fold_seed >= 0, f"data.fold_seed {self.fold_seed}: must be 0 or more")
        share = self.positive_share
        require(0 <= share <= 1, f"data.positive_share {share}: must lie in [0, 1]")
        masked = self.masked_share
        require(0 <= masked <= 1, f"data.masked_share {masked}: must lie in [0, 1]")
        most = self.limit
        require(most is None or min(most) >= 1, f"data.limit {list(most or ())}: both must be 1 or more")
        weight = self.pseudo_weight
        require(0 < weight <= 1000, f"data.pseudo_weight {weight}: must be more than 0, and no more than 1000")
        require(0 <= self.overlap < 1, f"data.overlap {self.overlap}: must be 0 or more, and less than 1")
        require(
            len(set(self.modalities)) == len(self.modalities), f"data.modalities {list(self.modalities)}: one twice"
        )

    @classmethod
    def upgrade(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The section of a recipe with today's keys: version 0.1.0 kept what `cache_gb` of memory held."""
        return {name: value for name, value in values.items() if name != "cache_gb"}

    def as_begun(self) -> DataConfig:
        """As `LoaderConfig.as_begun`; version 0.1.0 wrote its default windows whatever the encoder's were."""
        unstated = self.mri_scaling is None and self.ct_windows == DEFAULT_CT_WINDOWS
        return replace(self, mri_scaling=self.scaling, ct_windows=() if unstated else self.ct_windows)


def check_patch(config: DataConfig, stride: int, spacing: Sequence[float] | None = None) -> None:
    """Refuse a patch that an encoder cannot take, before anything is read.

    Args:
        config: With the patch.
        stride: The encoder's total stride.
        spacing: Of the corpus, in mm; None leaves the size in mm unchecked where the recipe gives no spacing.

    Raises:
        UserError: With exit code 2.
    """
    patch = list(config.patch)
    if any(voxels % stride for voxels in patch):
        nearest = [max(1, round(voxels / stride)) * stride for voxels in patch]
        raise WrongUse(
            f"data.patch {patch}: each edge must be a multiple of the encoder's total stride {stride}, such as "
            f"{nearest}",
        )
    if all(voxels == stride for voxels in patch):
        raise WrongUse(
            f"data.patch {patch}: must be longer than the encoder's total stride {stride} along an axis, for norms of "
            "its last map",
        )
    edges_mm = spacing if config.spacing is None else (config.spacing,) * 3
    if edges_mm is None:
        return
    longest = max(voxels * mm for voxels, mm in zip(patch, edges_mm, strict=True))
    if longest > LARGEST_PATCH_MM:
        raise WrongUse(
            f"data.patch {patch}: is {longest:.0f} mm long at a spacing of {max(edges_mm):g} mm, and no head is longer "
            f"than {LARGEST_PATCH_MM:.0f} mm; lower data.patch or data.spacing",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A sample before it is made: what is read of the series, and what was drawn.

    Attributes:
        region: What is kept of the series.
        pose: How the input lies in it.
        variation: How its intensities change.
        scan_id: The series, for messages.
        modality: Of the series.
        source: Likewise.
    """

    region: Region
    pose: Pose
    variation: Variation
    scan_id: str
    modality: str
    source: str


class DrawnBatch(NamedTuple):
    """What the loader hands over: little more than int16 voxels, from which the accelerator makes the batch."""

    samples: tuple[Drawn, ...]

    @property
    def scan_ids(self) -> tuple[str, ...]:
        """The series."""
        return tuple(sample.scan_id for sample in self.samples)

    @property
    def device(self) -> torch.device:
        """Where the voxels lie."""
        return self.samples[0].region.stored_XYZ.device

    def to(self, device: torch.device) -> DrawnBatch:
        """The batch with its voxels on a device."""
        return DrawnBatch(tuple(replace(sample, region=sample.region.to(device)) for sample in self.samples))

    def pin_memory(self) -> DrawnBatch:
        """The batch with its voxels in page-locked memory."""
        return DrawnBatch(tuple(replace(sample, region=sample.region.pin_memory()) for sample in self.samples))


def make_targets(drawn: DrawnBatch, view: View, task: Task, *, cells: Mapping[str, int]) -> dict[str, Tensor]:
    """What a network should say of some samples, by the names of `Task.targets`, on the device of their voxels.

    Args:
        drawn: The samples.
        view: What the network sees.
        task: What it should say.
        cells: Edge in voxels of the cells of each dense output that wants a target.
    """
    targets = [_targets(one, view, task, cells) for one in drawn.samples]
    return {name: _stacked([one[name] for one in targets], drawn.device) for name in targets[0]}


def _stacked(targets: Sequence[Tensor], device: torch.device) -> Tensor:
    """Targets in one batch on a device; those of masks lie there already, where there are masks."""
    if all(one.device.type == "cpu" for one in targets):
        return copied(torch.stack(list(targets)), device)
    return torch.stack([one if one.device == device else copied(one, device) for one in targets])


def _targets(one: Drawn, view: View, task: Task, cells: Mapping[str, int]) -> dict[str, Tensor]:
    """Those of one sample; of a part of a series also whether its labels are known."""
    findings = view.findings(one.region, one.pose)
    shape, spacing = view.sample_shape, one.region.input_spacing
    found = task.targets(
        Sample(findings=findings, shape=shape, spacing=spacing, cells=cells, modality=one.modality, source=one.source)
    )
    if findings.labels_known is not None:
        name = f"{LABELS}{KNOWN}"
        found[name] = found.get(name, torch.tensor(True)) & findings.labels_known
    return found


def make_inputs(drawn: DrawnBatch, view: View) -> tuple[Tensor, ...]:
    """Pose, cut and vary samples on the device of their voxels.

    Args:
        drawn: The samples.
        view: What the network sees.

    Returns:
        x_BCDHW of a box or x_BNCHW of a bag of pictures; what is known of them, as `finetune.series.told_of` says it;
        and where a view tells the network about points, these (B, M, 2).
    """
    vary = vary_pictures if view.pictures else vary_intensity
    x = torch.stack([vary(view.sample(one.region, one.pose), one.variation) for one in drawn.samples])
    known = told_of([one.region for one in drawn.samples], x.device)
    told = [where for one in drawn.samples if (where := view.where(one.region, one.pose)) is not None]
    return (x, known, copied(torch.stack(told), x.device)) if told else (x, known)


class TrainingSamples(Dataset[Drawn]):
    """Endless samples: which series, in which pose, with which noise follows from the sample's number.

    Args:
        store: The training series.
        task: What is asked about them.
        config: Patch and balance.
        augment: How far samples are varied.
        seed: Of all that is drawn.
        legacy_noise: Draw the noise as version 0.1.0 did: for runs that it began.
    """

    def __init__(
        self,
        store: RegionStore,
        task: Task,
        config: DataConfig,
        augment: AugmentConfig,
        *,
        seed: int,
        legacy_noise: bool = False,
    ) -> None:
        self._store, self._config, self._seed, self._legacy_noise = store, config, seed, legacy_noise
        # What a task calls left and right cannot be told from the voxels of a mirror image.
        self._augment = augment if task.mirror is not None else replace(augment, mirror=0.0)
        labelled = [case for case in store.cases if not case.pseudo]
        weights_N = task.draw_weights(labelled, positive_share=config.positive_share, balance=config.balance)
        more = len(store.cases) - len(labelled)
        weights_N = with_pseudo_labelled(weights_N, more, weight=config.pseudo_weight)
        masked_N = np.array([case.mask is not None for case in store.cases])
        self._edges_N = np.cumsum(with_masked_share(weights_N, masked_N, config.masked_share))

    def __getitem__(self, number: int) -> Drawn:
        """Sample `number`."""
        generator = np.random.default_rng([self._seed, number])
        more = np.random.default_rng([self._seed, number, 1])
        drawn = int(np.searchsorted(self._edges_N, generator.random() * self._edges_N[-1], side="right"))
        case = self._store.cases[drawn]
        region = self._store.view.draw(self._store[drawn], np.random.default_rng([self._seed, number, 2]), number)
        extent_mm = [voxels * mm for voxels, mm in zip(self._config.patch, region.input_spacing, strict=True)]
        pose = draw_pose(self._augment, generator, extent_mm=extent_mm, more=more)
        variation = draw_variation(self._augment, generator, more, legacy_noise=self._legacy_noise)
        return Drawn(
            region=region,
            pose=pose,
            variation=variation,
            scan_id=case.scan_id,
            modality=case.modality,
            source=case.source,
        )


def training_batches(
    samples: TrainingSamples, plan: Plan, config: DataConfig, *, first_step: int
) -> Generator[DrawnBatch, None, None]:
    """This rank's batches from a step on: a resumed run sees what it would have seen.

    Args:
        samples: Where they come from.
        plan: Which samples each step uses, on each rank.
        config: Says who makes them.
        first_step: Counted from the run's beginning.

    Raises:
        UserError: A series cannot be read, or a worker process died.
    """
    return planned_batches(
        samples,
        plan,
        join,
        first_step=first_step,
        workers=config.workers,
        kind=config.worker_kind,
        pin=torch.cuda.is_available(),
    )


def join(samples: Sequence[Drawn]) -> DrawnBatch:
    """A batch of some samples."""
    return DrawnBatch(tuple(samples))
