"""Stacks to learn from: cut out of harmonized scans in every way, whose size is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from finetune.finder.survey import Survey, survey_of
from finetune.geometry.network import SHAPE, WAYS, told
from finetune.geometry.reader import scaled
from harmonize.corpus import Corpus
from harmonize.errors import UserError
from harmonize.scan import AIR_HU, HU
from headspark.data.decoders import read_corpus_file

SPACING_MM = 4.0
"""Voxels of what is kept of a scan; a stack's are no smaller."""

AXES = {
    "axial": np.array([[0, 0, 1], [0, -1, 0], [-1, 0, 0]], dtype=np.float64),
    "sagittal": np.array([[1, 0, 0], [0, 0, -1], [0, -1, 0]], dtype=np.float64),
    "coronal": np.array([[0, -1, 0], [0, 0, -1], [-1, 0, 0]], dtype=np.float64),
}
"""Where slices, rows and columns of each of `WAYS` advance to, along R, A and S."""

AS_SCANNED = 0.6
"""Share of the stacks that lie as the scan was made, with as many slices; the others lie in any way."""
ALIKE = 0.05
"""Extents that differ by less say nothing of which of them was that of the slices."""
WAY_SHARES = (0.5, 0.25, 0.25)
STEPS_MM = (0.5, 5.5)
EXTENTS = (0.55, 1.15)
"""Of the scan's own, for an extent of a stack that is cut out of it, or reaches beyond."""
OWN_EXTENTS = (0.97, 1.03)
TILT_DEGREES = 6.0
NOISE, GAMMA = 0.1, 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A scan to learn from.

    Attributes:
        survey: In voxels of about `SPACING_MM`.
        subject: Whose it is.
        ways: How its own slices may lie, as far as its extents tell.
        slices: How many they were; 0 where nobody says.
    """

    survey: Survey
    subject: str
    ways: tuple[str, ...]
    slices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What the network sees, and what it is to say.

    Attributes:
        x_1ZYX: See `network.GeometryNetwork`.
        told_T: Likewise.
        log_extents_2: Of a square picture of the same area, and of the height, mm.
        way: Index of `WAYS`.
        turned: 1.0 where the slices run against their normal.
    """

    x_1ZYX: Tensor
    told_T: Tensor
    log_extents_2: Tensor
    way: int
    turned: float


def read_lesson(corpus: Corpus, row: Mapping[Any, Any]) -> Lesson:
    """Read a scan of a corpus.

    Args:
        corpus: The corpus.
        row: Of its `scans`.

    Raises:
        UserError: The file is gone, damaged, or holds baked windows.
    """
    volume = read_corpus_file(
        corpus.path / row["image_file_name"], scan_id=row["scan_id"], shape=tuple(map(int, row["shape"]))
    )
    if volume.stored_XYZ.ndim != 3:
        raise UserError("this corpus stores baked CT windows; harmonize without --bake-windows")
    box = [int(bound) for bound in row["foreground_box"]]
    survey = survey_of(volume, unit=row["unit"], foreground_box=box, spacing_mm=SPACING_MM)
    ways, slices = _as_scanned(survey, row.get("raw_shape"), row.get("raw_spacing"))
    return Lesson(survey=survey, subject=f"{row['source']}/{row['subject']}", ways=ways, slices=slices)


