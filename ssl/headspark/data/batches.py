"""Batches for training: samples stacked in the order of a plan, and turned into network input on the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from harmonize.errors import UserError
from harmonize.pipeline import WINDOWED
from harmonize.voxels.stored import real_value
from headspark.channels import DEFAULT_MRI_SCALING, CtWindow, MriScaling, to_network_input
from headspark.data.augment import AugmentConfig, Variation, matrices_of, numbers_of, turn, vary_intensity, within
from headspark.data.config import DataConfig, WorkerKind
from headspark.data.samples import Sample, TrainSamples
from headspark.masking import expand_cells
from headspark.packed import MaskGeometry
from headspark.vessels import UNKNOWN

_NAME_OF_USER_ERROR = f"{UserError.__module__}.{UserError.__qualname__}"


class _Pinnable(Protocol):
    def pin_memory(self) -> Self: ...


S = TypeVar("S")
B = TypeVar("B", bound=_Pinnable)
PREFETCH = 4
"""Batches that each worker makes ahead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainBatch:
    """Samples stacked: int16 and bool only, so that little travels to the accelerator; and what is visible of them.

    Of ``wanted``, the hidden blocks that hold a voxel which is scored, of the steps to the next vessel and of
    ``twice``, the masks and behind them the second ones, nothing is known where nobody asked for it.
    """

    stored_BXYZ: Tensor
    slope_B: Tensor
    inter_B: Tensor
    scored_B1XYZ: Tensor
    geometry: MaskGeometry
    units: tuple[str, ...]
    variations: tuple[Variation, ...]
    varied_BN: Tensor
    scan_ids: tuple[str, ...]
    wanted: MaskGeometry | None = None
    steps_B1XYZ: Tensor | None = None
    twice: MaskGeometry | None = None

    def __len__(self) -> int:
        return len(self.scan_ids)

    def to(self, device: torch.device) -> PretrainBatch:
        """The same batch on another device; the tables of its mask follow when they are asked for."""
        return replace(self, **{name: one.to(device, non_blocking=True) for name, one in self._tensors().items()})

    def pin_memory(self) -> PretrainBatch:
        """The same batch in page-locked memory: the DataLoader calls this."""
        return replace(self, **{name: one.pin_memory() for name, one in self._tensors().items()})

    def _tensors(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name) for name in _TENSORS}
        return {name: one for name, one in tensors.items() if one is not None}


