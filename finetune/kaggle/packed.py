"""What runs in a packed folder: its models are loaded once, and asked by the gateway or, to try them, about series."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.geometry import read_geometry
from finetune.kaggle.server import SHARED, answering, serve_calls
from finetune.predict import Predictor
from harmonize.bounded_files import fits
from harmonize.errors import Rejection, UserError
from harmonize.labels import LABELS
from harmonize.parser import Parser
from harmonize.terminal import emit
from headspark.config import run_command
from headspark.folder_kind import read_json

PACK, MODELS, CODE, WHEELS, SUBMISSION = "pack.json", "models", "code", "wheels", "submission.py"
GEOMETRY = "geometry"
"""Folder of the network that sees what stripped files do not say; a pack may have none."""
SCHEMA_VERSION = 1

_SHAPE: dict[str, Any] = {
    "schema_version": int,
    "models": [{"folder": str, "weight": float}],
    "fallback": dict,
    "modules": dict,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """What `finetune kaggle` recorded of the models that it packed.

    Attributes:
        models: Their folders.
        weights: What the logits of each count.
        fallback: What is said of a series that cannot be used, by label.
        geometry: Folder of the network for the geometry of stripped series, or None.
    """

    models: tuple[Path, ...]
    weights: tuple[float, ...]
    fallback: Mapping[str, float]
    geometry: Path | None

    def predictor(self) -> Predictor:
        """Load them.

        Raises:
            UserError: A file is missing or damaged.
        """
        estimate = None if self.geometry is None else read_geometry(self.geometry)
        return Predictor(self.models, weights=self.weights, estimate=estimate)


def read_pack(folder: Path) -> Pack:
    """Read what a packed folder holds.

    Raises:
        UserError: It is damaged, or no packed folder.
    """
    found = read_json(folder / PACK)
    if found is None or not fits(found, _SHAPE) or found["schema_version"] != SCHEMA_VERSION:
        raise UserError(f"{folder / PACK}: damaged, or of another version; pack again with `finetune kaggle`")
    fallback, models = found["fallback"], found["models"]
    if fallback.keys() != set(LABELS) or not all(isinstance(p, float) and 0 <= p <= 1 for p in fallback.values()):
        raise UserError(f"{folder / PACK}: its fallback is no probability of each label; pack again")
    # Only their own names count: a folder that is named elsewhere is not this pack's.
    folders = tuple(folder / MODELS / Path(model["folder"]).name for model in models)
    return Pack(
        models=folders,
        weights=tuple(model["weight"] for model in models),
        fallback=fallback,
        geometry=folder / GEOMETRY if found.get(GEOMETRY) else None,
    )


def main(folder: Path, argv: Sequence[str] | None = None) -> int:
    """Run the server of a packed folder, or try it; an error is one line on standard error.

    Args:
        folder: The packed folder.
        argv: Options; None takes those of the process.
    """

    def run(words: Sequence[str]) -> int:
        options = submission_parser().parse_args(words)
        pack = read_pack(folder)
        predictor = pack.predictor()
        if options.series:
            told = tried(predictor, pack.fallback, options.series)
            emit({**told, "modules": _imported()} if options.modules else told)
            faults = [row["fault"] for row in told["answers"]]
            if all(faults):
                raise UserError(f"all {len(faults)} series got the fallback, the first because of {faults[0]}")
        else:
            serve_calls(answering(predictor, pack.fallback, lambda: options.shared))
        return 0

    return run_command(run, sys.argv[1:] if argv is None else argv)


def tried(predictor: Predictor, fallback: Mapping[str, float], paths: Sequence[Path]) -> dict[str, Any]:
    """What is said of series, for JSON: a row each as the gateway gets it, and why one is the fallback.

    Args:
        predictor: The models.
        fallback: See `Pack`.
        paths: Folders of one series each.
    """
    rows = []
    for path in paths:
        row: dict[str, Any] = {"series": path.name, "fault": None, "warnings": [], **fallback}
        try:
            answer = predictor.answer(path)
            row |= {**answer.probabilities, "warnings": answer.warnings}
        except (Rejection, UserError) as error:
            row["fault"] = str(error)
        rows.append(row)
    return {"answers": rows}


def _imported() -> list[str]:
    return sorted({name.partition(".")[0] for name in sys.modules})


def submission_parser() -> argparse.ArgumentParser:
    """The options of a packed folder's script."""
    parser = Parser(prog=SUBMISSION, description="Answer the competition's gateway.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument(
        "--shared", type=Path, default=SHARED, metavar="FOLDER", help="emptied in every call; default %(default)s"
    )
    parser.add_argument(
        "--try", dest="series", type=Path, nargs="+", metavar="SERIES", help="answer these folders, print JSON, and end"
    )
    parser.add_argument("--modules", action="store_true", help=argparse.SUPPRESS)  # for whoever packs
    return parser
