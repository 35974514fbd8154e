"""How bright each tissue is in each modality: Hounsfield units for CT, arbitrary units for MR, Bq/ml for PET.

The values are round textbook figures, close enough that windows, histograms and normalisers meet what they will meet
in real scans; each scan varies them a little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from harmonize.phantom.canvas import Tissue
from harmonize.phantom.vessels import Flow

_ORDER = tuple(Tissue)
_FLOWING = (Flow.ARTERY, Flow.VEIN, Flow.SAC)
_STILL = (Flow.THROMBUS, Flow.CALCIUM, Flow.METAL, Flow.BLOOM, Flow.BLOOD, Flow.OLD_BLOOD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """The look of one modality.

    Attributes:
        family: ``CT``, ``MR`` or ``PT``.
        tissue: Mean value of each `Tissue`, in its order.
        texture: Amplitude of the unevenness of each `Tissue`, as a part of its mean for MR and PT, in HU for CT.
        vessel: Value of each `Flow` that it shows.
        noise: Standard deviation, in the unit of the values.
        bias: Amplitude of the smooth multiplicative field, 0 for CT.
        blur_mm: Standard deviation of the point spread beyond that of the voxel.
    """

    family: str
    tissue: NDArray[np.float32]
    texture: NDArray[np.float32]
    vessel: Mapping[Flow, float]
    noise: float
    bias: float = 0.0
    blur_mm: float = 0.0

    def with_tissue(self, tissue: Tissue, value: float) -> Contrast:
        """The same look with another mean of one tissue."""
        values = self.tissue.copy()
        values[_ORDER.index(tissue)] = value
        return replace(self, tissue=values)

    def with_sacs_as_arteries(self) -> Contrast:
        """The same look with blood as bright in sacs as in arteries."""
        return replace(self, vessel=MappingProxyType({**self.vessel, Flow.SAC: self.vessel[Flow.ARTERY]}))

    def varied(self, rng: np.random.Generator) -> Contrast:
        """The same look on another day: MR changes its gain and shifts its tissues, CT only its noise."""
        noise = self.noise * float(rng.uniform(0.7, 1.5))
        if self.family == "CT":
            enhancement = float(rng.uniform(0.85, 1.2))
            vessel = {
                flow: 45 + (value - 45) * enhancement if flow in _FLOWING else value
                for flow, value in self.vessel.items()
            }
            return replace(self, vessel=MappingProxyType(vessel), noise=noise)
        gain = float(np.exp(rng.uniform(np.log(0.4), np.log(2.5)))) if self.family == "MR" else 1.0
        tissue = self.tissue * rng.normal(1.0, 0.04, size=self.tissue.shape).astype(np.float32) * np.float32(gain)
        vessel = {
            flow: value * gain * (float(rng.normal(1.0, 0.04)) if flow in _FLOWING else 1.0)
            for flow, value in self.vessel.items()
        }
        return replace(self, tissue=tissue, vessel=MappingProxyType(vessel), noise=noise * gain)


def _make(
    family: str,
    values: tuple[float, ...],
    texture: tuple[float, ...],
    vessel: tuple[float, float, float],
    still: tuple[float | None, ...],
    noise: float,
    bias: float = 0.0,
    blur_mm: float = 0.0,
) -> Contrast:
    if not len(values) == len(texture) == len(_ORDER):
        raise ValueError(f"a contrast needs {len(_ORDER)} tissues, got {len(values)} and {len(texture)}")
    filled = dict(zip((*_FLOWING, *_STILL), (*vessel, *still), strict=True))
    return Contrast(
        family=family,
        tissue=np.array(values, dtype=np.float32),
        texture=np.array(texture, dtype=np.float32),
        vessel=MappingProxyType({flow: value for flow, value in filled.items() if value is not None}),
        noise=noise,
        bias=bias,
        blur_mm=blur_mm,
    )


# fmt: off
#              AIR  SKIN  FAT MUSCLE BONE MARROW CSF GREY WHITE EYE MUCOSA LESION DISC COUCH
_CT = (      -1000,   40, -95,   55, 1150,  450,   6,  38,   28,  12,   40,    20,  90, -300)
_CT_TEX = (      0,    8,  12,    7,  110,   90,   1,   3,    2,   1,    8,     3,  10,    0)
_T1 = (          4,  420, 880,  360,   50,  520, 130, 430,  690, 150,  420,   400, 350,    0)
_T1POST = (      4,  450, 860,  400,   50,  500, 135, 460,  690, 150,  850,   640, 350,    0)
_T2 = (          4,  330, 640,  230,   40,  330, 980, 590,  420, 960,  760,   830, 420,    0)
_FLAIR = (       4,  350, 660,  330,   40,  330, 110, 600,  470, 140,  640,   880, 380,    0)
_PD = (          4,  480, 820,  520,   50,  420, 760, 800,  680, 740,  700,   860, 480,    0)
_T2STAR = (      4,  300, 420,  300,   20,  120, 860, 620,  520, 820,  500,   760, 300,    0)
_TOF = (         4,  220, 330,  230,   30,  180,  95, 290,  310,  90,  300,   260, 200,    0)
_MR_TEX = (      0, 0.10, 0.08, 0.10, 0.2, 0.15, .03, .05, 0.04, .02, 0.10,  0.10, .10,    0)
_PET = (        20,  900, 300, 1300,  500,  900, 700, 9000, 3600, 900, 2200, 2500, 700,    0)
_PET_TEX = (     0, 0.20, 0.2, 0.25, 0.2,   0.2, 0.1, 0.20, 0.15, 0.1, 0.4,   0.4, 0.2,    0)

#                THROMBUS CALCIUM METAL BLOOM BLOOD OLD_BLOOD
_CT_STILL = (          55,    800, 3000, None,   70,       35)
_T1_STILL = (         450,     60,    5,    8,  470,      950)
_T2_STILL = (         330,     60,    5,    8,  260,      900)
_FLAIR_STILL = (      420,     60,    5,    8,  620,      900)
_PD_STILL = (         500,     90,    5,    8,  520,      860)
_T2STAR_STILL = (     160,     20,    4,    6,   90,      520)
_TOF_STILL = (        260,     20,    4,    6,  250,      760)
_PET_STILL = (        700,    500,  300, None, 1500,     1200)

CONTRASTS: Mapping[str, Contrast] = MappingProxyType({
    #                                 artery, vein, sac; noise
    "CT": _make("CT", _CT, _CT_TEX, (42.0, 52.0, 42.0), _CT_STILL, 6.0),
    "CTA": _make("CT", _CT, _CT_TEX, (340.0, 170.0, 335.0), _CT_STILL, 11.0),
    "PT": _make("PT", _PET, _PET_TEX, (1800.0, 1800.0, 1800.0), _PET_STILL, 350.0, blur_mm=2.5),
    "T1w": _make("MR", _T1, _MR_TEX, (160.0, 330.0, 220.0), _T1_STILL, 14.0, bias=0.25),
    "T1post": _make("MR", _T1POST, _MR_TEX, (960.0, 1080.0, 1000.0), _T1_STILL, 16.0, bias=0.25),
    "T2w": _make("MR", _T2, _MR_TEX, (35.0, 300.0, 45.0), _T2_STILL, 14.0, bias=0.22),
    "FLAIR": _make("MR", _FLAIR, _MR_TEX, (60.0, 320.0, 80.0), _FLAIR_STILL, 16.0, bias=0.22),
    "PDw": _make("MR", _PD, _MR_TEX, (90.0, 520.0, 120.0), _PD_STILL, 14.0, bias=0.2),
    "T2starw": _make("MR", _T2STAR, _MR_TEX, (420.0, 120.0, 420.0), _T2STAR_STILL, 18.0, bias=0.25),
    "MRA": _make("MR", _TOF, _MR_TEX, (980.0, 180.0, 930.0), _TOF_STILL, 16.0, bias=0.2),
})
"""By the name that the scans carry: CT kinds, PT, and MR contrasts."""
# fmt: on
