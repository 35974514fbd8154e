"""The network of a fine-tuning run: any encoder, the head that gives the answers, and heads that help to train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from finetune.models.condition import Condition, ConditionConfig, NoCondition
from finetune.models.heads import HeadConfig, make_head
from finetune.models.maps import Maps
from finetune.tasks import Task
from harmonize.errors import WrongUse
from headspark.encoder.residual import ResidualEncoder
from headspark.packed import PackedBlocks

EncoderLayers = tuple[tuple[nn.Module, ...], ...]


class Network(nn.Module):
    """Encoder, condition and heads.

    Args:
        encoder: Maps x_BCDHW to feature maps, finest first, and has `channels`, `strides` (cumulative) and
            `group_matcher()` in timm's sense. One of `pictures` maps x_BNCHW.
        head: The part of the recipe that picks the head of the labels.
        auxiliary: Those that pick further heads.
        task: What is asked.
        condition: The part that picks what the network is told of the modality.

    Raises:
        UserError: A head does not fit the encoder or the task, two give an output of the same name, or none gives what
            the head of the labels or the condition asks for.
    """

    def __init__(
        self,
        encoder: Any,
        head: HeadConfig,
        auxiliary: Sequence[HeadConfig],
        task: Task,
        condition: ConditionConfig = NoCondition(),  # noqa: B008 frozen
    ) -> None:
        super().__init__()
        maps = Maps(strides=tuple(encoder.strides), channels=tuple(encoder.channels))
        self.encoder: nn.Module = encoder
        self.head = make_head(head, maps, task)
        self.auxiliary = nn.ModuleList(make_head(config, maps, task) for config in auxiliary)
        self.outputs = tuple(name for one in self.heads for name in one.outputs)
        if len(set(self.outputs)) < len(self.outputs):
            twice = sorted(name for name in set(self.outputs) if self.outputs.count(name) > 1)
            raise WrongUse(f"auxiliary: two heads give {', '.join(twice)}; keep one")
        if task.answers not in self.heads[0].outputs:
            raise WrongUse(f"head.kind {head.kind}: does not give the {task.answers} that this task asks for")
        for config, one in zip((head, *auxiliary), self.heads, strict=True):
            if getattr(encoder, "pictures", False) and one.cells:
                raise WrongUse(f"head.kind {config.kind}: has cells of a volume, and this view shows pictures; use mil")
        self.condition = Condition(condition, maps, task)
        needed = dict.fromkeys(_needs(self.head), f"head.kind {head.kind}")
        needed |= dict.fromkeys(self.condition.needs, f"condition.kind {condition.kind}")
        given = {name for one in self.heads[1:] for name in one.outputs}
        for name, who in needed.items():
            if name not in given:
                raise WrongUse(f"{who}: makes use of {name}, which no head gives; put one that does under auxiliary")
        self._always = [any(name in needed for name in one.outputs) for one in self.heads[1:]]
        _matcher(encoder)  # refused here rather than by the stages
        self.dropouts = tuple(found for one in self.heads for found in head_dropouts(one))

    @cached_property
    def layers(self) -> EncoderLayers:
        """The encoder's layers, as stages count them; prediction never asks."""
        return encoder_layers(self.encoder)

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

    @property
    def only_targets(self) -> dict[str, str]:
        """The one target that an output can be compared with, of those that have one."""
        return {output: target for one in self.heads for output, target in getattr(one, "only_targets", {}).items()}

    def forward(
        self, x_BCDHW: Tensor, group_B: Tensor | None = None, where_BM2: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Outputs by name.

        Args:
            x_BCDHW: Network input as `headspark.channels.to_network_input` makes it; of pictures x_BNCHW.
            group_B: What is known of the inputs, as `finetune.series.told_of` says it; for networks that want to know.
            where_BM2: The points of pictures that training tells an encoder of these; nobody knows any at prediction.
        """
        told = () if where_BM2 is None else (where_BM2,)
        maps: Sequence[Tensor] = encoded(self.encoder, x_BCDHW, *told)
        # What only helps to train is not asked for otherwise.
        asked = [one for one, always in zip(self.auxiliary, self._always, strict=True) if always or self.training]
        outputs: dict[str, Tensor] = {}
        for one in asked:
            if not _conditioned(one):
                outputs |= one(maps)
        shares_BG = self.condition.shares(outputs, group_B)
        maps = self.condition.of_maps(maps, shares_BG)
        for one in asked:
            if _conditioned(one):
                outputs |= one(maps)
        outputs |= self.head(maps, outputs) if _needs(self.head) else self.head(maps)
        return self.condition.of_outputs(outputs, shares_BG)


def encoded(encoder: nn.Module, x_BCDHW: Tensor, *told: Tensor) -> list[Tensor]:
    """The maps of an encoder; what it is told besides, encoders of pictures alone take.

    A GPU convolves fastest with the channels last, but PyTorch's instance norm hands on maps of another layout, which
    each convolution would first copy. So our own encoder runs there on the kernels of visible blocks, all visible.
    """
    if x_BCDHW.device.type == "cuda" and x_BCDHW.ndim == 5 and isinstance(encoder, ResidualEncoder):
        return [map_.dense() for map_ in encoder(PackedBlocks.whole(x_BCDHW))]
    return encoder(x_BCDHW, *told)


def fastest_weights(network: Network) -> Network:
    """The network with its kernels laid out in memory as convolutions are fastest."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in network.parameters():
        if parameter.ndim in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.ndim])
    return network


def _needs(head: nn.Module) -> tuple[str, ...]:
    return getattr(head, "needs", ())


def _conditioned(head: nn.Module) -> bool:
    return getattr(head, "conditioned", True)


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
    from timm.models import group_modules  # slow to load, and needed by training alone

    named = dict(encoder.named_modules())
    groups = group_modules(encoder, _matcher(encoder)(coarse=True))
    layers = (
        tuple(named[name] for name in groups[layer] if any(True for _ in named[name].parameters(recurse=False)))
        for layer in sorted(groups)
    )
    return tuple(layer for layer in layers if layer)


def _matcher(encoder: nn.Module) -> Callable[..., Any]:
    matcher: Callable[..., Any] | None = getattr(encoder, "group_matcher", None)
    if matcher is None:
        raise WrongUse(f"encoder {type(encoder).__name__}: no group_matcher(), so its layers are unknown")
    return matcher


def upgraded_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights by their names of today: in version 0.1.0 what is now the head's lay beside the encoder."""
    renamed = {}
    for name, value in weights.items():
        today = name.replace("scale_14", "scale_L").replace("shift_14", "shift_L")
        first = today.split(".", 1)[0]
        renamed[today if first in ("encoder", "head", "auxiliary", "condition") else f"head.{today}"] = value
    return renamed
