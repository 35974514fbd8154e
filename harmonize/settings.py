"""How a corpus is made: the choices that a user has, checked when they are given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harmonize.errors import WrongUse
from harmonize.files import sha256_of
from harmonize.salt import fingerprint

PERCENTILES = (0.5, 1, 5, 25, 50, 75, 95, 99, 99.5)
"""What `intensity_percentiles` of the manifest holds, over the real values of the foreground; `raw_percentiles` holds
what they were before they were normalised."""

MRI_NORMS = ("nyul", "zscore", "whitestripe", "fcm", "kde", "none")

MIN_SPACING_MM = 0.1
MAX_SPACING_MM = 20.0


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
            raise WrongUse(f"--spacing {self.spacing}: give one number or three, each {limits}")
        if self.mri_norm not in MRI_NORMS:
            raise WrongUse(f"--mri-norm {self.mri_norm}: unknown; use one of {', '.join(MRI_NORMS)}")
        if self.apply_brain and self.brain_model is None:
            raise WrongUse("--apply-brain: needs --brain-model FILE")
        if self.brain_model is not None and not self.brain_model.is_file():
            raise WrongUse(f"--brain-model {self.brain_model}: no such file")
        if self.nyul_sample < 1:
            raise WrongUse(f"--nyul-sample {self.nyul_sample}: must be 1 or more")

    def shared(self) -> dict[str, Any]:
        """The part that every source of one corpus must agree on, for corpus.json."""
        found: dict[str, Any] = {
            "spacing": list(self.spacing),
            "crop_foreground": self.crop_foreground,
            "bake_windows": self.bake_windows,
            "n4": self.n4,
            "salt_fingerprint": fingerprint(self.salt),
        }
        if self.brain_model is not None:
            found |= {"brain_model": sha256_of(self.brain_model), "apply_brain": self.apply_brain}
        return found

    def of_source(self) -> dict[str, Any]:
        """The part that may differ from source to source, for corpus.json."""
        found: dict[str, Any] = {"mri_norm": self.mri_norm}
        if self.mri_norm == "nyul":
            found |= {"nyul_sample": self.nyul_sample, "seed": self.seed}
        return found


def parse_spacing(text: str) -> tuple[float, float, float]:
    """Read ``1.0`` or ``0.5,0.5,1.0`` as mm along R, A and S.

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
        raise WrongUse(f"--spacing {text}: give one number or three, such as 1.0 or 0.5,0.5,1.0")
    return numbers[0], numbers[1], numbers[2]
