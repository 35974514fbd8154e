"""Names by which a user's own table may call the scans and the patients of a corpus."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import PurePosixPath
from typing import Any

from harmonize.corpus import Corpus
from harmonize.identity import safe_name, salted_hash
from harmonize.salt import VARIABLE
from harmonize.sources.tables import is_absent


class Names:
    """Scans of a corpus by what tables may call them: as the corpus does, or as the raw data did.

    Attributes:
        doubles: Ids that several scans have.
    """

    def __init__(self, corpus: Corpus) -> None:
        rows: list[dict[Any, Any]] = corpus.scans.to_dict("records")
        counts = Counter(row["scan_id"] for row in rows)
        self.doubles = {scan_id for scan_id, count in counts.items() if count > 1}
        self._salt = os.environ.get(VARIABLE, "")
        self._sources = sorted({row["source"] for row in rows})
        self._scan: dict[str, set[str]] = defaultdict(set)
        self._subject: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for row in rows:
            image = PurePosixPath(row["image_file_name"])
            for name in (row["scan_id"], str(image), image.name, row["raw_hash"]):
                self._scan[name].add(row["scan_id"])
            self._subject[row["subject"]].add((row["scan_id"], row["session"] or ""))

    def of_scan(self, text: str) -> tuple[str, ...]:
        """Scans that an id or a file names."""
        text = text.strip()
        hashed = [salted_hash(self._salt, source, text) for source in self._sources]
        return tuple(sorted(next((self._scan[n] for n in (text, safe_name(text), *hashed) if n in self._scan), ())))

    def of_subject(self, text: str, session: str) -> tuple[str, ...]:
        """Scans of a patient, of one session if that is named."""
        text, session = text.strip(), "" if is_absent(session) else session.strip()
        found: set[tuple[str, str]] = set()
        for name in (text, safe_name(text)):
            found |= self._subject.get(name, set())
        sessions = {session, safe_name(session)} if session else set()
        for source in self._sources if not found else ():
            found |= self._subject.get(salted_hash(self._salt, source, "subject", text), set())
            sessions |= {salted_hash(self._salt, source, "session", text, session)} if session else set()
        return tuple(sorted(scan_id for scan_id, own in found if not sessions or own in sessions))
