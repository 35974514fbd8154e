"""What medium and hard heads are drawn with where the two differ: how often, how large, at which angles.

docs/phantom-sources.md sets each number of hard heads beside what was published. Medium heads are no clinic's: larger
sacs, fewer wide places and round figures, and their bytes stay as they are from version to version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from harmonize.phantom.vessels.parts import Difficulty
from harmonize.phantom.vessels.spreads import Even, LogNormal, Spread
from harmonize.phantom.vessels.variants import Circle, EachSide, OneSide, Sides

SMALLEST_MM, LARGE_MM, LARGEST_MM = 2.0, 8.0, 16.0
"""Diameters of sacs; from the second on more of them have clots and calcium."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sacs:
    """What sacs are like.

    Attributes:
        diameter_mm: Of sacs, and of veins and coils that are as large as sacs.
        lobulated: Share that have daughter sacs.
        blebs: How many daughter sacs such a one has: each number as often as it stands here.
        bleb: Width of a daughter sac, of the sac's.
        bleb_at_tip: Whether they grow from the end of a long sac, or from its middle.
        calcified: Share with calcium in the wall, of smaller ones and from `LARGE_MM` on.
        neck: Width of the neck, of the sac's.
        longer: By how much a sac is longer than wide.
        turned: Standard deviation of its long axis along each axis, against the unit vector by which it leaves.
        sunk: Share of the radius of the artery, and of that of the sac, by which its centre lies from the artery's
            axis; None for a sac that is as deep in the wall as its neck is wide.
        tilt_deg: Mean and standard deviation of how far a sac along an artery leans downstream; None for one at right
            angles.
        lumen: Width of what a clot leaves open, of the sac's.
    """

    diameter_mm: LogNormal
    lobulated: float
    blebs: tuple[int, ...]
    bleb: Even
    bleb_at_tip: bool
    calcified: tuple[float, float]
    neck: Spread
    longer: Even
    turned: float
    sunk: float | None
    tilt_deg: tuple[float, float] | None
    lumen: Even


@dataclass(frozen=True, slots=True, kw_only=True)
class Mimics:
    """How common things are that look like a sac and are none.

    Attributes:
        wide_places: How many loops, kinks, bulbs and wide stretches of arteries and veins there are, of those of a hard
            head.
        infundibula: Share of the arteries of each kind that leave the carotid by a funnel.
        infundibulum_mm: Width of its mouth.
        fenestration_mm: How long two channels run side by side.
        cavernous_filled: Of sides: the contrast has reached the sinus that the carotid runs through.
        basal_vein_whole: Of sides: the vein runs from end to end; else only before or only behind its middle.
        calcified_heads: Share that have plaques.
        plaques: In which arteries, as often as the numbers say.
        treated: Share of the heads that have a clip, and of those that have coils.
        haematomas: Share of the heads without and with blood around the arteries that have some within the brain.
        bloom_mm: How far around a clip, and around coils, MR loses its signal.
    """

    wide_places: float
    infundibula: Mapping[str, float]
    infundibulum_mm: Even
    fenestration_mm: Spread
    cavernous_filled: float
    basal_vein_whole: float
    calcified_heads: float
    plaques: Mapping[str, int]
    treated: Mapping[Literal["clip", "coil"], float]
    haematomas: tuple[float, float]
    bloom_mm: Mapping[Literal["clip", "coil"], Even]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clinic:
    """In what heads that are not easy differ from each other.

    Attributes:
        sacs: What sacs are like.
        circle: The variants of the circle of Willis, and calibres.
        mimics: What looks like a sac and is none.
    """

    sacs: Sacs
    circle: Circle
    mimics: Mimics


MEDIUM = Clinic(
    sacs=Sacs(
        diameter_mm=LogNormal(7.0, 0.5, SMALLEST_MM, LARGEST_MM),
        lobulated=0.20,
        blebs=(1, 2, 3),
        bleb=Even(0.35, 0.60),
        bleb_at_tip=False,
        calcified=(0.06, 0.25),
        neck=Even(0.45, 0.80),
        longer=Even(0.0, 0.3),
        turned=0.6,
        sunk=0.85,
        tilt_deg=None,
        lumen=Even(0.45, 0.70),
    ),
    circle=Circle(
        sides={
            "absent a1": OneSide(0.03),
            "thin a1": OneSide(0.10),
            "thin vertebral": OneSide(0.15),
            "thin p1": EachSide(0.04),
            "absent pcom": EachSide(0.10),
            "thin pcom": EachSide(0.10),
            "thin transverse": EachSide(0.30),
        },
        thin={"a1": 0.5, "vertebral": 0.5, "p1": 0.5, "pcom": 0.5, "transverse": 0.5},
        calibres={},
    ),
    mimics=Mimics(
        wide_places=0.3,
        infundibula={"pcom": 0.15, "acha": 0.10},
        infundibulum_mm=Even(2.2, 3.0),
        fenestration_mm=Even(4.0, 9.0),
        cavernous_filled=0.35,
        basal_vein_whole=1.0,
        calcified_heads=0.5,
        plaques={"ica_infra": 1, "ica_supra": 1, "vertebral": 1, "basilar": 1},
        treated={"clip": 0.04, "coil": 0.06},
        haematomas=(0.04, 0.04),
        bloom_mm={"clip": Even(1.0, 2.5), "coil": Even(1.0, 2.5)},
    ),
)

