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

from harmonize.intensity import CT_WINDOWS
from harmonize.scan import HU

DEFAULT_CT_WINDOWS = ("brain", "blood", "bone")
AIR_HU = -1024.0
MRI_CLIP = 6.0
"""Normalised MRI beyond this many standard deviations is clipped: vessels and metal otherwise rule the loss."""


def to_network_input(values: Tensor, unit: str, windows: Sequence[str] = DEFAULT_CT_WINDOWS) -> Tensor:
    """Channels in [-1, 1] (CT) or in standard deviations (MRI).

    Args:
        values: Real values, any shape; HU where `unit` is ``HU``, else zero-mean normalised intensities.
        unit: The unit that the corpus records for the scan.
        windows: Names in `harmonize.intensity.CT_WINDOWS`; the number of channels.

    Returns:
        float32, shape (len(windows), *values.shape).

    Example:
        >>> x = to_network_input(torch.tensor([-1024.0, 40.0, 3000.0]), "HU")
        >>> x.shape, x[0].tolist()
        (torch.Size([3, 3]), [-1.0, 0.0, 1.0])
    """
    values = values.float()
    if unit == HU:
        return torch.stack([_window(values, *CT_WINDOWS[name]) for name in windows])
    return values.clamp(-MRI_CLIP, MRI_CLIP).expand(len(windows), *values.shape).contiguous()


def _window(values: Tensor, width_hu: float, level_hu: float) -> Tensor:
    return ((values - level_hu) * (2.0 / width_hu)).clamp(-1.0, 1.0)
