"""Raw trees as the RSNA 2025 aneurysm competition has them: what each series is, how it is scanned, how it is written.

`options` are what a user may ask for, `plan` says what a series is before anything is drawn, `hospitals` how it is
scanned, `grids` where its slices lie, `images` what is on them; `write` and `tables` put it into files.
"""

from __future__ import annotations

from harmonize.phantom.rsna.grids import draw_grid
from harmonize.phantom.rsna.options import COVERAGES, Coverage, TreeOptions
from harmonize.phantom.rsna.prevalence import read_prevalence
from harmonize.phantom.rsna.tables import BESIDE, beside, write_beside, write_tables
from harmonize.phantom.rsna.write import write_scan, write_series

__all__ = [
    "BESIDE",
    "COVERAGES",
    "Coverage",
    "TreeOptions",
    "beside",
    "draw_grid",
    "read_prevalence",
    "write_beside",
    "write_scan",
    "write_series",
    "write_tables",
]
