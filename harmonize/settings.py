"""How a corpus is made: the choices that a user has, checked when they are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from harmonize.errors import WrongUse
from harmonize.files import sha256_of
from harmonize.salt import fingerprint

PERCENTILES = (0.5, 1, 5, 25, 50, 75, 95, 99, 99.5)
"""What `intensity_percentiles` of the manifest holds, over the real values of the foreground; `raw_percentiles` holds
what they were before they were normalised."""

MRI_NORMS = ("nyul", "zscore", "whitestripe", "fcm", "kde", "none")

CIRCLE_MM = 112.0
"""Edge of the box around the circle of Willis: it loses 0.2 % of a phantom's aneurysms, one of 64 mm 17 %."""
MIN_CIRCLE_MM, MAX_CIRCLE_MM = 16.0, 400.0

MIN_SPACING_MM = 0.1
MAX_SPACING_MM = 20.0


class StoredRegion(StrEnum):
    """What of a scan is stored: all, the foreground with a margin, or a box around the circle of Willis."""

    ALL = "all"
    HEAD = "head"
    CIRCLE = "circle"

    @classmethod
    def of(cls, *, circle: bool, cropped: bool) -> StoredRegion:
        """That of settings with a box around the circle of Willis, or which crop the foreground."""
        return cls.CIRCLE if circle else cls.HEAD if cropped else cls.ALL


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides the bytes of a harmonized scan.

    Attributes:
        spacing: Voxel size of the target grid along R, A and S, in mm.
        mri_norm: One of `MRI_NORMS`; CT is never normalised.
        nyul_folder: Folder of standard histograms ``<modality>.npy``; needed by ``nyul`` alone.
        nyul_sample: Scans per modality that a standard histogram is fitted on.
        seed: Seed of that sample.
        crop_foreground: Cut the air around the foreground away, keeping a margin.
        circle_mm: Edges along R, A and S of the box around the circle of Willis that alone is stored; None stores all.
        bake_windows: Store the three CT windows instead of HU.
        n4: Correct the bias field of MRI (SimpleITK's N4) before it is normalised.
        brain_model: SynthStrip's weights; the brain's mask is stored beside the scan.
        apply_brain: Keep the brain's voxels alone.
        salt: Secret mixed into the hashes of ids that are not public.

    Raises:
        UserError: A value that cannot be used (exit code 2).
    """

    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    mri_norm: str = "zscore"
    nyul_folder: Path | None = None
    nyul_sample: int = 500
    seed: int = 0
    crop_foreground: bool = False
    circle_mm: tuple[float, float, float] | None = None
    bake_windows: bool = False
    n4: bool = False
    brain_model: Path | None = None
    apply_brain: bool = False
    salt: str = ""

    def __post_init__(self) -> None:
        if len(self.spacing) != 3 or not all(
            math.isfinite(mm) and MIN_SPACING_MM <= mm <= MAX_SPACING_MM for mm in self.spacing
        ):
            limits = f"{MIN_SPACING_MM:g} to {MAX_SPACING_MM:g} mm"
            said = self.spacing if len(set(self.spacing)) > 1 else self.spacing[:1]
            raise WrongUse(f"--spacing {','.join(f'{mm:g}' for mm in said)}: give one number or three, each {limits}")
        if self.mri_norm not in MRI_NORMS:
            raise WrongUse(f"--mri-norm {self.mri_norm}: unknown; use one of {', '.join(MRI_NORMS)}")
        if self.apply_brain and self.brain_model is None:
            raise WrongUse("--apply-brain: needs --brain-model FILE")
        if self.brain_model is not None and not self.brain_model.is_file():
            raise WrongUse(f"--brain-model {self.brain_model}: no such file")
        if self.circle_mm is not None:
            self._check_circle(self.circle_mm)
        if self.nyul_sample < 1:
            raise WrongUse(f"--nyul-sample {self.nyul_sample}: must be 1 or more")

    @property
    def region(self) -> StoredRegion:
        """What of a scan is stored."""
        return StoredRegion.of(circle=self.circle_mm is not None, cropped=self.crop_foreground)

    def _check_circle(self, edges_mm: tuple[float, float, float]) -> None:
        if len(edges_mm) != 3 or not all(MIN_CIRCLE_MM <= mm <= MAX_CIRCLE_MM for mm in edges_mm):
            limits = f"{MIN_CIRCLE_MM:g} to {MAX_CIRCLE_MM:g} mm"
            raise WrongUse(f"--region-mm {edges_mm}: give one number or three, each {limits}")
        if self.crop_foreground:
            raise WrongUse("--region circle: cuts closer than --crop-foreground; leave that out")
        if self.brain_model is not None:
            raise WrongUse("--region circle: SynthStrip wants to see a whole head; leave out --brain-model")

    def shared(self) -> dict[str, Any]:
        """The part that every source of one corpus must agree on, for corpus.json."""
        found: dict[str, Any] = {
            "spacing": list(self.spacing),
            "crop_foreground": self.crop_foreground,
            "bake_windows": self.bake_windows,
            "n4": self.n4,
            "salt_fingerprint": fingerprint(self.salt),
        }
        if self.circle_mm is not None:
            found["circle_mm"] = list(self.circle_mm)
        if self.brain_model is not None:
            found |= {"brain_model": sha256_of(self.brain_model), "apply_brain": self.apply_brain}
        return found

    def of_source(self) -> dict[str, Any]:
        """The part that may differ from source to source, for corpus.json."""
        found: dict[str, Any] = {"mri_norm": self.mri_norm}
        if self.mri_norm == "nyul":
            found |= {"nyul_sample": self.nyul_sample, "seed": self.seed}
        return found


def region_facts(region: StoredRegion, circle_mm: Sequence[float] | None) -> dict[str, Any]:
    """What of a scan is stored, for JSON beside whatever was made of it.

    Example:
        >>> region_facts(StoredRegion.CIRCLE, (112.0, 112.0, 96.0))
        {'region': 'circle', 'region_mm': [112.0, 112.0, 96.0]}
        >>> region_facts(StoredRegion.ALL, None)
        {'region': 'all'}
    """
    return {"region": str(region)} | ({} if circle_mm is None else {"region_mm": list(circle_mm)})


def parse_spacing(text: str, option: str = "--spacing") -> tuple[float, float, float]:
    """Read ``1.0`` or ``0.5,0.5,1.0`` as mm along R, A and S, given by an option.

    Example:
        >>> parse_spacing("1")
        (1.0, 1.0, 1.0)
        >>> parse_spacing("0.5,0.5,1.0")
        (0.5, 0.5, 1.0)

    Raises:
        UserError: Not one or three numbers.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise WrongUse(f"{option} {text}: give one number or three, such as 1.0 or 0.5,0.5,1.0")
    return numbers[0], numbers[1], numbers[2]
