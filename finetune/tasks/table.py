"""What a user's own table asks about the scans of a corpus: a finding, a class, several findings, or a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.drawing import Balance
from finetune.evaluation.measures import HEADLINE, Kind, drawn_measures, label_measures
from finetune.label_table import Labels, read_labels
from finetune.metrics import Score, undrawn
from finetune.series import Case, Sample, Selection
from finetune.targets import class_targets
from finetune.tasks.base import LABELS, Link, refuse_activity
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from harmonize.scan import ACTIVITY, Scan
from headspark.config.checks import require

GROUPS_OF_NUMBERS = 4
"""Into how many groups of equal size patients are put by a number, which folds get their share of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableConfig:
    """Labels of a table, which ``--labels`` names, or which the corpus has. The keys from `asks` on a run fills in.

    Attributes:
        kind: ``table``.
        question: ``classification``: two values of a column are a label, more are classes, several columns of 0 and 1
            are a label each. ``regression``: numbers.
        columns: Of the table, to be learned; none are needed where there is one alone beside those of ids.
        positive: Of a column with two values, the one that counts as 1; empty: that which means yes, else the second.
        class_weights: Classes of few series count as much as others: in the loss (``loss``), by how often they are
            drawn (``drawing``), or not (``none``).
        sides: Whether labels tell left from right; then nothing is mirrored.
        asks: What the labels are: ``binary``, ``multiclass``, ``multilabel``, ``regression``.
        labels: Their names.
        table: A hash of what the table says.
        sources: Of the series; those that are given here alone are used.
        modalities: Those of the series, which a network that is told the modality knows apart.
        means: Of each number, over the training series.
        deviations: Likewise; the network says numbers in these units.
        weights: What a positive label, or a class, counts in the loss.
    """

    kind: Literal["table"] = "table"
    question: Literal["classification", "regression"] = "classification"
    columns: tuple[str, ...] = ()
    positive: str = ""
    class_weights: Literal["none", "loss", "drawing"] = "loss"
    sides: bool = False
    asks: Literal["", "binary", "multiclass", "multilabel", "regression"] = ""
    labels: tuple[str, ...] = ()
    table: str = ""
    sources: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("columns", "labels", "sources", "modalities"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"task.{name} {list(values)}: one twice")
        for name in ("means", "deviations", "weights"):
            count = len(getattr(self, name))
            require(count in (0, len(self.labels)), f"task.{name}: {count} numbers for {len(self.labels)} labels")
        require(all(value > 0 for value in (*self.deviations, *self.weights)), "task: deviations and weights: above 0")

    def settled(self, corpus: Corpus, labels: Path | None = None) -> TableConfig:
        """The same with what the table and the corpus say.

        Args:
            corpus: Whose scans the table is about.
            labels: The table; None takes the corpus's own.

        Raises:
            UserError: As `read_labels`.
        """
        found = self.read(corpus, labels)
        rows = _usable(corpus, found, self.sources)
        if not len(rows):
            raise UserError(f"{found.name}: no scan with a label is CT or MR{_of(self.sources)}")
        return replace(
            self,
            asks=found.kind,
            labels=found.labels,
            table=found.sha256,
            sources=tuple(sorted(set(rows["source"]))),
            modalities=tuple(sorted(set(rows["modality"]))),
            means=(),
            deviations=(),
            weights=(),
        )

    def fitted(self, training: Sequence[Case]) -> TableConfig:
        """The same with what follows from the training series alone.

        Raises:
            UserError: They have a single class, or a single value of a number.
        """
        labels_NL = np.array([case.labels for case in training], dtype=np.float64)
        if self.asks == "regression":
            means_L, deviations_L = labels_NL.mean(0), labels_NL.std(0)
            for label, deviation in zip(self.labels, deviations_L, strict=True):
                if not deviation > 0:
                    raise UserError(f"{label}: all training series have the same value; there is nothing to learn")
            return replace(self, means=tuple(means_L.tolist()), deviations=tuple(deviations_L.tolist()))
        positive_L = labels_NL.sum(0)
        for label, positive in zip(self.labels, positive_L, strict=True):
            if not 0 < positive < len(training):
                said = "none" if positive == 0 else "all"
                raise UserError(f"{label}: {said} of the {len(training)} training series have it; nothing is learned")
        if self.class_weights != "loss":
            return self
        others_L = len(training) / len(self.labels) if self.asks == "multiclass" else len(training) - positive_L
        return replace(self, weights=tuple((others_L / positive_L).tolist()))

    def read(self, corpus: Corpus, labels: Path | None) -> Labels:
        """What the table says, or said to a run that began with `table`; arguments as for `settled`."""
        return read_labels(
            labels,
            corpus,
            columns=self.columns,
            question=self.question,
            positive=self.positive,
            begun=self.table,
        )


