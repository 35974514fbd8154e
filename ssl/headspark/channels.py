"""The network's input channels: one scan's values, in HU or normalised, become the same number of channels.

One encoder must take CT and MRI. CT holds more contrast than one linear scale can show a convolution (brain tissue
spans 80 HU of 4000), so it is cut into windows, one a channel. MRI has no absolute scale and one contrast, which is
copied into every channel. The alternative, a stem for each modality, would give a checkpoint that no other library
loads as it is, and an encoder that does not know what to do with a third modality; copied channels cost two thirds of
one convolution. How many windows, and which, is a recipe's ``data.ct_windows``: a single name gives a one-channel
encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harmonize.errors import UserError
from harmonize.pipeline import WINDOWED
from harmonize.scan import HU
from harmonize.voxels.intensity import CT_WINDOWS

DEFAULT_CT_WINDOWS = ("brain", "blood", "bone")
MRI_UNITS = {"zscore": 1.0, "nyul": 1.0, "fcm": 1.0, "kde": 1.0, "whitestripe": 0.1}
"""What normalised MRI is multiplied by. Z-scores and headspark's Nyul scale span about [-2, 2], fcm and kde put white
matter at 1; whitestripe counts in deviations of white matter alone, about a tenth of the contrast between tissues."""

MRI_CLIP = 6.0
"""Beyond this MRI is clipped: vessels and metal would otherwise rule the loss."""


def to_network_input(values: Tensor, unit: str, windows: Sequence[str] = DEFAULT_CT_WINDOWS) -> Tensor:
    """Channels in [-1, 1] (CT) or in about [-2, 2] (MRI).

    Args:
        values: Real values, shape (...); with unit ``window`` (..., 3), in the order of `CT_WINDOWS`.
        unit: As the corpus records it for the scan: ``HU``, ``window`` or the name of a normaliser.
        windows: Names in `harmonize.voxels.intensity.CT_WINDOWS`; the number of channels.

    Returns:
        float32, shape (len(windows), ...).

    Raises:
        UserError: The unit has no meaning that a network could rely on.

    Example:
        >>> x = to_network_input(torch.tensor([-1024.0, 40.0, 3000.0]), "HU")
        >>> x.shape, x[0].tolist()
        (torch.Size([3, 3]), [-1.0, 0.0, 1.0])
    """
    check_unit(unit, windows)
    values = values.float()
    if unit == HU:
        return torch.stack([_window(values, *CT_WINDOWS[name]) for name in windows])
    if unit == WINDOWED:
        return values.movedim(-1, 0).mul(2.0).sub(1.0)
    scaled = (values * MRI_UNITS[unit]).clamp(-MRI_CLIP, MRI_CLIP)
    return scaled.expand(len(windows), *values.shape).contiguous()


def check_unit(unit: str, windows: Sequence[str] = DEFAULT_CT_WINDOWS) -> None:
    """Refuse a unit that `to_network_input` cannot turn into those channels.

    Raises:
        UserError: Says which.
    """
    if unit == WINDOWED and tuple(windows) != tuple(CT_WINDOWS):
        raise UserError(
            f"this corpus holds the windows {', '.join(CT_WINDOWS)}, the recipe asks for {', '.join(windows)}: "
            "harmonize without --bake-windows"
        )
    if unit not in (HU, WINDOWED, *MRI_UNITS):
        raise UserError(f"intensities in {unit!r} have no common scale: harmonize with --mri-norm zscore or nyul")


def _window(values: Tensor, width_hu: float, level_hu: float) -> Tensor:
    return (values - level_hu).mul_(2.0 / width_hu).clamp_(-1.0, 1.0)
