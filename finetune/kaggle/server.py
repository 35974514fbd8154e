"""The competition's inference server around a fine-tuned model.

In the competition's notebook::

    from finetune.kaggle.server import serve
    serve("/kaggle/input/my-model")
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from finetune.evaluation.predictions import PREDICTIONS, read_of_run
from finetune.kaggle.limited import Limited, TooLong
from finetune.predict import Predictor
from harmonize.errors import Rejection, UserError
from harmonize.labels import LABELS
from harmonize.terminal import warn

RERUN = "KAGGLE_IS_COMPETITION_RERUN"
"""Set by Kaggle where the hidden test set is scored; unset where the notebook is only tried."""

SHARED = Path("/kaggle/shared")
"""Where the gateway copies each series before it asks; nobody but the server empties it."""

NO_OPINION = 0.5

LIMIT_S = 20 * 60.0
"""How long a series may take: the gateway gives up, and with it the submission, after 30 minutes."""


def serve(folder: str | Path, *more: str | Path) -> None:
    """Answer the competition's gateway until it is done.

    Args:
        folder: Of a finished `finetune train` run, or of a cross-validation. It is loaded before the server starts,
            which has 15 minutes.
        more: Others, which answer together with it.
    """
    serve_calls(make_predict(Path(folder), *map(Path, more)))


def serve_calls(predict: Callable[[str], Any]) -> None:
    """Hand the gateway the function that it calls, and answer until it is done."""
    # Kaggle puts this package beside the competition's data; it is nowhere else.
    import kaggle_evaluation.rsna_inference_server as gateway

    server = gateway.RSNAInferenceServer(predict)
    if os.getenv(RERUN):
        server.serve()
    else:
        server.run_local_gateway()


def make_predict(folder: Path, *more: Path) -> Callable[[str], Any]:
    """The function that the gateway calls: a series' folder in, a frame of one row and 14 columns out."""
    return answering(Predictor([folder, *more] if more else folder), default_row(folder), lambda: SHARED)


def answering(
    predictor: Predictor, default: Mapping[str, float], shared: Callable[[], Path], limit_s: float = LIMIT_S
) -> Callable[[str], Any]:
    """The function that the gateway calls, of models that are loaded.

    Args:
        predictor: The models.
        default: What is said of a series that they cannot be asked about, by label.
        shared: Which folder each call leaves empty.
        limit_s: After so many seconds a series is answered with the default, and what hangs is left behind.
    """
    answer_within = Limited(predictor.answer, limit_s)

    def predict(series_path: str) -> Any:
        began = time.monotonic()
        try:
            answer = answer_within(Path(series_path))
            row: Mapping[str, float] = answer.probabilities
            for warning in answer.warnings:
                warn(f"{series_path}: {warning}")
        # One series that fails would void the whole submission, so here alone every fault becomes a row.
        except Exception as error:
            # Whose message is not ours may quote a header.
            said = f": {error}" if isinstance(error, UserError | Rejection | TooLong) else ""
            warn(f"{series_path}: {type(error).__name__}{said}; answered with the default row")
            row = default
        finally:
            empty(shared())
        warn(f"{series_path}: {time.monotonic() - began:.1f} s")
        return one_row(row)

    return predict


def empty(folder: Path) -> None:
    """Remove what lies in a folder, but not the folder; links go, what they point to stays.

    What cannot be removed is said and left: an answer is worth more than a tidy disk.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        warn(f"{folder}: cannot be emptied ({error.strerror})")
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                Path(entry.path).unlink()
        except OSError as error:
            warn(f"{entry.path}: cannot be removed ({error.strerror})")


def default_row(folder: Path) -> dict[str, float]:
    """The median prediction of each label on the held-out fold: it moves a failed series neither up nor down."""
    file = folder / PREDICTIONS
    if not file.exists():
        return dict.fromkeys(LABELS, NO_OPINION)
    medians = read_of_run(file, LABELS)[list(LABELS)].median()
    return {label: float(medians[label]) for label in LABELS}


def one_row(probabilities: Mapping[str, float]) -> Any:
    """A frame of one row: polars' where that is installed, as it is on Kaggle, else pandas'."""
    columns = {label: [float(probabilities[label])] for label in LABELS}
    try:
        import polars
    except ImportError:
        return pd.DataFrame(columns)
    return polars.DataFrame(columns)
