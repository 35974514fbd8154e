"""Exchange weights with nnssl, OpenMind and nnU-Net.

nnU-Net's modules list every layer twice: as ``conv`` and ``norm``, and in order under ``all_modules``, which is what
runs. Where nnssl has untied the two, ``conv`` and ``norm`` are left at their initialisation; so what stands under
``all_modules`` is what is read, and both are written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harmonize.errors import UserError, WrongUse
from harmonize.files import write_json
from headspark.channels import DEFAULT_CT_WINDOWS
from headspark.decoder import UNetDecoder
from headspark.encoder import ResidualEncoder
from headspark.folder_kind import NNSSL_CHECKPOINT, read_json, seen_at
from headspark.folders import replaced
from headspark.interop.adaptation_plan import (
    PLAN_NAME,
    TRAINER_NAME,
    adaptation_plan,
    config_of,
    plan_beside,
    section,
    spacing_of,
)
from headspark.weights import load_weights

ONE_MM = (1.0, 1.0, 1.0)
"""The spacing of nnssl's ``onemmiso``, where no plan says another."""

ENCODER_PREFIX = "encoder."
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
"""Prefixes that data parallelism and compilation put before every key."""

IN_ORDER = re.compile(r"^(?P<layer>.+)\.all_modules\.(?P<index>[01])\.(?P<parameter>\w+)$")
_MAKE_SCALAR = np.float64(0).__reduce__()[0]
NUMPY_SCALARS: list[Any] = [
    *((_MAKE_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float16", "float32", "float64")),
]
"""What a number of NumPy is pickled as: nnssl's SparkMAETrainer leaves its losses so. They run no code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NnsslCheckpoint:
    """An encoder that was read from an nnssl checkpoint.

    Attributes:
        encoder: The encoder, in evaluation mode.
        plan: The adaptation plan, empty where there was none.
        spacing: Voxel spacing of the pretraining in mm, where the plan tells.
        dead_keys: Keys under ``conv`` and ``norm`` that disagreed with what had been trained and were not used.
    """

    encoder: ResidualEncoder
    plan: dict[str, Any]
    spacing: tuple[float, ...] | None
    dead_keys: tuple[str, ...]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What `headspark.save_encoder` and fine-tuning want to know. nnssl z-scores its images and clips nothing."""
        return {
            "orientation": "RAS",
            "spacing_mm": list(self.spacing or ONE_MM),
            "ct_windows": list(DEFAULT_CT_WINDOWS[: self.encoder.config.in_channels]),
            "mri_scaling": "linear",
            "mri_norms": {str(section(self.plan, "pretrain_plan").get("dataset_name", "nnssl")): "zscore"},
        }


def read_nnssl(path: Path, *, in_channels: int | None = 3) -> NnsslCheckpoint:
    """Read the encoder of an nnssl or OpenMind checkpoint.

    Args:
        path: ``checkpoint_final.pth`` or the folder that holds it; ``adaptation_plan.json`` is found beside it, or
            inside it.
        in_channels: Channels that the encoder shall take. The stem is repeated and divided, so that one image in all
            channels gives the same features as in the original. None leaves the stem as it is.

    Raises:
        UserError: The file cannot be read without running foreign code, or holds no residual encoder.

    Example:
        Features of a published encoder, for an MRI::

            encoder = read_nnssl(Path("ResEncL-OpenMind-MAE"), in_channels=1).encoder
            maps = encoder(zscored_B1DHW)
    """
    path = path / NNSSL_CHECKPOINT if path.is_dir() else path
    checkpoint = _load(path)
    plan = checkpoint.get("nnssl_adaptation_plan") or plan_beside(path)
    weights = {WRAPPERS.sub("", key): value for key, value in checkpoint["network_weights"].items()}
    weights = {
        key.removeprefix(ENCODER_PREFIX): value for key, value in weights.items() if key.startswith(ENCODER_PREFIX)
    }
    odd = next((key for key, value in weights.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise UserError(f"{path} is damaged: its {ENCODER_PREFIX + odd!r} is no tensor")
    trained, dead = trained_weights(weights)
    if "stem.convs.0.conv.weight" not in trained:
        raise UserError(f"{path} holds no residual encoder (no stem.convs.0.conv); only ResEnc checkpoints are read")
    if in_channels is not None:
        trained["stem.convs.0.conv.weight"] = spread_stem(trained["stem.convs.0.conv.weight"], in_channels)
    encoder = ResidualEncoder(config_of(trained, plan)).eval()
    load_weights(encoder, trained, where=f"{path}", wanted="a residual encoder of that shape")
    return NnsslCheckpoint(encoder=encoder, plan=plan, spacing=spacing_of(plan), dead_keys=dead)


def write_nnssl(
    folder: Path,
    encoder: ResidualEncoder,
    *,
    decoder: UNetDecoder | None = None,
    patch: tuple[int, int, int],
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    dataset: str = "headspark",
) -> Path:
    """Write ``checkpoint_final.pth`` and ``adaptation_plan.json`` as nnU-Net's fine-tuning from nnssl takes them.

    An encoder with three input channels suits a downstream task with three; for MRI see :func:`single_channel`.

    Args:
        folder: Where the two files go.
        encoder: The encoder.
        decoder: nnU-Net's own decoder, if that was pretrained too.
        patch: Patch that is recommended downstream, in voxels.
        spacing: Spacing of the pretraining in mm.
        dataset: What to call the pretraining data.

    Returns:
        The checkpoint's path.

    Raises:
        UserError: With exit code 2: the folder holds something else, which stays as it is.
    """
    weights = duplicated_weights(encoder, ENCODER_PREFIX)
    if decoder is not None:
        weights |= duplicated_weights(decoder, "decoder.")
    plan = adaptation_plan(encoder.config, patch=patch, spacing=spacing, dataset=dataset)
    checkpoint = {
        "network_weights": weights,
        "nnssl_adaptation_plan": plan,
        "trainer_name": TRAINER_NAME,
        "current_epoch": 0,
        "init_args": {},
        "citations": [],
    }
    with replaced(
        folder, names=(NNSSL_CHECKPOINT, PLAN_NAME), is_ours=_is_ours, what="checkpoint for nnU-Net"
    ) as temporary:
        torch.save(checkpoint, temporary / NNSSL_CHECKPOINT)
        write_json(temporary / PLAN_NAME, plan)
    return folder / NNSSL_CHECKPOINT


def single_channel(encoder: ResidualEncoder) -> ResidualEncoder:
    """Return the encoder for one image instead of the same image in all channels; the features are the same.

    Args:
        encoder: An encoder whose input channels hold the same MRI.
    """
    state = dict(encoder.state_dict())
    state["stem.convs.0.conv.weight"] = state["stem.convs.0.conv.weight"].sum(1, keepdim=True)
    single = ResidualEncoder(replace(encoder.config, in_channels=1)).to(state["stem.convs.0.conv.weight"].dtype)
    single.load_state_dict(state)
    return single.train(encoder.training)


def trained_weights(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Choose what was trained among keys that stand for the same layer.

    Args:
        weights: State dict with ``conv``/``norm`` keys, ``all_modules`` keys, or both.

    Returns:
        A state dict with ``conv`` and ``norm`` keys alone, and the keys whose value disagreed and was not used.
    """
    chosen = {key: value for key, value in weights.items() if ".all_modules." not in key}
    dead = []
    for key, value in weights.items():
        match = IN_ORDER.match(key)
        if match is None:
            continue
        kind = "conv" if match["index"] == "0" else "norm"
        plain = f"{match['layer']}.{kind}.{match['parameter']}"
        if plain in chosen and not torch.equal(chosen[plain], value):
            dead.append(plain)
        chosen[plain] = value
    return chosen, tuple(dead)


def duplicated_weights(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Return a state dict on the CPU that has every layer under both of nnU-Net's names."""
    weights = {}
    for key, value in module.state_dict().items():
        value = value.detach().cpu()
        weights[prefix + key] = value
        layer, _, rest = key.rpartition(".conv.")
        if layer:
            weights[f"{prefix}{layer}.all_modules.0.{rest}"] = value
        layer, _, rest = key.rpartition(".norm.")
        if layer:
            weights[f"{prefix}{layer}.all_modules.1.{rest}"] = value
    return weights


def spread_stem(weight: Tensor, channels: int) -> Tensor:
    """Repeat the first convolution over more channels, divided, so that copies of an image give the same response.

    Args:
        weight: (C_out, C_in, k, k, k).
        channels: A multiple of C_in.

    Raises:
        UserError: It is not.
    """
    present = weight.shape[1]
    if channels == present:
        return weight
    if channels % present:
        raise WrongUse(f"a stem of {present} channels cannot be spread over {channels}")
    return weight.repeat(1, channels // present, 1, 1, 1) * (present / channels)


def _load(path: Path) -> dict[str, Any]:
    """Load a checkpoint without running any code that it may bring."""
    if not path.is_file():
        folder = path.parent if path.name == NNSSL_CHECKPOINT and path.parent.exists() else path
        raise WrongUse(f"{folder}: {seen_at(folder)}; there is no {NNSSL_CHECKPOINT}")
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    # What a damaged archive or a foreign pickle makes PyTorch raise has no common base below Exception.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as plain weights, and nothing else is loaded: {reason}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("network_weights"), Mapping):
        raise UserError(f"{path} is no nnssl checkpoint: it has no network_weights")
    return checkpoint


def _is_ours(folder: Path) -> bool:
    """Whether a folder that holds no other files than the two was written by `write_nnssl`."""
    plan = read_json(folder / PLAN_NAME)
    if not isinstance(plan, dict) or plan.get("trainer_name") != TRAINER_NAME:
        return False
    try:
        return _load(folder / NNSSL_CHECKPOINT).get("trainer_name") == TRAINER_NAME
    except UserError:
        return False
