"""What a run draws from its corpus, and where it keeps it."""

from __future__ import annotations

import math
import multiprocessing
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

from harmonize.errors import WrongUse
from headspark.channels import DEFAULT_CT_WINDOWS, UNSTATED_MRI_SCALING, CtWindow, MriScaling, as_window
from headspark.config.checks import MOST_THREADS, require

WorkerKind = Literal["thread", "process"]
CacheMode = Literal["auto", "ram", "shared", "disk", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderConfig:
    """Who makes samples, in pretraining and in fine-tuning.

    Attributes:
        workers: How many make samples, beside the training; 0 makes them between the steps.
        worker_kind: ``thread``, which hands a sample over without a copy, or ``process``, which does not wait for
            Python's lock, and takes shared memory and a system that can fork.
        ct_windows: Channels that a CT is cut into; MRI is copied into as many. Each is ``brain``, ``blood``, ``bone``
            or ``vessel``, or any other as ``{name: sinus, width: 400, level: 50}``, in HU.
        mri_scaling: What becomes of MRI beyond its tissues, as flow and metal are: ``soft`` (by the logarithm),
            ``clip`` (at 6) or ``linear``. None: a run that goes on does as it began, a pretrained encoder gets what
            it got, all others ``soft``.
    """

    workers: int = 2
    worker_kind: WorkerKind = "thread"
    ct_windows: tuple[str | dict[str, str | float], ...] = DEFAULT_CT_WINDOWS
    mri_scaling: MriScaling | None = None

    def __post_init__(self) -> None:
        require(
            self.worker_kind == "thread" or "fork" in multiprocessing.get_all_start_methods(),
            "data.worker_kind process: this system cannot fork; take thread",
        )
        require(0 <= self.workers <= MOST_THREADS, f"data.workers {self.workers}: use 0 to {MOST_THREADS}")
        try:
            plain = tuple(as_window(one).plain for one in self.ct_windows)
        except WrongUse as error:
            raise WrongUse(f"data.ct_windows {error}") from error
        object.__setattr__(self, "ct_windows", plain)  # one spelling, for runs that are compared with how they began

    @property
    def windows(self) -> tuple[CtWindow, ...]:
        """Those of `ct_windows`; the default where a recipe leaves them open."""
        return tuple(as_window(one) for one in self.ct_windows or DEFAULT_CT_WINDOWS)

    @property
    def scaling(self) -> MriScaling:
        """`mri_scaling`; what writes none was written before there was a choice."""
        return self.mri_scaling or UNSTATED_MRI_SCALING

    def completed(self, windows: Sequence[CtWindow], scaling: MriScaling) -> Self:
        """The same with these windows and this scaling where it leaves them open."""
        plain = self.ct_windows or tuple(window.plain for window in windows)
        return replace(self, ct_windows=plain, mri_scaling=self.mri_scaling or scaling)

    def as_begun(self) -> Self:
        """The section of a run's own recipe, with what its version did where that says nothing."""
        return replace(self, mri_scaling=self.scaling)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig(LoaderConfig):
    """Where decoded scans are kept, in pretraining and in fine-tuning.

    Attributes:
        cache: Where decoded scans are kept: ``ram`` (this process), ``shared`` (once a node, for all its ranks),
            ``disk`` (memory-mapped), ``none``, or ``auto``: decided by measured memory.
        cache_dir: Folder of the ``disk`` cache, such as ``~/cache`` or ``$SCRATCH/cache``; None: ``headspark-cache-``
            and the user's number in the system's temporary folder, closed to others.
    """

    cache: CacheMode = "auto"
    cache_dir: str | None = None

    @property
    def cache_folder(self) -> Path | None:
        """`cache_dir` with what a shell would put in the place of ``~`` and ``$SCRATCH``.

        Raises:
            WrongUse: The environment lacks what it names.
        """
        if self.cache_dir is None:
            return None
        folder = os.path.expandvars(Path(self.cache_dir).expanduser())
        unset = re.search(r"\$(\w+|\{\w+\})", folder)
        require(unset is None, f"data.cache_dir {self.cache_dir}: {unset and unset[1].strip('{}')} is not set here")
        return Path(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig(CacheConfig):
    """What is drawn from the corpus.

    Attributes:
        patch: Edge of the patches that the network sees, voxels.
        foreground_share: Chance that a patch is drawn within the head and not anywhere in the scan.
        val_share: Share of the subjects that are held out.
        val_seed: Which ones.
        weights: How often a scan is drawn, relative to 1, by ``source``, ``modality`` or ``source/modality``; factors
            of a source and of a modality multiply, ``source/modality`` replaces both, 0 leaves out.
    """

    patch: int = 96
    foreground_share: float = 0.9
    val_share: float = 0.1
    val_seed: int = 0
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        LoaderConfig.__post_init__(self)
        require(bool(self.ct_windows), "data.ct_windows: name at least one window")
        require(self.patch > 0, f"data.patch {self.patch}: must be positive")
        require(self.val_seed >= 0, f"data.val_seed {self.val_seed}: must be 0 or more")
        for name in ("foreground_share", "val_share"):
            require(0 <= getattr(self, name) <= 1, f"data.{name} {getattr(self, name)}: must lie in [0, 1]")
        require(self.val_share < 1, "data.val_share 1: nothing would be left to train on")
        for name, weight in self.weights.items():
            require(0 <= weight < math.inf, f"data.weights {name} {weight}: must be 0 or more, and finite")