_TENSORS = ("stored_BXYZ", "slope_B", "inter_B", "scored_B1XYZ", "varied_BN", "steps_B1XYZ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which samples each step uses, on each rank.

    A step always uses the samples ``step * samples_per_step ... (step + 1) * samples_per_step - 1``, however they
    are dealt out to ranks and forward passes.

    Attributes:
        steps: Of the run.
        batch: Samples in a forward pass of a rank.
        accumulate: Forward passes in a step.
        rank: This process.
        ranks: All of them.
    """

    steps: int
    batch: int
    accumulate: int
    rank: int
    ranks: int

    @property
    def samples_per_step(self) -> int:
        """Samples in a step."""
        return self.batch * self.accumulate * self.ranks

    def batches(self, first_step: int) -> Iterator[list[int]]:
        """Sample numbers of this rank's batches, from `first_step` to the end.

        Example:
            >>> list(Plan(steps=3, batch=1, accumulate=2, rank=1, ranks=2).batches(2))
            [[9], [11]]
        """
        for step in range(first_step, self.steps):
            for part in range(self.accumulate):
                start = step * self.samples_per_step + (part * self.ranks + self.rank) * self.batch
                yield list(range(start, start + self.batch))


def stack(samples: Sequence[Sample], *, find_wanted: bool = False) -> PretrainBatch:
    """Make a batch of samples of one size.

    Args:
        samples: The samples.
        find_wanted: Tell which hidden blocks hold a voxel that is scored; of samples that are not turned later.
    """
    stored = [sample.voxels.stored_XYZ for sample in samples]
    if any(array.ndim == 4 for array in stored):  # windows that were baked in, perhaps beside MRI
        stored = [
            np.broadcast_to(array if array.ndim == 4 else array[..., None], (*array.shape[:3], 3)) for array in stored
        ]
    variations = tuple(sample.variation for sample in samples if sample.variation is not None)
    scored_B1XYZ = torch.from_numpy(np.stack([sample.scored_XYZ for sample in samples])).unsqueeze(1)
    mask_Bdhw = torch.stack([sample.mask_dhw for sample in samples])
    grid = tuple(mask_Bdhw.shape[1:])
    wanted = MaskGeometry(expand_cells(scored_B1XYZ[:, 0], grid)[:, 0] & ~mask_Bdhw).ahead() if find_wanted else None
    steps = [sample.steps_XYZ for sample in samples if sample.steps_XYZ is not None]
    seconds = [sample.second_dhw for sample in samples if sample.second_dhw is not None]
    return PretrainBatch(
        stored_BXYZ=torch.from_numpy(np.stack(stored)),
        slope_B=torch.tensor([sample.voxels.slope for sample in samples], dtype=torch.float32),
        inter_B=torch.tensor([sample.voxels.inter for sample in samples], dtype=torch.float32),
        scored_B1XYZ=scored_B1XYZ,
        geometry=MaskGeometry(mask_Bdhw).ahead(),
        wanted=wanted,
        units=tuple(sample.unit for sample in samples),
        variations=variations,
        varied_BN=numbers_of(variations),
        scan_ids=tuple(sample.scan_id for sample in samples),
        steps_B1XYZ=torch.from_numpy(np.stack(steps)).unsqueeze(1) if steps else None,
        twice=MaskGeometry(torch.cat([mask_Bdhw, torch.stack(seconds)])).ahead() if seconds else None,
    )


def network_input(
    batch: PretrainBatch,
    windows: Sequence[str | CtWindow],
    augment: AugmentConfig,
    *,
    patch: int,
    mri_scaling: MriScaling = DEFAULT_MRI_SCALING,
) -> tuple[Tensor, Tensor]:
    """What the network sees, made on the batch's own device: windows first, then the variations.

    Args:
        batch: As it was stacked.
        windows: Of CT, as `to_network_input` takes them.
        augment: How samples are varied.
        patch: Edge of what comes out, in voxels.
        mri_scaling: As `to_network_input` takes it.

    Returns:
        x_BCDHW: float32, array axes X, Y, Z of the corpus.
        scored_B1DHW: bool.
    """
    x_BCDHW = torch.stack([_sample_input(batch, sample, windows, mri_scaling) for sample in range(len(batch))])
    scored_B1DHW = batch.scored_B1XYZ
    if not batch.variations:
        return x_BCDHW, scored_B1DHW
    if augment.turns:
        source_size = x_BCDHW.shape[-1]
        matrix_B33 = matrices_of(batch.varied_BN)
        x_BCDHW = turn(x_BCDHW, matrix_B33, size=patch, mode="bilinear")
        scored_B1DHW = turn(scored_B1DHW.float(), matrix_B33, size=patch, mode="nearest") > 0.5
        scored_B1DHW &= within(matrix_B33, size=patch, source_size=source_size)
    return vary_intensity(x_BCDHW, batch.varied_BN, batch.variations), scored_B1DHW


def vessel_steps(batch: PretrainBatch, augment: AugmentConfig, *, patch: int) -> Tensor | None:
    """How far the voxels of the network's input are from vessels, on the batch's own device.

    Args:
        batch: As it was stacked.
        augment: How samples are varied: what magnifies them makes distances longer.
        patch: Edge of what comes out, in voxels.

    Returns:
        steps_B1DHW: float32, as of `headspark.vessels.distance_map`; None where the batch has none.
    """
    if batch.steps_B1XYZ is None:
        return None
    steps_B1DHW = batch.steps_B1XYZ.float()
    if not batch.variations or not augment.turns:
        return steps_B1DHW
    matrix_B33 = matrices_of(batch.varied_BN)
    known_B1DHW = turn((steps_B1DHW < UNKNOWN).float(), matrix_B33, size=patch, mode="nearest") > 0.5
    first_B3, second_B3, third_B3 = matrix_B33.unbind(1)
    volume_B = (first_B3 * torch.linalg.cross(second_B3, third_B3)).sum(1)  # the determinant, without a wait for it
    magnified_B = volume_B.abs().pow(-1 / 3)
    turned_B1DHW = turn(steps_B1DHW, matrix_B33, size=patch, mode="bilinear") * magnified_B.view(-1, 1, 1, 1, 1)
    return torch.where(known_B1DHW, turned_B1DHW.clamp(max=UNKNOWN - 1), turned_B1DHW.new_full((), UNKNOWN))


def train_batches(
    samples: TrainSamples, plan: Plan, data: DataConfig, *, first_step: int, pin: bool, find_wanted: bool = False
) -> Generator[PretrainBatch, None, None]:
    """All batches of this rank from `first_step` to the end of the run, in order; as `planned_batches` and `stack`."""
    join = partial(stack, find_wanted=find_wanted)
    return planned_batches(
        samples, plan, join, first_step=first_step, workers=data.workers, kind=data.worker_kind, pin=pin
    )


def planned_batches(
    samples: Dataset[S],
    plan: Plan,
    join: Callable[[list[S]], B],
    *,
    first_step: int,
    workers: int,
    kind: WorkerKind,
    pin: bool,
) -> Generator[B, None, None]:
    """All batches of this rank from `first_step` to the end of the run, in order.

    Args:
        samples: By number.
        plan: Which of them each step uses, on each rank.
        join: Makes a batch of some.
        first_step: Counted from the run's beginning.
        workers: How many make batches ahead; 0 makes them when they are asked for.
        kind: ``thread`` or ``process``.
        pin: Whether batches go to page-locked memory.

    Raises:
        UserError: A scan cannot be read, or a worker process died.
    """
    if workers and kind == "thread":
        yield from _threaded_batches(samples, plan, join, first_step=first_step, workers=workers, pin=pin)
        return
    loader = DataLoader(
        samples,
        batch_sampler=_Batches(plan, first_step),
        collate_fn=join,
        num_workers=workers,
        pin_memory=pin,
        generator=torch.Generator(),  # else it draws from the one that the step has seeded for the network
        # A spawned worker would be sent a copy of the cache; a forked one reads its pages.
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=PREFETCH if workers else None,
    )
    try:
        yield from loader
    except UserError as error:  # a worker's comes with its traceback as text, the line itself last
        raise UserError(str(error).strip().splitlines()[-1].removeprefix(f"{_NAME_OF_USER_ERROR}: ")) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a data worker died, perhaps for want of memory: lower data.workers or set data.worker_kind thread"
        ) from error


def _threaded_batches(
    samples: Dataset[S], plan: Plan, join: Callable[[list[S]], B], *, first_step: int, workers: int, pin: bool
) -> Iterator[B]:
    """The same batches from threads of this process.

    MONAI's ThreadDataLoader would seed this process's random numbers and take all but one of its CPU threads away.
    """

    def make(numbers: list[int]) -> B:
        batch = join([samples[number] for number in numbers])
        return batch.pin_memory() if pin else batch

    pool = ThreadPoolExecutor(workers, thread_name_prefix="data")
    ahead: deque[Future[B]] = deque()
    try:
        for numbers in plan.batches(first_step):
            ahead.append(pool.submit(make, numbers))
            if len(ahead) > workers * PREFETCH:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _sample_input(
    batch: PretrainBatch, sample: int, windows: Sequence[str | CtWindow], mri_scaling: MriScaling
) -> Tensor:
    values = real_value(batch.stored_BXYZ[sample], batch.slope_B[sample], batch.inter_B[sample])
    if values.ndim == 4 and batch.units[sample] != WINDOWED:
        values = values[..., 0]
    return to_network_input(values, batch.units[sample], windows, mri_scaling)


class _Batches(Sampler[list[int]]):
    def __init__(self, plan: Plan, first_step: int) -> None:
        self._plan, self._first_step = plan, first_step

    def __iter__(self) -> Iterator[list[int]]:
        return self._plan.batches(self._first_step)

    def __len__(self) -> int:
        return (self._plan.steps - self._first_step) * self._plan.accumulate
