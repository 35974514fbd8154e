"""Encoders whose layers are MONAI's: SegResNet (arXiv 1810.11654) and MedNeXt (arXiv 2303.09975)."""

from __future__ import annotations

from typing import Any

from monai.networks.nets.mednext import MedNeXt
from monai.networks.nets.segresnet_ds import SegResEncoder
from torch import Tensor, nn

from harmonize.errors import WrongUse
from headspark.encoder.base import GROUPS, NORM_EPS, EncoderConfig, MaskableEncoder


def build_monai_encoder(config: EncoderConfig) -> MaskableEncoder:
    """Build the encoder that a config describes.

    Args:
        config: ``kind`` is ``segresnet`` or ``mednext``.

    Raises:
        UserError: These networks double their channels and halve their grid at every stage; the config does not.
    """
    doubling = tuple(config.features[0] * 2**stage for stage in range(len(config.features)))
    if config.features != doubling or any(stride != 2 for stride in config.strides[1:]):
        raise WrongUse(
            f"encoder.kind '{config.kind}' doubles its features and has stride 2 at every stage: "
            f"features {list(doubling)}, strides {[1] + [2] * (len(doubling) - 1)}",
        )
    return SegResNetEncoder(config) if config.kind == "segresnet" else MedNeXtEncoder(config)


class SegResNetEncoder(MaskableEncoder):
    """The encoder of SegResNet: pre-activation residual blocks, strided convolutions between the stages.

    Args:
        config: The shape; ``conv_bias`` and ``drop_path`` have no meaning here.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        norms: dict[str, tuple[str, dict[str, Any]]] = {
            "instance": ("instance", {"affine": True, "eps": NORM_EPS}),
            "batch": ("batch", {"eps": NORM_EPS}),
            "group": ("group", {"num_groups": GROUPS, "eps": NORM_EPS}),
        }
        if config.kernel != 3:
            raise WrongUse("encoder.kind 'segresnet' has kernels of 3")
        self.net = SegResEncoder(
            spatial_dims=3,
            init_filters=config.features[0],
            in_channels=config.in_channels,
            norm=norms[config.norm],
            blocks_down=config.blocks,
        )

    def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
        """Return one map a stage, finest first; see :meth:`MaskableEncoder.forward`."""
        maps = []
        x = self.net.conv_init(x_BCDHW)
        for level in self.net.layers:
            for block in level.get_submodule("blocks").children():
                x = self.run(block, x)
            maps.append(x)
            x = level.get_submodule("downsample")(x)
        return maps

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's description of the layers: the stem, then every block (or every stage, if ``coarse``)."""
        blocks = r"^net\.layers\.(\d+)" if coarse else r"^net\.layers\.(\d+)\.blocks\.(\d+)"
        return {"stem": r"^net\.conv_init", "blocks": [(blocks, None), (r"^net\.layers\.(\d+)\.downsample", (99998,))]}


class MedNeXtEncoder(MaskableEncoder):
    """The encoder of MedNeXt: depthwise convolutions and channel mixing, as in ConvNeXt.

    Args:
        config: The shape; ``kernel`` is the edge of the depthwise kernels. Norms are group norms with one channel a
            group, whatever ``norm`` says; ``conv_bias`` and ``drop_path`` have no meaning here.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        net = MedNeXt(
            spatial_dims=3,
            init_filters=config.features[0],
            in_channels=config.in_channels,
            kernel_size=config.kernel,
            use_residual_connection=True,
            blocks_down=config.blocks[:-1],
            blocks_bottleneck=config.blocks[-1],
            blocks_up=config.blocks[-2::-1],
        )
        self.stem = net.stem
        self.stages = nn.ModuleList([*net.enc_stages, net.bottleneck])
        self.downs = net.down_blocks

    def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
        """Return one map a stage, finest first; see :meth:`MaskableEncoder.forward`."""
        maps = []
        x = self.stem(x_BCDHW)
        for index, stage in enumerate(self.stages):
            if index:
                x = self.run(self.downs[index - 1], x)
            for block in stage.children():
                x = self.run(block, x)
            maps.append(x)
        return maps

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's description of the layers: the stem, then every block (or every stage, if ``coarse``)."""
        return {
            "stem": r"^stem",
            "blocks": [(r"^(?:stages|downs)\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)", None)],
        }
