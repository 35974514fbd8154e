"""A small network that finds the box of the arteries in a coarse look at a whole scan, whatever that shows."""

from __future__ import annotations

from finetune.finder.find import Finder, Found
from finetune.finder.folder import FINDER_FILES, finder_sha256, folder_of_fold, read_finder, save_finder

__all__ = [
    "FINDER_FILES",
    "Finder",
    "Found",
    "finder_sha256",
    "folder_of_fold",
    "read_finder",
    "save_finder",
]
