"""SparK (arXiv 2301.03580): hide most of a volume, encode the rest, and predict what was hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from headspark.decoder import DecoderConfig, UNetDecoder, build_decoder
from headspark.encoder import MaskableEncoder
from headspark.encoder.base import NORM_EPS
from headspark.hybrid import EmbeddingHead, HybridConfig
from headspark.masking import expand_cells
from headspark.packed import Backend, MaskedMap, MaskGeometry, TokenMap, encode_visible
from headspark.vessels import UNKNOWN, VesselConfig, nearness

TARGET_EPS = 1e-6
"""Added to the variance of a patch when targets are normalised per patch (MAE, arXiv 2111.06377)."""

TOKEN_STD = 0.02
"""Standard deviation of the initial mask tokens (SparK)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SparKConfig:
    """How the hidden voxels are predicted and scored.

    Attributes:
        backend: ``packed`` computes only what is visible; ``emulated`` computes everything and masks it (for tests).
        normalise_targets: Score against targets with zero mean and unit variance in each mask block and channel.
    """

    backend: Backend = "packed"
    normalise_targets: bool = False


AGREEMENT_TERMS = ("agreement", "embedding_std")
"""Of hybrid pretraining: its second term, and how far the embeddings of heads differ."""


class Term(NamedTuple):
    """One part of a loss, or what is watched beside it.

    Attributes:
        value: Its mean in this pass.
        weight: By which the means of passes are averaged: over how many things it was taken.
    """

    value: Tensor
    weight: Tensor


class SparKOutput(NamedTuple):
    """What a forward pass gives.

    Attributes:
        loss: What is to be made small: the squared error, and the other terms by their weights.
        scored_voxels: How many voxels were scored.
        prediction_BCDHW: The whole predicted volume, in the space of the targets.
        error: Mean squared error over hidden, scored voxels and all channels; 0 where none is scored.
        terms: What else was measured, by the names of `SparK.terms`.
    """

    loss: Tensor
    scored_voxels: Tensor
    prediction_BCDHW: Tensor
    error: Tensor
    terms: dict[str, Term]

    @property
    def summed_loss(self) -> Tensor:
        """The loss as a sum over voxels: what passes and ranks add up, and a step divides by all their voxels.

        A pass that scores none has no error, but its part in the gradient of a term over all ranks.
        """
        return self.loss * self.scored_voxels.clamp(min=1)


