"""A configuration as plain values, for YAML and JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml


def to_plain(config: Any) -> dict[str, Any]:
    """A configuration as plain dicts, lists, numbers and strings."""
    return _plain(dataclasses.asdict(config))


def to_yaml(config: Any) -> str:
    """A configuration as YAML; reading it back gives an equal one."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
