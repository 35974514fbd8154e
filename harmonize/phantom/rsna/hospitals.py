"""The hospitals of the phantom of RSNA 2025: how each of them scans, which says nothing about who is ill.

A hospital has a protocol a modality: the distance of its slices, how they lie, how sharp and how noisy its pictures
are, how uneven its coils, how early it scans after the contrast agent. docs/phantom-sources.md has what clinical
protocols have; no real hospital is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from harmonize.phantom.contrast import Contrast
from harmonize.phantom.vessels import Flow

Range = tuple[float, float]

BLOOD_HU = 45.0
"""Blood before the contrast agent comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How one hospital scans for one modality.

    Attributes:
        step_mm: From slice to slice.
        axes: Where the voxel axes point, each as often: ``LPS`` axial, ``PIL`` sagittal, ``LIP`` coronal slices.
        tilt_deg: Slices are turned about R by as much at most, either way; by a third of it about A and S.
        noise: Factor on the noise of the modality.
        grain: How far noise hangs together within a slice: standard deviation in pixels of what filters it.
        blur_mm: Standard deviation of the point spread within a slice, beyond that of the pixel.
        bias: Factor on the unevenness of the coils.
        arteries: Factor on what the contrast agent, or inflow, adds to arteries and sacs.
        veins: The same of veins: near or above that of arteries where the scan is late.
    """

    step_mm: Range
    axes: tuple[str, ...] = ("LPS",)
    tilt_deg: float = 10.0
    noise: float = 1.0
    grain: float = 0.0
    blur_mm: float = 0.0
    bias: float = 1.0
    arteries: Range = (0.9, 1.1)
    veins: Range = (0.9, 1.1)

    def look(self, contrast: Contrast, rng: np.random.Generator) -> Contrast:
        """A modality as it looks in this protocol on one day.

        Args:
            contrast: The modality, as `harmonize.phantom.contrast` has it.
            rng: Where the chance comes from.
        """
        day = contrast.varied(rng)
        arteries, veins = float(rng.uniform(*self.arteries)), float(rng.uniform(*self.veins))
        factors = {Flow.ARTERY: arteries, Flow.SAC: arteries, Flow.VEIN: veins}
        rest = BLOOD_HU if contrast.family == "CT" else 0.0
        vessel = {flow: rest + (value - rest) * factors.get(flow, 1.0) for flow, value in day.vessel.items()}
        return replace(
            day,
            vessel=MappingProxyType(vessel),
            noise=day.noise * self.noise,
            bias=day.bias * self.bias,
            blur_mm=self.blur_mm,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hospital:
    """One place with scanners of its own: its name, and a protocol for each modality by the competition's names."""

    name: str
    protocols: Mapping[str, Protocol]


def _hospital(name: str, cta: Protocol, mra: Protocol, t2: Protocol, t1post: Protocol) -> Hospital:
    protocols = {"CTA": cta, "MRA": mra, "MRI T2": t2, "MRI T1post": t1post}
    return Hospital(name=name, protocols=MappingProxyType(protocols))


HOSPITALS: tuple[Hospital, ...] = (
    # New scanners, thin slices, a kernel of middling sharpness, early timing.
    _hospital(
        "north",
        Protocol(step_mm=(0.6, 0.8), tilt_deg=0, grain=0.7, blur_mm=0.25, veins=(0.5, 0.9)),
        Protocol(step_mm=(0.5, 0.6), noise=0.9, bias=1.2, blur_mm=0.2),
        Protocol(step_mm=(3.0, 3.5), noise=0.9, bias=1.2),
        Protocol(step_mm=(0.8, 1.0), axes=("PIL",), tilt_deg=3, bias=1.2),
    ),
    # Low dose and a smooth kernel; sequences of 1.5 T.
    _hospital(
        "east",
        Protocol(step_mm=(0.6, 1.0), tilt_deg=6, noise=1.4, grain=1.0, blur_mm=0.45, arteries=(0.8, 1.0)),
        Protocol(step_mm=(0.7, 0.9), noise=1.5, bias=0.7, blur_mm=0.3),
        Protocol(step_mm=(4.0, 5.0), noise=1.4, bias=0.7),
        Protocol(step_mm=(1.0, 1.2), axes=("LPS",), noise=1.4, bias=0.7),
    ),
    # A sharp kernel, late timing: veins are nearly as bright as arteries.
    _hospital(
        "south",
        Protocol(step_mm=(0.8, 1.25), tilt_deg=0, noise=1.3, grain=0.5, blur_mm=0.1, veins=(1.3, 1.9)),
        Protocol(step_mm=(0.6, 0.8), noise=1.1, blur_mm=0.25),
        Protocol(step_mm=(3.5, 4.5), axes=("LPS", "LPI"), noise=1.1),
        Protocol(step_mm=(0.9, 1.1), axes=("LIP",), tilt_deg=3, noise=1.1),
    ),
    # Slices either way up, turned along the line of eye and ear.
    _hospital(
        "west",
        Protocol(step_mm=(0.6, 0.9), axes=("LPI", "LPS"), tilt_deg=15, grain=0.8, blur_mm=0.3, arteries=(1.0, 1.2)),
        Protocol(step_mm=(0.5, 0.8), axes=("LPI", "LPS"), tilt_deg=15, noise=1.2, bias=0.9, blur_mm=0.2),
        Protocol(step_mm=(3.0, 4.0), tilt_deg=15, noise=1.2, bias=0.9),
        Protocol(step_mm=(0.8, 1.0), axes=("PIL", "LPS"), tilt_deg=8, noise=1.2, bias=0.9),
    ),
)
"""Those that a tree is drawn from, each as often."""

ODD_HOSPITAL = _hospital(
    "island",
    Protocol(step_mm=(1.5, 2.0), tilt_deg=15, noise=1.8, grain=0.4, arteries=(0.65, 0.85), veins=(1.6, 2.2)),
    Protocol(step_mm=(1.0, 1.4), axes=("LPI",), noise=1.8, bias=1.8, blur_mm=0.4, arteries=(0.7, 0.9)),
    Protocol(step_mm=(5.0, 6.0), axes=("LIP",), noise=1.6, bias=1.8, blur_mm=0.4),
    Protocol(step_mm=(1.2, 1.6), axes=("LIP", "PIL"), noise=1.8, bias=1.8, arteries=(0.7, 0.9), veins=(0.7, 0.9)),
)
"""The one that scans unlike all others (thick slices, noise, faint arteries, late timing): held out of trees, for
what is learned there to be tried on."""

BY_NAME: Mapping[str, Hospital] = MappingProxyType({one.name: one for one in (*HOSPITALS, ODD_HOSPITAL)})