class TableTask:
    """Labels of a table; attributes and methods as in `finetune.tasks.base.Task`."""

    answers = LABELS
    places = 0
    any_label: int | None = None
    mask_values: tuple[int, ...] = ()
    knows_contrasts = True
    shares_folds = False

    def __init__(self, config: TableConfig | None = None) -> None:
        self._config = config = config or TableConfig()
        self.labels: tuple[str, ...] = config.labels
        self.asks: Kind = config.asks or "binary"
        self.mirror: tuple[int, ...] | None = None if config.sides else tuple(range(len(self.labels)))
        self.label_weights: tuple[float, ...] = (1.0,) * len(self.labels)
        self.groups: Mapping[str, tuple[str, ...]] = {HEADLINE[self.asks]: self.labels}
        self.sources, self.modalities = config.sources, config.modalities
        self.class_weights = config.weights or (1.0,) * len(self.labels)
        self.link = Link.SIGMOID
        if self.asks == "multiclass":
            self.link = Link.SOFTMAX
        elif self.asks == "regression":
            self.link = Link.IDENTITY
        count = len(self.labels)
        self._means_L = torch.tensor(config.means or (0.0,) * count)
        self._deviations_L = torch.tensor(config.deviations or (1.0,) * count)

    def cases(self, corpus: Corpus, *, labels: Path | None = None, every_label: bool = False) -> Selection:
        """The scans that the table labels.

        Args:
            corpus: Whose scans it is about.
            labels: The table; None takes the corpus's own.
            every_label: Changes nothing here.

        Raises:
            UserError: There is none.
        """
        found = self._config.read(corpus, labels)
        of_sources = corpus.scans[corpus.scans["source"].isin(self.sources)]
        rows = _usable(corpus, found, self.sources).sort_values("scan_id")
        left_out = Counter({"without a label of the table": int((~of_sources["scan_id"].isin(found.values)).sum())})
        left_out["neither CT nor MR"] = len(of_sources) - left_out.total() - len(rows)
        left_out["of other sources"] = len(corpus.scans) - len(of_sources)
        cases = [_case(corpus.path, row, found.values[row["scan_id"]]) for row in rows.to_dict("records")]
        if not cases:
            raise UserError(f"{found.name}: no scan with a label is CT or MR{_of(self.sources)}")
        return Selection(cases=cases, left_out=+left_out, notes=tuple(found.lines()))

    def targets(self, sample: Sample) -> dict[str, Tensor]:
        """Labels, numbers in units of their deviation; and the class of the series."""
        labels_L = torch.from_numpy(sample.findings.labels_L).float()
        labels_L = (labels_L - self._means_L) / self._deviations_L
        return {LABELS: labels_L} | class_targets(sample, modalities=self.modalities, sources=self.sources)

    def values(self, outputs_BL: Tensor) -> Tensor:
        """Probabilities, or numbers as the table has them."""
        if self.link is Link.IDENTITY:
            return outputs_BL * self._deviations_L.to(outputs_BL) + self._means_L.to(outputs_BL)
        return self.link.values(outputs_BL)

    def score(self, table: pd.DataFrame) -> Score:
        """The field's measures, as means over labels; the score is the area under the curve, or R2."""
        said_NL = table[list(self.labels)].to_numpy(np.float64)
        truth_NL = table[[f"target: {label}" for label in self.labels]].to_numpy(np.float64)
        once = undrawn(len(table))
        main = HEADLINE[self.asks]
        areas = {
            label: float(label_measures(self.asks, truth_NL[:, place], said_NL[:, place], once)[main][0])
            for place, label in enumerate(self.labels)
        }
        measures = drawn_measures(self.asks, truth_NL, said_NL, once)
        means = {name: float(value_1[0]) for name, value_1 in measures.items()}
        return Score(
            areas=areas,
            means=means,
            score=means[main],
            undefined=tuple(label for label, area in areas.items() if np.isnan(area)),
        )

    def draw_weights(
        self, cases: Sequence[Case], *, positive_share: float, balance: Balance = "presence"
    ) -> NDArray[np.float64]:
        """Series of rare classes more often, where `class_weights` says so; then modalities by the root of their size.

        `positive_share` is of tasks that have an answer to whether there is anything at all; here it changes nothing.
        """
        weights_N = np.ones(len(cases))
        if self._config.class_weights == "drawing" and self.asks != "regression":
            labels_NL = np.array([case.labels for case in cases], dtype=np.float64)
            share_L = np.clip(labels_NL.mean(0), 1 / len(cases), 1 - 1 / len(cases))
            if self.asks == "multiclass":
                weights_N = labels_NL @ (1 / share_L)
            else:
                weights_N = (labels_NL / share_L + (1 - labels_NL) / (1 - share_L)).mean(1)
        if balance == "modality":
            modality_N = np.array([case.modality for case in cases])
            for modality, count in Counter(modality_N.tolist()).items():
                of_it_N = modality_N == modality
                weights_N[of_it_N] *= np.sqrt(count) / weights_N[of_it_N].sum()
        return np.asarray(weights_N / weights_N.sum())

    def fold_labels(self, cases: Sequence[Case]) -> list[list[int]]:
        """As `shares_of_labels`."""
        return shares_of_labels(self.asks, np.array([case.labels for case in cases], dtype=np.float64))

    def check_scan(self, scan: Scan) -> None:
        """Refuse counts of decays, which no table is learned from here."""
        refuse_activity(scan)


