"""The network of a fine-tuning run: any 3D encoder, the head that gives the labels, and heads that help to train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from timm.models import group_modules
from torch import Tensor, nn

from finetune.models.heads import HeadConfig, make_head
from finetune.models.maps import Maps
from finetune.tasks import LABELS, Task
from harmonize.errors import WrongUse

EncoderLayers = tuple[tuple[nn.Module, ...], ...]


class Network(nn.Module):
    """Encoder and heads.

    Args:
        encoder: Maps x_BCDHW to feature maps, finest first, and has `channels`, `strides` (cumulative) and
            `group_matcher()` in timm's sense.
        head: The part of the recipe that picks the head of the labels.
        auxiliary: Those that pick further heads.
        task: What is asked.

    Raises:
        UserError: A head does not fit the encoder or the task, or two give an output of the same name.
    """

    def __init__(self, encoder: Any, head: HeadConfig, auxiliary: Sequence[HeadConfig], task: Task) -> None:
        super().__init__()
        maps = Maps(strides=tuple(encoder.strides), channels=tuple(encoder.channels))
        self.encoder: nn.Module = encoder
        self.head = make_head(head, maps, task)
        self.auxiliary = nn.ModuleList(make_head(config, maps, task) for config in auxiliary)
        self.outputs = tuple(name for one in self.heads for name in one.outputs)
        if len(set(self.outputs)) < len(self.outputs):
            twice = sorted(name for name in set(self.outputs) if self.outputs.count(name) > 1)
            raise WrongUse(f"auxiliary: two heads give {', '.join(twice)}; keep one")
        if LABELS not in self.heads[0].outputs:
            raise WrongUse(f"head.kind {head.kind}: does not give the labels; put it under auxiliary")
        self.layers: EncoderLayers = encoder_layers(encoder)
        self.dropouts = tuple(found for one in self.heads for found in head_dropouts(one))

    @property
    def heads(self) -> list[Any]:
        """All heads, that of the labels first."""
        return [self.head, *self.auxiliary]

    @property
    def cells(self) -> dict[str, int]:
        """Edge of a cell in voxels of the input, of each dense output."""
        return {name: stride for one in self.heads for name, stride in one.cells.items()}

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        """Everything that is not the encoder."""
        return [p for name, p in self.named_parameters() if not name.startswith("encoder.")]

    def forward(self, x_BCDHW: Tensor) -> dict[str, Tensor]:
        """Outputs by name.

        Args:
            x_BCDHW: Network input as `headspark.channels.to_network_input` makes it.
        """
        maps = self.encoder(x_BCDHW)
        outputs = self.head(maps)
        if self.training:  # what only helps to train is not asked for otherwise
            for one in self.auxiliary:
                outputs |= one(maps)
        return outputs


def head_dropouts(head: nn.Module) -> Iterator[tuple[nn.Module, str, float]]:
    """The modules of a head that drop features, the attribute that says which share, and its value."""
    for module in head.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            yield module, "p", module.p
        elif isinstance(module, nn.MultiheadAttention):
            yield module, "dropout", module.dropout


def encoder_layers(encoder: nn.Module) -> EncoderLayers:
    """The encoder's modules that own parameters, grouped by its `group_matcher`, shallowest first.

    Raises:
        UserError: If the encoder does not say what its layers are.
    """
    matcher = getattr(encoder, "group_matcher", None)
    if matcher is None:
        raise WrongUse(f"encoder {type(encoder).__name__}: no group_matcher(), so its layers are unknown")
    named = dict(encoder.named_modules())
    groups = group_modules(encoder, matcher(coarse=True))
    layers = (
        tuple(named[name] for name in groups[layer] if any(True for _ in named[name].parameters(recurse=False)))
        for layer in sorted(groups)
    )
    return tuple(layer for layer in layers if layer)


def upgraded_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights by their names of today: in version 0.1.0 what is now the head's lay beside the encoder."""
    renamed = {}
    for name, value in weights.items():
        today = name.replace("scale_14", "scale_L").replace("shift_14", "shift_L")
        first = today.split(".", 1)[0]
        renamed[today if first in ("encoder", "head", "auxiliary") else f"head.{today}"] = value
    return renamed
