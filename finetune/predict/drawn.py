"""Which scan each mask of a folder is of: a line of JSON a mask, written before the mask itself.

A file that is there says nothing of its scan: names repeat from patient to patient, and images are replaced. So a mask
counts as drawn only where its line names the same place with the same files. Processes that draw into one folder read
each other's lines before they take a name. A line is whole or it is ignored.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune.predict.journal import ends_with_line
from finetune.raw.places import Place
from harmonize.bounded_files import fits, parse_json, read_small
from harmonize.errors import WrongUse

SCANS = "masks.scans.jsonl"
"""Beside the masks."""

ENDING = ".nii.gz"
LONGEST_NAME = 100
LARGEST = 1 << 28
"""Bytes of `SCANS`; a million masks take some two hundred million."""

_SHAPE = {"mask": str, "place": str, "series": str, "number": int, "state": str}


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnScan:
    """The scan that a mask is of.

    Attributes:
        place: Key of its folder or image.
        series: Its UID where a folder holds several, as in the name of the mask; else empty.
        number: Among those of one UID in the folder, from 0.
    """

    place: str
    series: str = ""
    number: int = 0


class DrawnMasks:
    """The masks of a folder, with the scans that they are of.

    Args:
        folder: Where they lie.

    Raises:
        WrongUse: It holds masks, and nothing says of which scans, as an earlier version left them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[DrawnScan, tuple[str, str]] = {}
        self._seen: Counter[tuple[str, str]] = Counter()
        self._read()
        if not self._known and any(folder.glob(f"*{ENDING}")):
            raise WrongUse(
                f"--masks {folder}: holds masks, but not {SCANS}, which says of which scan each of them is (an earlier "
                "version wrote none); give another folder"
            )

    def of(self, place: Place) -> DrawnScan:
        """Who a place is among those of this run; each is asked about once."""
        series = name_of(place) if place.uid else ""
        number = self._seen[place.key, series]
        self._seen[place.key, series] += 1
        return DrawnScan(place=place.key, series=series, number=number)

    def mask_of(self, scan: DrawnScan) -> Path | None:
        """The mask that a scan has, be its files the same or not; None where it has none."""
        if scan not in self._known:
            return None
        path = self.folder / self._known[scan][0]
        return path if path.is_file() else None

    def is_drawn(self, scan: DrawnScan, state: str) -> bool:
        """Whether a scan has its mask, of its files as they are now."""
        return self.mask_of(scan) is not None and self._known[scan][1] == state

    def claim(self, scan: DrawnScan, state: str, name: str) -> Path:
        """Where the mask of a scan is to be written now; what was there of its former files is gone.

        Args:
            scan: Which.
            state: Of its files.
            name: What it may be called, without ending; where another scan's mask is called so, it gets a number.
        """
        with (self.folder / SCANS).open("a+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            self._read()
            known = self._known.get(scan)
            path = self.folder / (known[0] if known is not None else self._free(name))
            # Before the line: where this process dies, no mask stands beside a line that is of other files.
            path.unlink(missing_ok=True)
            line = json.dumps({"mask": path.name, **asdict(scan), "state": state})
            stream.write(f"{'' if ends_with_line(self.folder / SCANS) else chr(10)}{line}\n".encode())
            stream.flush()
            os.fsync(stream.fileno())
        self._known[scan] = path.name, state
        return path

    def _read(self) -> None:
        if not (self.folder / SCANS).exists():
            return
        for content in read_small(self.folder / SCANS, limit=LARGEST).splitlines():
            try:
                line = parse_json(content)
            except ValueError:
                continue
            if fits(line, _SHAPE) and line["mask"] == Path(line["mask"]).name and line["mask"].endswith(ENDING):
                scan = DrawnScan(place=line["place"], series=line["series"], number=line["number"])
                self._known[scan] = line["mask"], line["state"]

    def _free(self, name: str) -> str:
        """A file name that no mask has or had, and no file of somebody else's."""
        taken = {mask for mask, _ in self._known.values()}
        found, number = f"{name}{ENDING}", 1
        while found in taken or (self.folder / found).exists():
            number += 1
            found = f"{name}_{number}{ENDING}"
        return found


def name_of(place: Place) -> str:
    """What a mask may be called: the UID of a series, or the path of an image or a folder without its ending."""
    name = place.uid or re.sub(r"\.nii(\.gz)?$", "", place.name)
    return re.sub(r"[^0-9A-Za-z._-]+", "_", name).strip("._-")[-LONGEST_NAME:] or "scan"
