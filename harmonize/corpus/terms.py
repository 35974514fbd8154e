"""Under which terms each source gives its scans, and whether a copy may be passed on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms of a source.

    Attributes:
        licence: Its name, for the dataset card.
        link: Where the terms stand.
        may_share: Whether everybody may pass copies on.
        why_not: What stands against it otherwise, as half a sentence.
    """

    licence: str
    link: str
    may_share: bool = False
    why_not: str = ""


TERMS = {
    "openmind": Terms(licence="CC-BY-4.0", link="https://huggingface.co/datasets/AnonRes/OpenMind", may_share=True),
    "tcia": Terms(
        licence="the collection's own",
        link="https://www.cancerimagingarchive.net/data-usage-policies-and-restrictions/",
        why_not="each collection has its own licence, and some are under controlled access",
    ),
    "deeplesion": Terms(
        licence="NIH's terms of use",
        link="https://nihcc.box.com/v/DeepLesion",
        why_not="NIH hands it out itself, under its own terms",
    ),
    "rsna": Terms(
        licence="the competition's rules",
        link="https://www.kaggle.com/competitions/rsna-intracranial-aneurysm-detection/rules",
        why_not="the competition's rules bind everybody who downloaded it",
    ),
}
"""By source. Terms change: whoever publishes reads them again."""

UNKNOWN = Terms(licence="unknown", link="", why_not="its terms are unknown")


def terms_of(source: str) -> Terms:
    """The terms of a source; those of an unknown one allow nothing."""
    return TERMS.get(source, UNKNOWN)
