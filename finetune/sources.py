"""What a run is made of besides its recipe: corpus, labels, encoder, and the options of a command that name them."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from harmonize.corpus import Corpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What runs train on.

    Attributes:
        corpus: With the series.
        encoder: Folder or Hub repository of a pretrained encoder; None trains the recipe's from scratch.
        brain_model: SynthStrip's weights, for a corpus that was made with ``--apply-brain``.
        pseudo_labels: Predictions of another model, for series of the corpus that nobody labelled.
        labels: A table of labels, for tasks that take one; None takes the corpus's.
    """

    corpus: Corpus
    encoder: str | None = None
    brain_model: Path | None = None
    pseudo_labels: Path | None = None
    labels: Path | None = None

    @classmethod
    def of(cls, options: Namespace | Any) -> Sources:
        """What the options of `add_sources` name.

        Raises:
            UserError: There is no such corpus.
        """
        return cls(
            corpus=Corpus.open(options.corpus),
            encoder=options.encoder,
            brain_model=options.brain_model,
            pseudo_labels=options.pseudo_labels,
            labels=options.labels,
        )


def add_sources(parser: ArgumentParser) -> None:
    """Add the options that say what a run is made of, besides its recipe."""
    parser.add_argument("--corpus", type=Path, required=True, help="corpus that harmonize wrote, with labels")
    parser.add_argument(
        "--labels", type=Path, default=None, help="table of labels for task.kind table; default: the corpus's own"
    )
    parser.add_argument(
        "--encoder", default=None, help="pretrained encoder: folder, or USER/NAME[@REVISION] of the Hub"
    )
    parser.add_argument(
        "--brain-model", type=Path, default=None, help="SynthStrip's weights, if the corpus was made with --apply-brain"
    )
    parser.add_argument(
        "--pseudo-labels", type=Path, default=None, help="table of predictions for series of the corpus without labels"
    )