KIND = (TableConfig, TableTask)


def shares_of_labels(asks: Kind, labels_NL: NDArray[np.float64]) -> list[list[int]]:
    """0 and 1 of which folds get their share: the labels themselves, or which quarter of all numbers each lies in.

    Example:
        >>> shares_of_labels("regression", np.array([[1.0], [2.0], [3.0], [4.0]]))
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    """
    if asks != "regression":
        return labels_NL.astype(int).tolist()
    shares = np.arange(1, GROUPS_OF_NUMBERS) / GROUPS_OF_NUMBERS
    groups = [np.searchsorted(np.quantile(one_N, shares), one_N, side="left") for one_N in labels_NL.T]
    return np.concatenate([np.eye(GROUPS_OF_NUMBERS, dtype=int)[one_N] for one_N in groups], axis=1).tolist()


def _usable(corpus: Corpus, found: Labels, sources: Sequence[str]) -> pd.DataFrame:
    """The rows of the manifest that the table labels, of some sources if these are given."""
    scans = corpus.scans
    unknown = sorted(set(sources) - set(scans["source"]))
    if unknown:
        raise WrongUse(f"task.sources {unknown[0]}: the corpus has {', '.join(sorted(set(scans['source'])))}")
    wanted = scans["scan_id"].isin(found.values) & (scans["unit"] != ACTIVITY)
    return scans[wanted & scans["source"].isin(sources or set(scans["source"]))]


def _of(sources: Sequence[str]) -> str:
    return f" of {', '.join(sources)}" if sources else ""


def _case(root: Path, row: Mapping[Any, Any], labels: tuple[float, ...]) -> Case:
    return Case(
        scan_id=row["scan_id"],
        subject=row["subject"],
        modality=row["modality"],
        unit=row["unit"],
        image=root / row["image_file_name"],
        mask=None,
        foreground_box=tuple(int(bound) for bound in row["foreground_box"]),
        labels=labels,
        decisions=tuple(row["decisions"]),
        shape=tuple(int(size) for size in row["shape"]),
        spacing=tuple(float(size) for size in row["spacing"]),
        sha256=row["sha256"],
        source=row["source"],
    )
