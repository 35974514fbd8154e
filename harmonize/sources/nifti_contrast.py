"""What a NIfTI image shows: by whatever names it, and for a CT by its values, which have to be Hounsfield units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision, DecisionKind
from harmonize.dicom.units import MIN_SPAN_HU, Evidence, hounsfield_evidence
from harmonize.errors import Reason, Rejection, Stage
from harmonize.nifti import NiftiVolume
from harmonize.scan import AIR_HU, ARBITRARY, HU
from harmonize.sources.contrast_words import CONTRASTS, contrast_of
from harmonize.sources.nifti_masks import DATASET, Image
from harmonize.sources.nifti_names import CT_KINDS
from harmonize.sources.own_table import Row

AIR_BELOW_HU = -200
"""A CT in HU has values below; tissue never lies there."""

_STATISTICS = range(2, 25)
_LABELS = frozenset({1002, 1003})
"""NIfTI's codes of intent: a correlation to a p-value, labels, and labels of NeuroNames."""


def named_contrast(
    image: Image, row: Row, option: str | None, sidecar: str | None, notes: list[Decision]
) -> tuple[str | None, str, Rejection | None]:
    """(what an image shows, who says it, why it is refused), as far as anything does; contradictions are noted."""
    told = contrast_of(row.modality) if row.modality else None
    if row.modality and told is None:
        return (
            None,
            "",
            Rejection(
                Reason.UNSUPPORTED_MODALITY,
                f"the table names a contrast that is none of {', '.join(CONTRASTS)}",
                stage=Stage.DISCOVER,
            ),
        )
    own = [("its name", image.name.contrast), ("its sidecar", sidecar)]
    # The only channel of a data set may have been called CT for all of them, though some are MRI.
    own.insert(len(own) if image.is_only_channel else 0, (DATASET, image.channel))
    said = [(by, contrast) for by, contrast in (("the table", told), ("--modality", option), *own) if contrast]
    if not said:
        return None, "", None
    (by, taken), *others = said
    for other, contrast in others:
        if _contradict(taken, contrast):
            notes.append(DecisionKind.CONTRAST_OVERRULED(taken=taken, by=by, other=other, said=contrast))
    return taken, by, None


def _contradict(one: str, other: str) -> bool:
    """Whether two contrasts cannot be said of the same image: MR is any contrast of MRI, CT may be with agent."""
    kinds = [{"CT": "CT", "CTA": "CT", "PT": "PT"}.get(name, "MR") for name in (one, other)]
    vague = {"MR", "CT"} & {one, other}
    return kinds[0] != kinds[1] or (one != other and not vague)


def settled(
    image: NiftiVolume, named: str | None, *, by_only_channel: bool = False, several: Sequence[str] = ()
) -> tuple[NDArray[Any], str, str, list[Decision]]:
    """(voxels, contrast, unit, decisions) of an image, once its values are known.

    Args:
        image: As it was read.
        named: What anything says that it shows, or None.
        by_only_channel: That is said by the only channel of a dataset.json, which air at -1000 overrules.
        several: What its name says instead, where that contradicts itself.

    Raises:
        Rejection: Its header says that it is labels or a statistic, it has no known contrast, or is a CT that is not in
            HU.
    """
    _check_intent(image.intent)
    voxels = image.voxels_XYZ
    if named is not None and named not in CT_KINDS:
        looks = hounsfield_evidence(voxels.T) is Evidence.HOUNSFIELD
        if looks and by_only_channel and not image.exponent:
            return (
                voxels,
                "CT",
                HU,
                [DecisionKind.CONTRAST_OVERRULED(taken="CT", by="its values", other=DATASET, said=named)],
            )
        return voxels, named, ARBITRARY, [DecisionKind.MAY_BE_CT(taken=named)] if looks else []
    if image.exponent:
        raise Rejection(Reason.BAD_INTENSITY, "values beyond float32 are no Hounsfield units")
    evidence = hounsfield_evidence(voxels.T)
    if named is None:
        if evidence is not Evidence.HOUNSFIELD:
            fault = "neither a table, --modality, the name nor a sidecar says what it shows, and it is no CT in HU"
            if several:
                fault = f"its name says several: {', '.join(several)}; say by a table or --modality which it is"
            raise Rejection(Reason.UNSUPPORTED_MODALITY, fault)
        if several:
            said = " and ".join(several)
            overruled = DecisionKind.CONTRAST_OVERRULED(taken="CT", by="its values", other="its name", said=said)
            return voxels, "CT", HU, [overruled]
        return voxels, "CT", HU, [DecisionKind.CT_BY_VALUES()]
    finite = voxels[np.isfinite(voxels)] if voxels.dtype.kind == "f" else voxels
    # Where nothing is finite, the voxels themselves are rejected later.
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (-np.inf, np.inf)
    if evidence is Evidence.INTERCEPT_LOST and low >= 0:
        why = "soft tissue is stored as about 1024"
        shifted = voxels.astype(np.float32 if voxels.dtype.kind == "f" else np.int32) + AIR_HU
        return shifted, named, HU, [DecisionKind.INTERCEPT_ASSUMED(intercept=AIR_HU, why=why)]
    if low > AIR_BELOW_HU or high - low < MIN_SPAN_HU:
        raise Rejection(
            Reason.UNSUPPORTED_UNIT,
            f"a CT without values below {AIR_BELOW_HU}, as air has in HU, or with a span below {MIN_SPAN_HU:g}",
        )
    return voxels, named, HU, []


def _check_intent(intent: int) -> None:
    what = "labels" if intent in _LABELS else "a map of a statistic" if intent in _STATISTICS else None
    if what is not None:
        raise Rejection(
            Reason.DERIVED,
            f"{what} by the header's intent_code, {intent}; set that to 0 if it is an image all the same",
        )
