"""What a run found and did, in the lines that end it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from harmonize.decisions import unusual
from harmonize.terminal import line

MOST_KINDS = 12
"""Kinds of files left out, and of unusual decisions, that get a line each; a raw tree may hold hundreds."""

Kind = TypeVar("Kind")
_NUMBER = re.compile(r"(?<![A-Za-z\d])\d[\d.]*")


@dataclass(slots=True, kw_only=True)
class Summary:
    """What a run found and did.

    Attributes:
        source: Registry name.
        found: Scans that the run was to take care of.
        known: Of these, how many an earlier run had done.
        accepted: In the corpus now.
        rejected: By reason code.
        interrupted: The run was stopped before its end.
        left_out: What the source saw and made no scan of: files and rows of tables by kind and reason.
        changed: Done again, because their raw data changed since.
        shrunk: Left as they are, although some of their raw files are gone.
        vanished: In the corpus still, although the raw folder no longer has them.
        replaced: Taken out of the corpus, because a scan of another name holds their data now.
        unrecorded: Left as they are, because version 0.1.0 made them and did not note from what.
        outdated: Left as they are, because they could not be done again after a change: reading failed.
        unusual: Accepted scans by what was decided about them that a person should hear of, without its numbers.
    """

    source: str
    found: int = 0
    known: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    interrupted: bool = False
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    changed: int = 0
    shrunk: int = 0
    vanished: int = 0
    replaced: int = 0
    unrecorded: int = 0
    outdated: int = 0
    unusual: Counter[str] = field(default_factory=Counter)

    def note(self, decisions: Iterable[str]) -> None:
        """Count what was decided about an accepted scan."""
        self.unusual.update({_NUMBER.sub("N", decision) for decision in unusual(decisions)})

    def table(self) -> str:
        """The lines that end a run, as they may be shown."""
        return "\n".join(line(one) for one in self.lines())

    def lines(self) -> list[str]:
        """The lines that end a run."""
        facts = [
            ("source", self.source),
            ("scans", f"{self.found} ({self.known} done before)"),
            ("accepted", str(self.accepted)),
            ("rejected", str(self.rejected.total())),
            *((f"  {reason}", str(count)) for reason, count in sorted(self.rejected.items())),
            *self._changes(),
            *self._unusual(),
            *self._left_out(),
        ]
        width = max(len(name) for name, _ in facts) + 2
        return [f"{name:<{width}}{value}" for name, value in facts]

    def _changes(self) -> Iterator[tuple[str, str]]:
        if self.changed:
            yield "made again", f"{self.changed} (their files or rows of the tables changed since)"
        if self.outdated:
            yield "not made again", f"{self.outdated} (they changed since, but reading failed; the next run tries)"
        if self.replaced:
            yield "taken out", f"{self.replaced} (a scan of another name holds their data now)"
        if self.vanished:
            yield "kept", f"{self.vanished} that the raw folder no longer has"
        if self.shrunk:
            yield "kept", f"{self.shrunk} of which raw files are gone (--retry makes them again from what is left)"
        if self.unrecorded:
            made = "of version 0.1.0 or of a corpus that was fetched"
            yield "kept", f"{self.unrecorded} {made}, which do not note their files; from now on it is noted"

    def _unusual(self) -> Iterator[tuple[str, str]]:
        if self.unusual:
            yield "accepted, but", "(the decisions of each are in metadata.parquet and in the report)"
        yield from (("", f"{count} with: {decision}") for decision, count in _most(self.unusual))
        rest = len(self.unusual) - MOST_KINDS
        if rest > 0:
            yield "", f"and {rest} more kinds of decisions"

    def _left_out(self) -> Iterator[tuple[str, str]]:
        if self.left_out:
            yield "left out", f"{self.left_out.total()} files, folders or rows of tables"
        most = _most(self.left_out)
        for (what, why), count in sorted(most):
            yield f"  {what}", f"{count} ({why})"
        rest = self.left_out.total() - sum(count for _, count in most)
        if rest:
            yield "  others", f"{rest} ({len(self.left_out) - MOST_KINDS} more kinds)"


def _most(counts: Counter[Kind]) -> list[tuple[Kind, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_KINDS]  # type: ignore[return-value]