def draw_stack(lesson: Lesson, generator: np.random.Generator, *, varied: bool = True) -> Stack:
    """A stack out of a scan: in its own way or another, of part of it or beyond, turned round in half of the cases.

    Args:
        lesson: The scan.
        generator: Draws.
        varied: Whether values and extents are varied too; the scan's own stack otherwise.
    """
    survey = lesson.survey
    own = not varied or generator.random() < AS_SCANNED
    way = str(generator.choice(lesson.ways)) if own else WAYS[generator.choice(len(WAYS), p=WAY_SHARES)]
    axes_33 = AXES[way]
    full_3 = abs(axes_33) @ (np.asarray(survey.extent_mm) + np.asarray(survey.spacing))
    factors_3 = generator.uniform(*(OWN_EXTENTS if own else EXTENTS), size=3) if varied else np.ones(3)
    extents_3 = full_3 * factors_3
    slices = lesson.slices
    if not own or not slices:
        slices = max(4, round(extents_3[0] / np.exp(generator.uniform(*np.log(STEPS_MM)))))
    turned = bool(generator.random() < 0.5) if way != "sagittal" else False
    # Rows and columns stay as they are; slices that begin at the other end are the same slices.
    aimed_33 = axes_33 * np.array([-1 if turned else 1, 1, 1])[:, None]
    shift_3 = generator.uniform(-0.5, 0.5, 3) * np.maximum(full_3 - extents_3, 0) if varied else np.zeros(3)
    middle_3 = np.asarray(survey.extent_mm) / 2 + aimed_33.T @ shift_3
    turn_33 = _tilt(generator) if varied else np.eye(3)
    x_ZYX = scaled(_cut(survey, turn_33 @ aimed_33.T * extents_3, middle_3), survey.unit)
    if varied:
        x_ZYX = _varied(x_ZYX, generator)
    edge_mm = float(np.sqrt(extents_3[1] * extents_3[2]))
    return Stack(
        x_1ZYX=x_ZYX[None],
        told_T=told(slices, 1000, max(1, round(1000 * extents_3[2] / extents_3[1])), is_ct=survey.unit == HU),
        log_extents_2=torch.tensor([edge_mm, float(extents_3[0])]).log(),
        way=WAYS.index(way),
        turned=float(turned),
    )


def _as_scanned(survey: Survey, raw_shape: Any, raw_spacing: Any) -> tuple[tuple[str, ...], int]:
    """How a scan's own slices may have lain, and how many they were: along an axis that is as long as they are high."""
    if raw_shape is None or raw_spacing is None:
        return WAYS, 0
    along = int(np.argmax(raw_spacing)) if max(raw_spacing) > 1.05 * min(raw_spacing) else 2
    height_mm = float(raw_shape[along] * raw_spacing[along])
    extents_3 = np.asarray(survey.extent_mm) + np.asarray(survey.spacing)
    off = {way: abs(np.log((abs(AXES[way]) @ extents_3)[0] / height_mm)) for way in WAYS}
    return tuple(way for way in WAYS if off[way] < min(off.values()) + ALIKE), int(raw_shape[along])


def _cut(survey: Survey, spans_33: NDArray[np.float64], middle_3: NDArray[np.float64]) -> Tensor:
    """Values of a stack, `SHAPE`: voxel (k, i, j), each from -1/2 to 1/2, shows ``spans @ (k, i, j) + middle``."""
    size_3, spacing_3 = np.array(survey.values_XYZ.shape), np.asarray(survey.spacing)
    to_unit_3 = 2 / np.maximum(size_3 - 1, 1) / spacing_3
    shown_3 = 1 - 1 / np.array(SHAPE)  # from the middle of the first voxel to that of the last
    linear = to_unit_3[:, None] * spans_33 * shown_3 / 2
    offset = to_unit_3 * (middle_3 - survey.first_mm) - 1
    # grid_sample counts both, the volume's axes and the stack's, last axis first.
    theta = np.concatenate([linear[::-1, ::-1], offset[::-1, None]], axis=1)
    grid = F.affine_grid(torch.from_numpy(theta[None].copy()), [1, 1, *SHAPE], align_corners=True).float()
    fill = AIR_HU if survey.unit == HU else float(survey.values_XYZ.min())
    source = (survey.values_XYZ - fill)[None, None]
    return F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=True)[0, 0] + fill


def _tilt(generator: np.random.Generator) -> NDArray[np.float64]:
    """A turn by few degrees about any axis (Rodrigues)."""
    axis_3 = generator.normal(size=3)
    x, y, z = axis_3 / np.linalg.norm(axis_3)
    angle = np.radians(generator.normal() * TILT_DEGREES / 2)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _varied(x_ZYX: Tensor, generator: np.random.Generator) -> Tensor:
    """Values of another contrast and noise."""
    gamma = float(np.exp(generator.uniform(-GAMMA, GAMMA)))
    noise = torch.from_numpy(generator.normal(size=SHAPE)).float() * generator.uniform(0, NOISE)
    return (((x_ZYX + 1) / 2) ** gamma * 2 - 1 + noise).clamp(-1, 1)
