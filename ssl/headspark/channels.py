"""The network's input channels: one scan's values, in HU or normalised, become the same number of channels.

One encoder must take CT and MRI. CT holds more contrast than one linear scale can show a convolution (brain tissue
spans 80 HU of 4000), so it is cut into windows, one a channel. MRI has no absolute scale and one contrast, which is
copied into every channel. The alternative, a stem for each modality, would give a checkpoint that no other library
loads as it is, and an encoder that does not know what to do with a third modality; copied channels cost two thirds of
one convolution. How many windows, and which, is a recipe's ``data.ct_windows``: a single name gives a one-channel
encoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from harmonize.errors import UserError, WrongUse
from harmonize.pipeline import WINDOWED
from harmonize.scan import HU
from harmonize.voxels.intensity import CT_WINDOWS

NAMED_WINDOWS = {**CT_WINDOWS, "vessel": (700.0, 250.0)}
"""Width and level in HU of the windows that have a name. ``vessel`` spans -100 to 600 HU: an artery of a CTA has 200 to
500, which saturates ``brain`` and ``blood``, and in ``bone`` lies within 0.2 of marrow."""

DEFAULT_CT_WINDOWS = ("brain", "blood", "bone")
MRI_UNITS = {"zscore": 1.0, "nyul": 1.0, "fcm": 1.0, "kde": 1.0, "whitestripe": 0.1}
"""What normalised MRI is multiplied by. Z-scores and headspark's Nyul scale span about [-2, 2], fcm and kde put white
matter at 1; whitestripe counts in deviations of white matter alone, about a tenth of the contrast between tissues."""

MriScaling = Literal["soft", "clip", "linear"]
"""How far normalised MRI reaches beyond its tissues: see `to_network_input`."""

DEFAULT_MRI_SCALING: MriScaling = "soft"
UNSTATED_MRI_SCALING: MriScaling = "clip"
"""What a recipe, encoder or model does that was written before there was a choice."""

MRI_KNEE = 4.0
"""Up to here ``soft`` keeps MRI as it is, beyond it takes the logarithm: tissue and the air around lie below, for the
most part, the flow in vessels above."""

MRI_CLIP = 6.0
"""Where ``clip`` ends: below the flow in most sacs of an MRA."""


class CtWindow(NamedTuple):
    """One channel of a CT.

    Attributes:
        name: For people.
        width: HU from its darkest to its brightest value.
        level: HU in its middle.
    """

    name: str
    width: float
    level: float

    @property
    def plain(self) -> str | dict[str, str | float]:
        """As a recipe or a config.json writes it: the name alone where that says all."""
        return self.name if NAMED_WINDOWS.get(self.name) == self[1:] else self._asdict()


def as_window(value: object) -> CtWindow:
    """A window from its name, or from a mapping of ``name``, ``width`` and ``level``.

    Raises:
        WrongUse: It is neither, says what.

    Example:
        >>> as_window("vessel")
        CtWindow(name='vessel', width=700.0, level=250.0)
        >>> as_window({"name": "sinus", "width": 400, "level": 50}).plain
        {'name': 'sinus', 'width': 400.0, 'level': 50.0}
    """
    if isinstance(value, CtWindow):
        value = value._asdict()
    known = ", ".join(NAMED_WINDOWS)
    if isinstance(value, str):
        if value not in NAMED_WINDOWS:
            raise WrongUse(f"{value[:60]}: use some of {known}, or give {{name, width, level}} in HU")
        return CtWindow(value, *NAMED_WINDOWS[value])
    if not isinstance(value, Mapping) or set(value) != {"name", "width", "level"}:
        raise WrongUse(f"{str(value)[:60]}: a window is one of {known}, or has name, width and level")
    name, width, level = value["name"], value["width"], value["level"]
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 60:
        raise WrongUse(f"{str(name)[:60]}: give the window a name of 1 to 60 letters")
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (width, level))
    if not numbers or not (0 < width < math.inf and abs(level) < math.inf):
        raise WrongUse(f"{name}: width {width} and level {level} must be numbers of HU, the width more than 0")
    window = CtWindow(name, float(width), float(level))
    if NAMED_WINDOWS.get(name, window[1:]) != window[1:]:
        usual = "W{:g} L{:g}".format(*NAMED_WINDOWS[name])
        raise WrongUse(f"{name}: is {usual}; give a window of W{width:g} L{level:g} another name")
    return window


def to_network_input(
    values: Tensor,
    unit: str,
    windows: Sequence[str | Mapping[str, Any] | CtWindow] = DEFAULT_CT_WINDOWS,
    mri_scaling: MriScaling = DEFAULT_MRI_SCALING,
) -> Tensor:
    """Channels in [-1, 1] (CT) or mostly in [-2, 2] (MRI).

    MRI within 4 of its zero stays as it is. Beyond, ``soft`` goes on as 4 (1 + log(x / 4)), with the same slope there,
    so that the flow in a sac (9 and more) keeps its shades and metal (100) comes to 17; ``clip`` ends at 6, as version
    0.1.0 did; ``linear`` changes nothing.

    Args:
        values: Real values, shape (...); with unit ``window`` (..., 3), in the order of `CT_WINDOWS`.
        unit: As the corpus records it for the scan: ``HU``, ``window`` or the name of a normaliser.
        windows: As `as_window` takes them; the number of channels.
        mri_scaling: ``soft``, ``clip`` or ``linear``: what an encoder's ``preprocessing`` says, ``clip`` where that
            says nothing.

    Returns:
        float32, shape (len(windows), ...).

    Raises:
        UserError: The unit has no meaning that a network could rely on, or there is no such window or scaling.

    Example:
        >>> x = to_network_input(torch.tensor([-1024.0, 40.0, 3000.0]), "HU")
        >>> x.shape, x[0].tolist()
        (torch.Size([3, 3]), [-1.0, 0.0, 1.0])
        >>> to_network_input(torch.tensor([-2.0, 9.0]), "zscore", ["brain"])
        tensor([[-2.0000,  7.2437]])
    """
    cuts = [as_window(one) for one in windows]
    check_unit(unit, cuts)
    values = values.float()
    if unit == WINDOWED:
        return values.movedim(-1, 0).mul(2.0).sub(1.0)
    x = values.new_empty((len(cuts), *values.shape))
    if unit == HU:
        for channel, cut in zip(x, cuts, strict=True):
            torch.sub(values, cut.level, out=channel).mul_(2.0 / cut.width).clamp_(-1.0, 1.0)
        return x
    torch.mul(values, MRI_UNITS[unit], out=x[0])
    _scale_mri(x[0], mri_scaling)
    x[1:] = x[0]
    return x


def check_unit(unit: str, windows: Sequence[str | Mapping[str, Any] | CtWindow] = DEFAULT_CT_WINDOWS) -> None:
    """Refuse a unit that `to_network_input` cannot turn into those channels.

    Raises:
        UserError: Says which.
    """
    names = [as_window(one).name for one in windows]
    if unit == WINDOWED and names != list(CT_WINDOWS):
        raise UserError(
            f"this corpus holds the windows {', '.join(CT_WINDOWS)}, the recipe asks for {', '.join(names)}: "
            "harmonize without --bake-windows"
        )
    if unit not in (HU, WINDOWED, *MRI_UNITS):
        raise UserError(f"intensities in {unit!r} have no common scale: harmonize with --mri-norm zscore or nyul")


def check_scaling(scaling: object) -> MriScaling:
    """A scaling by its name.

    Raises:
        WrongUse: There is none of that name.
    """
    for known in get_args(MriScaling):
        if scaling == known:
            return known
    raise WrongUse(f"mri_scaling {str(scaling)[:60]}: use one of {', '.join(get_args(MriScaling))}")


def _scale_mri(values: Tensor, scaling: MriScaling) -> None:
    """Scale in place: a whole head is tens of megabytes, and there is one for each sample."""
    if check_scaling(scaling) == "clip":
        values.clamp_(-MRI_CLIP, MRI_CLIP)
    elif scaling == "soft":
        # Up to the knee this is the logarithm of 1, so nothing is added there.
        beyond = values.abs().clamp_(min=MRI_KNEE).div_(MRI_KNEE).log_().mul_(MRI_KNEE)
        values.clamp_(-MRI_KNEE, MRI_KNEE).add_(beyond.copysign_(values))
