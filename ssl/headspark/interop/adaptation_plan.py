"""nnssl's adaptation plan, which lies beside a checkpoint: which network it is of, and where its weights are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from harmonize.errors import UserError, WrongUse
from headspark.encoder import PRESETS, EncoderConfig
from headspark.encoder.base import NORM_EPS
from headspark.folder_kind import read_json

PLAN_NAME = "adaptation_plan.json"
TRAINER_NAME = "headspark.SparK"
"""Tells our own checkpoints from those that others wrote under the same names."""

RESENC_L = "ResEncL"
RESENC_CLASS = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


def config_of(weights: Mapping[str, Tensor], plan: Mapping[str, Any]) -> EncoderConfig:
    """Read the shape of a residual encoder from its weights; only the strides need the plan.

    Args:
        weights: State dict with ``conv`` and ``norm`` keys.
        plan: The adaptation plan; without one, every stage but the first is taken to halve the grid, as nnU-Net's do.
    """
    blocks: dict[int, int] = {}
    features: dict[int, int] = {}
    for key, value in weights.items():
        match = re.match(r"stages\.(\d+)\.blocks\.(\d+)\.conv1\.conv\.weight$", key)
        if match:
            stage, block = int(match[1]), int(match[2])
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
            features[stage] = value.shape[0]
    stem = weights["stem.convs.0.conv.weight"]
    return EncoderConfig(
        in_channels=stem.shape[1],
        features=tuple(features[stage] for stage in sorted(features)),
        blocks=tuple(blocks[stage] for stage in sorted(blocks)),
        strides=_strides(plan, len(blocks)),
        kernel=stem.shape[2],
        norm="batch" if "stem.convs.0.norm.running_mean" in weights else "instance",
        conv_bias="stem.convs.0.conv.bias" in weights,
    )


def adaptation_plan(
    config: EncoderConfig, *, patch: tuple[int, int, int], spacing: tuple[float, float, float], dataset: str
) -> dict[str, Any]:
    """Describe an encoder as nnssl does, for nnU-Net to build its network and to find the weights."""
    return {
        "architecture_plans": _architecture(config),
        "pretrain_plan": {
            "dataset_name": dataset,
            "plans_name": "headspark",
            "original_median_spacing_after_transp": list(spacing),
            "image_reader_writer": "NibabelReaderWriter",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {
                "onemmiso": {
                    "data_identifier": "headspark",
                    "preprocessor_name": "DefaultPreprocessor",
                    "spacing_style": "onemmiso",
                    "normalization_schemes": ["ZScoreNormalization"] * config.in_channels,
                    "use_mask_for_norm": False,
                    "resampling_fn_data": "resample_data_or_seg_to_shape",
                    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
                    "resampling_fn_mask": "resample_data_or_seg_to_shape",
                    "resampling_fn_mask_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
                    "spacing": list(spacing),
                    "patch_size": list(patch),
                }
            },
            "experiment_planner_used": "headspark",
        },
        "pretrain_num_input_channels": config.in_channels,
        "recommended_downstream_patchsize": list(patch),
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"],
        "key_to_lpe": None,
        "trainer_name": TRAINER_NAME,
    }


def _architecture(config: EncoderConfig) -> dict[str, Any]:
    if replace(config, in_channels=PRESETS["resenc_l"].in_channels, drop_path=0.0) == PRESETS["resenc_l"]:
        return {"arch_class_name": RESENC_L, "arch_kwargs": None, "arch_kwargs_requiring_import": None}
    norms = {
        "instance": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "batch": "torch.nn.modules.batchnorm.BatchNorm3d",
    }
    if config.norm not in norms:
        raise WrongUse(f"nnU-Net has no encoder with encoder.norm '{config.norm}'")
    stages = len(config.features)
    return {
        "arch_class_name": RESENC_CLASS,
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(config.features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[config.kernel] * 3 for _ in range(stages)],
            "strides": [[stride] * 3 for stride in config.strides],
            "n_blocks_per_stage": list(config.blocks),
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": config.conv_bias,
            "norm_op": norms[config.norm],
            "norm_op_kwargs": {"eps": NORM_EPS, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.modules.activation.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "arch_kwargs_requiring_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _strides(plan: Mapping[str, Any], stages: int) -> tuple[int, ...]:
    kwargs = section(section(plan, "architecture_plans"), "arch_kwargs")
    found = kwargs.get("strides", [1] + [2] * (stages - 1))
    strides: list[int] = []
    for stride in found if isinstance(found, list | tuple) else [None]:
        edges: list[Any] = list(stride) if isinstance(stride, list | tuple) else [stride]
        if not edges or any(type(edge) is not int or edge != edges[0] for edge in edges):
            raise UserError(f"the adaptation plan has strides of {stride}; only isotropic ones are read")
        strides.append(edges[0])
    return tuple(strides)


def spacing_of(plan: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Voxel spacing of the pretraining in mm, where the plan tells."""
    configurations = section(section(plan, "pretrain_plan"), "configurations")
    for name in configurations:
        spacing = section(configurations, name).get("spacing")
        if isinstance(spacing, list | tuple) and spacing and all(type(edge) in (int, float) for edge in spacing):
            return tuple(float(edge) for edge in spacing)
    return None


def section(plan: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a plan; empty where it is absent or something else."""
    found = plan.get(name)
    return found if isinstance(found, Mapping) else {}


def plan_beside(path: Path) -> dict[str, Any]:
    """The plan that lies beside a checkpoint; empty where there is none.

    Raises:
        UserError: It is damaged.
    """
    file = path.parent / PLAN_NAME
    if not file.is_file():
        return {}
    plan = read_json(file)
    if not isinstance(plan, dict):
        raise UserError(f"{file} is damaged, and without it the strides are not known: download it again")
    return plan
