"""Brain masks by SynthStrip (Hoopes et al. 2022, NeuroImage 260:119474), with the model file that the user brings.

Only the network comes from nipreps-synthstrip; what surrounds it there (a conform by cubic splines and back) is done
here on the corpus's own grid. The network tells for every voxel of a 1 mm LIA grid the signed distance to the brain's
surface in mm.
"""

from __future__ import annotations

import pickle
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harmonize.errors import WrongUse
from harmonize.voxels import spatial
from harmonize.voxels.foreground import fill_holes, largest_part
from harmonize.voxels.grids import Grid, target_grid

if TYPE_CHECKING:
    from torch import nn

BORDER_MM = 1.0
"""Voxels up to this far outside the surface count as brain: SynthStrip's default."""

NETWORK_SPACING_MM = 1.0
SIDE_STEP, MIN_SIDE, MAX_SIDE = 64, 192, 320
"""Sides of the network's input: multiples of 64 (it halves six times) within what it was trained on."""

BRIGHTEST_PERCENTILE = 99
FAR_MM = 100.0
"""Distance given to what the network has not seen."""

STATE = "model_state_dict"


def brain_mask(values_XYZ: NDArray[Any], affine: NDArray[np.float64], model_file: Path) -> NDArray[np.bool_]:
    """Find the brain in a volume of any contrast.

    Args:
        values_XYZ: Finite real values on a RAS grid.
        affine: (4, 4), diagonal.
        model_file: SynthStrip's weights (``synthstrip.1.pt`` of FreeSurfer).

    Returns:
        bool, shape (X, Y, Z); all False where no brain was found.

    Raises:
        UserError: The model file is none, or nipreps-synthstrip is not installed.
    """
    model = _model(model_file, model_file.stat().st_mtime_ns if model_file.is_file() else 0)
    own = Grid(shape=_shape3(values_XYZ.shape), affine=affine)
    grid = target_grid(own.shape, affine, (NETWORK_SPACING_MM,) * 3)
    seen = spatial.resample(values_XYZ, affine, grid).astype(np.float32)
    seen -= seen.min()
    seen = np.clip(seen / max(float(np.percentile(seen, BRIGHTEST_PERCENTILE)), 1e-6), 0, 1)
    sides = np.clip(-(-np.array(grid.shape) // SIDE_STEP) * SIDE_STEP, MIN_SIDE, MAX_SIDE)
    framed = _into_frame(seen, sides, 0.0)
    distance = _out_of_frame(_predict(model, framed), np.array(grid.shape))
    on_own = distance
    if grid.shape != own.shape or not np.allclose(grid.affine, own.affine):
        on_own = spatial.resample(distance, grid.affine, own, outside=FAR_MM)
    return fill_holes(largest_part(on_own < BORDER_MM))


def check_model(model_file: Path) -> None:
    """Load the weights, so that a wrong file is found before any scan is read.

    Raises:
        UserError: The model file is none, or nipreps-synthstrip is not installed.
    """
    _model(model_file, model_file.stat().st_mtime_ns)


def _predict(model: nn.Module, framed_XYZ: NDArray[np.float32]) -> NDArray[np.float32]:
    """Distances on the grid of the input; LIA and back is a transpose and two flips."""
    import torch

    lia = np.ascontiguousarray(framed_XYZ[::-1, :, ::-1].transpose(0, 2, 1))
    with torch.inference_mode():
        found = model(torch.from_numpy(lia)[None, None])[0, 0].numpy()
    return found.transpose(0, 2, 1)[::-1, :, ::-1]


def _into_frame(values_XYZ: NDArray[np.float32], sides: NDArray[np.int_], fill: float) -> NDArray[np.float32]:
    """The volume in the middle of a box with these sides, cut where it is larger."""
    box = np.full(tuple(sides), fill, dtype=np.float32)
    inner, outer = _overlap(np.array(values_XYZ.shape), sides)
    box[outer] = values_XYZ[inner]
    return box


def _out_of_frame(box: NDArray[np.float32], shape: NDArray[np.int_]) -> NDArray[np.float32]:
    """What lies in the box where the volume was, `FAR_MM` elsewhere."""
    values = np.full(tuple(shape), FAR_MM, dtype=np.float32)
    inner, outer = _overlap(shape, np.array(box.shape))
    values[inner] = box[outer]
    return values


def _overlap(shape: NDArray[np.int_], sides: NDArray[np.int_]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a volume and a box with one middle overlap, in indices of either."""
    start = (sides - shape) // 2
    common = np.minimum(shape, sides)
    inner = tuple(slice(int(a), int(a + n)) for a, n in zip(np.maximum(-start, 0), common, strict=True))
    outer = tuple(slice(int(a), int(a + n)) for a, n in zip(np.maximum(start, 0), common, strict=True))
    return inner, outer


@lru_cache(maxsize=1)
def _model(model_file: Path, changed_ns: int) -> nn.Module:
    """The network with its weights, kept from scan to scan as long as the file is the same."""
    import torch

    try:
        from nipreps.synthstrip.model import StripModel
    except ImportError as error:
        raise WrongUse("--brain-model needs nipreps-synthstrip: pip install 'headspark[brain]'") from error
    model = StripModel()
    try:
        model.load_state_dict(torch.load(model_file, map_location="cpu", weights_only=True)[STATE])
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise WrongUse(
            f"--brain-model {model_file}: no weights of SynthStrip; get synthstrip.1.pt from FreeSurfer"
        ) from error
    return model.eval()


def _shape3(shape: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = shape
    return x, y, z
