"""What is damaged and who reads it: one `Kind` for every kind of file that comes from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fuzz.damage import Damage


class Fault(Exception):
    """A damaged file did what none may do."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One valid file, how it is damaged, and what reads it.

    Attributes:
        target: The file.
        damage: Gives the content of a damaged one.
        read: Reads it as a command would; a `UserError` or a `Rejection` is right, all else is a fault.
        write: Puts damaged content in its place, where that is more than writing the file.
        alone: Read in a process of its own, as `harmonize` reads scans: decoders written in C may end it, and the scan
            is then recorded as `worker_died`.
    """

    target: Path
    damage: Damage
    read: Callable[[], object]
    write: Callable[[bytes], object] | None = None
    alone: bool = False

    def put(self, content: bytes) -> None:
        """Put content in the place of the file."""
        if self.write is None:
            self.target.write_bytes(content)
        else:
            self.write(content)


KINDS = {
    "fuzz.kinds_raw": (
        "dicom", "deflated", "enhanced", "rsna-dicom", "rle", "jpeg-lossless", "jpeg-baseline", "jpeg-extended",
        "jpeg-ls", "jpeg-2000", "nifti", "nifti-gz", "png",
    ),
    "fuzz.kinds_tables": (
        "openneuro-csv", "deeplesion-csv", "train-csv", "localizers-csv", "metadata-csv", "hashes-csv", "nbia-json",
        "zip-archive", "parquet", "rejected-parquet", "corpus-json", "journal", "corpus-image", "nyul",
    ),
    "fuzz.kinds_own": ("participants-tsv", "sidecar", "dataset-json", "labels-mask"),
    "fuzz.kinds_models": (
        "recipe", "finetune-recipe", "checkpoint-weights", "checkpoint-training", "checkpoint-seal", "run-json",
        "metrics", "encoder-config", "model-config", "encoder-weights", "model-weights", "nnssl", "nnssl-plan",
    ),
}  # fmt: skip
"""By the module that makes them; its functions are called as they are."""

NAMES = tuple(name for names in KINDS.values() for name in names)


def make(name: str, folder: Path) -> Kind:
    """The kind of that name, with all that it needs in an empty folder."""
    module = next(module for module, names in KINDS.items() if name in names)
    made = getattr(import_module(module), name.replace("-", "_"))(folder)
    assert isinstance(made, Kind)
    return made
