"""Other CT windows than an encoder was pretrained with: its first convolution takes them, and sees MRI as before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from headspark.channels import CtWindow
from headspark.encoder import build_encoder
from headspark.encoder.base import EncoderConfig, MaskableEncoder


def with_windows(encoder: MaskableEncoder, before: Sequence[CtWindow], after: Sequence[CtWindow]) -> MaskableEncoder:
    """An encoder for other input channels.

    Args:
        encoder: For the windows `before`; stays as it is.
        before: One a channel of the encoder.
        after: One a channel of the encoder that comes back.

    Returns:
        `encoder` itself where the windows are the same, else another; an input that is the same in all channels, as
        an MRI is, gives the same maps in both. See `spread`.
    """
    sources = channel_sources(before, after)
    if sources == list(range(len(before))):
        return encoder
    name = stem_name(encoder.config)
    weights = dict(encoder.state_dict())
    weights[name] = spread(weights[name], sources)
    adapted = build_encoder(replace(encoder.config, in_channels=len(after))).to(weights[name])
    adapted.load_state_dict(weights)
    adapted.set_grad_checkpointing(encoder.checkpointing)
    if hasattr(encoder, "preprocessing"):
        adapted.preprocessing = {**encoder.preprocessing, "ct_windows": [window.plain for window in after]}
    return adapted.train(encoder.training)


def channel_sources(before: Sequence[CtWindow], after: Sequence[CtWindow]) -> list[int | None]:
    """For each window of `after`, the channel of `before` with the same width and level; None where there is none."""
    left = {index: window[1:] for index, window in enumerate(before)}
    sources: list[int | None] = []
    for window in after:
        source = next((index for index, limits in left.items() if limits == window[1:]), None)
        if source is not None:
            del left[source]
        sources.append(source)
    return sources


def spread(weight: Tensor, sources: Sequence[int | None]) -> Tensor:
    """The kernels of a first convolution for other input channels, with the same sum over them.

    A kept channel keeps its kernel, in the proportion of the numbers of channels. New channels share evenly what is
    then missing in the sum: the mean of all where none was given up, what those had that were given up where as many
    are new. Where none is new, all take a part.

    Args:
        weight: (C_out, C_in, k, k, k).
        sources: Of each new channel, which old one it is, or None.

    Returns:
        (C_out, len(sources), k, k, k).

    Example:
        >>> weight = torch.tensor([3.0, 6.0, 9.0]).view(1, 3, 1, 1, 1)
        >>> spread(weight, [0, 1, 2, None]).flatten().tolist()
        [2.25, 4.5, 6.75, 4.5]
        >>> spread(weight, [2, 0, None]).flatten().tolist()
        [9.0, 3.0, 6.0]
    """
    kept = [source for source in sources if source is not None]
    if len(kept) == len(sources) == weight.shape[1]:
        return weight[:, kept].contiguous()
    exact = weight.double()
    adapted = exact.new_zeros(len(weight), len(sources), *weight.shape[2:])
    for channel, source in enumerate(sources):
        if source is not None:
            adapted[:, channel] = exact[:, source] * (weight.shape[1] / len(sources))
    new = [channel for channel, source in enumerate(sources) if source is None] or list(range(len(sources)))
    adapted[:, new] += (exact.sum(1) - adapted.sum(1)).unsqueeze(1) / len(new)
    return adapted.to(weight.dtype)


def stem_name(config: EncoderConfig) -> str:
    """Name of the one tensor whose shape depends on the number of input channels, whatever the kind of encoder."""
    with torch.device("meta"):
        one, other = (
            build_encoder(replace(config, in_channels=channels)).state_dict()
            for channels in (config.in_channels, config.in_channels + 1)
        )
    (name,) = [name for name in one if one[name].shape != other[name].shape]
    return name


def changes(before: Sequence[CtWindow], after: Sequence[CtWindow]) -> str | None:
    """What `with_windows` does, for people; None where it does nothing.

    Example:
        >>> from headspark.channels import as_window
        >>> one, two, three = (as_window(name) for name in ("brain", "bone", "vessel"))
        >>> changes([one, two], [one, two, three])
        'vessel is new and begins with the mean of the others'
        >>> changes([one, two], [one, three])
        'vessel is new and takes the place of bone'
    """
    sources = channel_sources(before, after)
    if sources == list(range(len(before))):
        return None
    new = ", ".join(window.name for window, source in zip(after, sources, strict=True) if source is None)
    gone = ", ".join(window.name for index, window in enumerate(before) if index not in sources)
    many = sources.count(None) > 1
    if new and gone:
        return f"{new} {'are' if many else 'is'} new and {'take' if many else 'takes'} the place of {gone}"
    if new:
        return f"{new} {'are' if many else 'is'} new and {'begin' if many else 'begins'} with the mean of the others"
    return f"{gone} is left out, what it had is spread over the others" if gone else "in another order"
