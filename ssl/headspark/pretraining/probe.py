"""Whether the frozen features tell scans apart: nearest neighbours vote on a label that the manifest has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

NEIGHBOURS = 5
MIN_PER_CLASS = 2
"""Training scans of a label that make it one of the classes."""


def knn_score(
    features_ND: NDArray[np.float32], labels: Sequence[str | None], held_out: Sequence[bool]
) -> tuple[float, float] | None:
    """Balanced accuracy on the held-out part, and that of a constant answer; None without two classes to tell apart.

    Args:
        features_ND: One row a scan; compared by their angle.
        labels: None where it is not known.
        held_out: Which scans are asked about; the others answer.
    """
    known = [index for index, label in enumerate(labels) if label is not None]
    train = [index for index in known if not held_out[index]]
    names = [labels[index] for index in train]
    classes = {name for name in names if names.count(name) >= MIN_PER_CLASS}
    train = [index for index in train if labels[index] in classes]
    test = [index for index in known if held_out[index] and labels[index] in classes]
    if len({labels[index] for index in test}) < 2:
        return None
    unit_ND = features_ND / np.maximum(np.linalg.norm(features_ND, axis=1, keepdims=True), 1e-12)
    knn = KNeighborsClassifier(n_neighbors=min(NEIGHBOURS, len(train)), weights="distance")
    knn.fit(unit_ND[train], [labels[index] for index in train])
    truth = [labels[index] for index in test]
    return float(balanced_accuracy_score(truth, knn.predict(unit_ND[test]))), 1 / len(set(truth))
