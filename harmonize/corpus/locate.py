"""Find the raw files behind a corpus's hashes: only who has the raw folder and the salt can."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from harmonize import identity, sources
from harmonize.corpus import ANOTHER_SALT, Corpus
from harmonize.errors import Reason, WrongUse
from harmonize.salt import is_known_by
from harmonize.scan import ScanRef
from harmonize.terminal import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A raw scan and what became of it.

    Attributes:
        name: Its scan id in the corpus, or the hash that stands for it where it was rejected.
        raw_hash: That hash, whatever became of it.
        ref: The raw scan; it holds raw names, so it is for the user's eyes alone.
        reason: Code of the rejection, or ``accepted``.
        message: Of the rejection.
    """

    name: str
    raw_hash: str
    ref: ScanRef
    reason: str
    message: str


def locate(source: str, root: Path, path: Path, *, salt: str = "", names: Collection[str] = ()) -> Iterator[Located]:
    """Yield raw scans of a root, in the order of `discover`.

    Args:
        source: Registry name.
        root: The raw folder that was harmonized.
        path: The corpus.
        salt: The salt that it was made with.
        names: Scan ids or hashes; none for all that were rejected.

    Raises:
        UserError: No raw folder, no corpus, or another salt.
    """
    if not root.is_dir():
        raise WrongUse(f"{root}: no such folder")
    corpus = Corpus.open(path)
    if not is_known_by(salt, corpus.info["settings"]["salt_fingerprint"]):
        raise WrongUse(f"{path}: was made with {ANOTHER_SALT}")
    wanted = _wanted(corpus, source, frozenset(names))
    for ref in sources.references(source, root):
        raw_hash = identity.raw_hash(ref, salt)
        found = wanted.pop(raw_hash, None)
        if found is not None:
            name, reason, message = found
            yield Located(name=name, raw_hash=raw_hash, ref=ref, reason=reason, message=message)
        if not wanted:
            return


def describe(located: Located) -> str:
    """One line: what, why and where."""
    paths = located.ref.paths
    where = str(paths[0]) if paths else f"{located.ref.root}: no files of {located.ref.key}"
    others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    if located.reason == Reason.IO_ERROR:
        # The image may be sound, and its mask the one that cannot be read.
        beside = [str(path) for path in sources.inputs(located.ref) if path not in paths]
        others += f", read with {', '.join(beside)}" if beside else ""
    why = f"{located.reason} ({located.message})" if located.message else located.reason
    return printable(f"{located.name}: {why}: {where}{others}")


def _wanted(corpus: Corpus, source: str, names: frozenset[str]) -> dict[str, tuple[str, str, str]]:
    """By raw hash: name, reason, message."""
    rejected = corpus.rejected[corpus.rejected["source"] == source]
    found = {
        raw_hash: (raw_hash, reason, message)
        for raw_hash, reason, message in zip(rejected["raw_hash"], rejected["reason"], rejected["message"], strict=True)
        if not names or raw_hash in names
    }
    if names:
        scans = corpus.scans[corpus.scans["source"] == source]
        for raw_hash, scan_id in zip(scans["raw_hash"], scans["scan_id"], strict=True):
            if names & {raw_hash, scan_id}:
                found[raw_hash] = (scan_id, "accepted", "")
    return found