class SparK(nn.Module):
    """An encoder with what it needs to be pretrained.

    Args:
        encoder: The encoder.
        decoder: The decoder's configuration.
        config: Backend and targets.
        in_channels: Channels of the volume.
        vessels: Whether a channel that tells how near vessels are is predicted too.
        hybrid: Whether a second masking is encoded and compared.

    Attributes:
        terms: What a training pass measures beside the squared error, by name.

    Example:
        >>> from headspark.encoder import PRESETS, build_encoder
        >>> from headspark.masking import draw_mask
        >>> from headspark.packed import MaskGeometry
        >>> model = SparK(build_encoder(PRESETS["demo"]), DecoderConfig())
        >>> geometry = MaskGeometry(draw_mask(2, (2, 2, 2), 0.75))
        >>> out = model(torch.randn(2, 3, 32, 32, 32), geometry)
        >>> out.loss.isfinite().item(), out.prediction_BCDHW.shape
        (True, torch.Size([2, 3, 32, 32, 32]))
    """

    def __init__(
        self,
        encoder: MaskableEncoder,
        decoder: DecoderConfig,
        config: SparKConfig | None = None,
        *,
        in_channels: int = 3,
        vessels: VesselConfig | None = None,
        hybrid: HybridConfig | None = None,
    ) -> None:
        super().__init__()
        self.config = config or SparKConfig()
        self.vessels, self.hybrid = vessels or VesselConfig(), hybrid or HybridConfig()
        self.in_channels = in_channels
        tells_distance = self.vessels.distance_weight > 0
        self.encoder = encoder
        self.decoder = build_decoder(decoder, encoder.channels, encoder.strides, in_channels + tells_distance)
        self._decodes_scored = decoder.where == "scored"
        scales, widths = self.decoder.scales, self.decoder.widths
        self._read = frozenset((*scales, len(encoder.channels) - 1))
        transferable = decoder.kind == "unet"
        self.densify = nn.ModuleList(
            ProjectSkip(encoder.channels[scale], width, project=not transferable)
            for scale, width in zip(scales, widths, strict=True)
        )
        self.embed = EmbeddingHead(encoder.channels[-1], self.hybrid) if self.hybrid.weight > 0 else None
        self.terms = (("vessel_distance",) if tells_distance else ()) + (AGREEMENT_TERMS if self.embed else ())
        self.to(memory_format=torch.channels_last_3d)  # the layout of packed blocks; matrix products take it as it is

    def forward(
        self,
        x_BCDHW: Tensor,
        geometry: MaskGeometry,
        scored_B1DHW: Tensor | None = None,
        wanted: MaskGeometry | None = None,
        steps_B1DHW: Tensor | None = None,
        twice: MaskGeometry | None = None,
    ) -> SparKOutput:
        """Predict the hidden voxels and score the prediction.

        Args:
            x_BCDHW: The volume.
            geometry: The mask over blocks.
            scored_B1DHW: Voxels that may be scored: neither background nor defaced. None scores all hidden voxels.
            wanted: Blocks that hold a hidden one of them, for whom it saves a wait for the accelerator to tell; only a
                decoder of scored blocks asks. None: they are looked for.
            steps_B1DHW: Distances to vessels, float, as `headspark.vessels.distance_map` counts them; only whoever
                predicts them asks.
            twice: The mask, and behind it a second one of the same samples, of which little is visible; only hybrid
                pretraining asks.
        """
        geometry = geometry.to(x_BCDHW.device)
        hidden_B1DHW = ~_seen(x_BCDHW, geometry)
        if scored_B1DHW is not None:
            hidden_B1DHW &= scored_B1DHW.bool()
        maps, second = self._encode_twice(x_BCDHW, geometry, twice)
        decoded_BCDHW = self.decode(maps, self._wanted(hidden_B1DHW, geometry, wanted))
        prediction_BCDHW, near_B1DHW = self._parted(decoded_BCDHW)
        target_BCDHW = x_BCDHW
        if self.config.normalise_targets:
            target_BCDHW, _, _ = normalise_patches(x_BCDHW, geometry.grid)
        error, scored = masked_mse(prediction_BCDHW, target_BCDHW, hidden_B1DHW)
        loss = error
        terms: dict[str, Term] = {}
        if near_B1DHW is not None and steps_B1DHW is not None:
            known_B1DHW = hidden_B1DHW & (steps_B1DHW < UNKNOWN)
            term = Term(*masked_mse(near_B1DHW, nearness(steps_B1DHW, self.vessels.reach_mm), known_B1DHW))
            # By all scored voxels, which is what a step divides by: a scan without known vessels has no say.
            loss = loss + self.vessels.distance_weight * term.value * term.weight / scored.clamp(min=1)
            terms["vessel_distance"] = term
        if self.embed is not None and second is not None:
            agreement = self.embed(maps[-1], second, scored)
            # A step adds up what ranks give by their scored voxels: the term once, but of its gradient all parts.
            of_all = agreement.loss * (agreement.voxels / scored.clamp(min=1))
            loss = loss + self.hybrid.weight * (of_all + (agreement.loss - of_all).detach())
            passes = agreement.spread.new_ones(())
            terms |= dict(
                zip(AGREEMENT_TERMS, (Term(agreement.loss, passes), Term(agreement.spread, passes)), strict=True)
            )
        return SparKOutput(loss, scored, prediction_BCDHW, error, terms)

    def _encode_twice(
        self, x_BCDHW: Tensor, geometry: MaskGeometry, twice: MaskGeometry | None
    ) -> tuple[list[MaskedMap], MaskedMap | None]:
        """Return the maps under the first mask, and the coarsest under the second; one pass encodes both."""
        if self.embed is None or twice is None:
            return encode_visible(self.encoder, x_BCDHW, geometry, self.config.backend), None
        batch = len(x_BCDHW)
        maps = encode_visible(self.encoder, torch.cat([x_BCDHW, x_BCDHW]), twice, self.config.backend)
        first = [maps[scale].samples(0, batch) if scale in self._read else maps[scale] for scale in range(len(maps))]
        return first, maps[-1].samples(batch, 2 * batch)

    def predict(self, x_BCDHW: Tensor, geometry: MaskGeometry, wanted: MaskGeometry | None = None) -> Tensor:
        """Return the predicted volume (B, C, D, H, W) in the space of the targets.

        Args:
            x_BCDHW: The volume.
            geometry: The mask over blocks.
            wanted: Hidden blocks that are predicted alone, by a decoder that can; None: everything.
        """
        maps = encode_visible(self.encoder, x_BCDHW, geometry, self.config.backend)
        return self._parted(self.decode(maps, wanted))[0]

    def decode(self, maps: Sequence[MaskedMap], wanted: MaskGeometry | None = None) -> Tensor:
        """Return what the decoder makes of the encoder's maps: the volume, and behind it the nearness of vessels."""
        skips = [project(maps[scale]) for project, scale in zip(self.densify, self.decoder.scales, strict=True)]
        return self.decoder(skips) if wanted is None else self.decoder(skips, wanted)

    def volume_decoder(self) -> UNetDecoder | None:
        """Return nnU-Net's decoder of the volume alone, for whoever takes it along; None where this is a light one."""
        decoder = self.decoder
        if not isinstance(decoder, UNetDecoder) or self.vessels.distance_weight == 0:
            return decoder if isinstance(decoder, UNetDecoder) else None
        weights = decoder.state_dict()
        cut = {name: value[: self.in_channels] for name, value in weights.items() if name.startswith("seg_layers.")}
        volume = UNetDecoder(self.encoder.channels, self.encoder.strides, self.in_channels)
        volume.load_state_dict(weights | cut)
        return volume.train(decoder.training)

    def _parted(self, decoded_BCDHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """The volume and the nearness of vessels in what was decoded."""
        if self.vessels.distance_weight == 0:
            return decoded_BCDHW, None
        return decoded_BCDHW[:, : self.in_channels], decoded_BCDHW[:, self.in_channels :]

    def _wanted(
        self, hidden_B1DHW: Tensor, geometry: MaskGeometry, told: MaskGeometry | None = None
    ) -> MaskGeometry | None:
        """Return the blocks that hold a hidden voxel which counts; None where all is decoded, or none counts."""
        if not self._decodes_scored:
            return None
        wanted = told or MaskGeometry(expand_cells(hidden_B1DHW[:, 0], geometry.grid)[:, 0].cpu())
        return wanted.to(hidden_B1DHW.device) if wanted.blocks else None

    @torch.no_grad()
    def reconstruct(self, x_BCDHW: Tensor, geometry: MaskGeometry, scored_B1DHW: Tensor | None = None) -> Tensor:
        """Return the volume with its hidden voxels predicted, for a person to look at.

        Normalised targets are brought back with the mean and deviation of the true patch.

        Args:
            x_BCDHW: The volume.
            geometry: The mask over blocks.
            scored_B1DHW: As for `forward`; a decoder of scored blocks leaves the others zero.
        """
        seen_B1DHW = _seen(x_BCDHW, geometry)
        hidden_B1DHW = ~seen_B1DHW if scored_B1DHW is None else ~seen_B1DHW & scored_B1DHW.bool()
        wanted = self._wanted(hidden_B1DHW, geometry)
        prediction_BCDHW = self.predict(x_BCDHW, geometry, wanted).to(x_BCDHW.dtype)
        if self.config.normalise_targets:
            _, mean, deviation = normalise_patches(x_BCDHW, geometry.grid)
            prediction_BCDHW = prediction_BCDHW * deviation + mean
        return torch.where(seen_B1DHW, x_BCDHW, prediction_BCDHW)


def _seen(x_BCDHW: Tensor, geometry: MaskGeometry) -> Tensor:
    """Return the mask at the volume's voxels, bool (B, 1, D, H, W); True where they are visible."""
    return expand_cells(geometry.to(x_BCDHW.device).mask_here(), tuple(x_BCDHW.shape[2:]))


class ProjectSkip(nn.Module):
    """Make a masked map a skip of the decoder: project it, and give it a learned token for its hidden cells.

    Args:
        channels: Channels of the encoder's map.
        width: Channels that the decoder wants.
        project: Normalise the map and project it to ``width``, as SparK does. Without, the decoder sees the map as it
            will when it is fine-tuned.
    """

    def __init__(self, channels: int, width: int, *, project: bool) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(channels, eps=NORM_EPS, affine=True) if project else nn.Identity()
        self.project = nn.Conv3d(channels, width, 1) if project else nn.Identity()
        # Projected tokens are tokens again, so that only visible cells need be projected.
        self.token_C = nn.Parameter(torch.empty(width))
        nn.init.trunc_normal_(self.token_C, std=TOKEN_STD)

    def forward(self, map_: MaskedMap) -> TokenMap:
        """Return the map with its token; the decoder makes it dense where it reads it."""
        return TokenMap(self.project(self.norm(map_)), self.token_C)


def masked_mse(prediction_BCDHW: Tensor, target_BCDHW: Tensor, scored_B1DHW: Tensor) -> tuple[Tensor, Tensor]:
    """Average the squared error over scored voxels and all channels, in float32.

    Args:
        prediction_BCDHW: The prediction.
        target_BCDHW: The truth; what is not scored may hold anything, even NaN.
        scored_B1DHW: True where the error counts.

    Returns:
        The loss, 0 (with a gradient of 0) where nothing is scored; and the number of scored voxels.
    """
    dtype = torch.promote_types(prediction_BCDHW.dtype, torch.float32)
    error = prediction_BCDHW.to(dtype) - target_BCDHW.to(dtype)
    error = torch.where(scored_B1DHW, error, error.new_zeros(()))
    scored = scored_B1DHW.sum()
    return error.square().sum() / (scored * prediction_BCDHW.shape[1]).clamp(min=1), scored


def normalise_patches(x_BCDHW: Tensor, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Give each channel of each mask block zero mean and unit variance.

    Args:
        x_BCDHW: The volume.
        grid: Blocks along each axis.

    Returns:
        The normalised volume, and the mean and deviation that were taken out, all of the volume's shape.
    """
    d, h, w = (edge // cells for edge, cells in zip(x_BCDHW.shape[2:], grid, strict=True))
    blocks = x_BCDHW.unflatten(4, (grid[2], w)).unflatten(3, (grid[1], h)).unflatten(2, (grid[0], d))
    variance, mean = torch.var_mean(blocks, (3, 5, 7), correction=0, keepdim=True)
    deviation = (variance + TARGET_EPS).sqrt()
    normalised = (blocks - mean) / deviation
    return tuple(part.expand_as(blocks).reshape(x_BCDHW.shape) for part in (normalised, mean, deviation))  # type: ignore[return-value]
