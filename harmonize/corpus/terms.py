"""Under which terms the scans of a corpus may be passed on."""

from __future__ import annotations

from harmonize.sources import SOURCES, Terms

UNKNOWN = Terms(licence="unknown", link="", why_not="its terms are unknown")


def terms_of(source: str) -> Terms:
    """The terms of a source; those of one that is not registered, in a corpus made elsewhere, allow nothing."""
    return SOURCES[source].terms if source in SOURCES else UNKNOWN
