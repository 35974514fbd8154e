"""What is measured on."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

import torch
from bench_harmonize import describe_machine

from gpu.setting import Figures, Setting

PACKAGES = ("triton", "accelerate", "timm", "monai")


def facts(setting: Setting) -> Iterator[Figures]:
    """The machine, and the versions that matter."""
    yield describe_machine() | {"system": platform.platform(), "torch": torch.__version__}
    yield {name: _version(name) for name in PACKAGES}
    if setting.device.type == "cuda":
        found = torch.cuda.get_device_properties(0)
        yield {
            "gpu": found.name,
            "gib": round(found.total_memory / 2**30, 1),
            "multiprocessors": found.multi_processor_count,
            "capability": f"{found.major}.{found.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
