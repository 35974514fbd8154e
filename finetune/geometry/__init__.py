"""A small network that sees on a stack of pictures how large they are, how far apart, and which way round."""

from __future__ import annotations

from finetune.geometry.folder import GEOMETRY_FILES, read_geometry, save_geometry
from finetune.geometry.reader import GeometryReader

__all__ = ["GEOMETRY_FILES", "GeometryReader", "read_geometry", "save_geometry"]