HARD = Clinic(
    sacs=Sacs(
        # UCAS Japan (New England Journal of Medicine 2012; 366: 2474): 47 % of those from 3 mm on are below 5 mm.
        diameter_mm=LogNormal(4.5, 0.5, SMALLEST_MM, LARGEST_MM),
        # Satoh (Scientific Reports 2022; 12: 6075); Salimi Ashkezari (J Neurointerv Surg 2021; 13: 231): 1.26 each.
        lobulated=0.31,
        blebs=(1, 1, 1, 1, 1, 1, 1, 2, 2, 2),
        # 2.1 mm (PMC12329196).
        bleb=Even(0.45, 0.75),
        bleb_at_tip=True,
        calcified=(0.03, 0.25),
        # AneuRisk's 59 unruptured ones: height by neck 1.5 (0.8), axes of the ellipsoid 1.4 in the median.
        neck=Even(0.40, 1.10),
        longer=Even(0.1, 0.7),
        turned=0.3,
        sunk=None,
        # Baharoglu (Stroke 2010; 41: 1423): 106 degrees to the artery, standard deviation 18.5.
        tilt_deg=(15.8, 18.5),
        lumen=Even(0.35, 0.85),
    ),
    circle=Circle(
        sides={
            # Of 8013 by MRA 303 thin on the right and 122 on the left (Chen, Surg Radiol Anat 2014; 36: 353).
            "absent a1": Sides(0.015, 0.015),
            "thin a1": Sides(0.03, 0.07),
            "thin vertebral": Sides(0.075, 0.075),
            # Jones (Clinical Anatomy 2021; 34: 978): poor on one side in 19.5 %, on both in 22.8 %.
            "poor pcom": Sides(0.0975, 0.0975, 0.228),
            # Trandafilović (Folia Morphologica 2024; 83: 589): below 1 mm.
            "thin p1": Sides(0.03, 0.042),
            # Durst (J Neurointerv Surg 2016; 8: 1173); how the sides share it: Cerebrovasc Dis 2004; 18: 236.
            "thin transverse": Sides(0.28, 0.05, 0.05),
        },
        thin={"a1": 0.5, "vertebral": 0.75, "p1": 0.4, "pcom": 0.5, "transverse": 0.5},
        # Shatri (Open Access Maced J Med Sci 2017; 5): 1.5 mm; Dzierżanowski (Folia Morphologica 2014): 1.4 to 1.5 mm.
        calibres={"acom": 0.75, "pcom": 0.8},
    ),
    mimics=Mimics(
        wide_places=1.0,
        infundibula={"pcom": 0.12, "acha": 0.03},
        infundibulum_mm=Even(1.6, 3.0),
        # Wu (Clinical Imaging 2020): below 5 mm 54.5 %, of 10 and more 15.6 %.
        fenestration_mm=LogNormal(4.6, 0.75, 2.0, 20.0),
        # Heo (Healthcare 2021; 9: 94): 28 % of people.
        cavernous_filled=0.15,
        # Suzuki (AJNR 2001; 22: 670).
        basal_vein_whole=0.55,
        # Chen (Cerebrovascular Diseases 2007): 69 % of patients, vertebral arteries 20 %, basilar artery 5 %.
        calcified_heads=0.69,
        plaques={"ica_infra": 30, "ica_supra": 12, "vertebral": 3, "basilar": 1},
        # Diagn Interv Radiol 2007; 13: 105: coils in 1 of 42 CTAs; for clips two series of 1 and 10 %.
        treated={"clip": 0.04, "coil": 0.024},
        # Jabbarli (Neurosurgery 2016; 78: 813): 25 % of those with blood around an aneurysm.
        haematomas=(0.03, 0.25),
        # Coils: AJNR 2005; 26: 1349.
        bloom_mm={"clip": Even(1.0, 2.5), "coil": Even(0.0, 1.0)},
    ),
)

CLINICS: Mapping[Difficulty, Clinic] = {"medium": MEDIUM, "hard": HARD}
"""By the difficulty that a user asks for; easy heads share none of it."""
