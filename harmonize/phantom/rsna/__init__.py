"""Raw trees as the RSNA 2025 aneurysm competition has them: what each series is, how it is scanned, how it is written.

`plan` says what a series is before anything is drawn, `coverage` which fields of view there are beyond the protocols',
`write` puts it into files.
"""

from __future__ import annotations

from harmonize.phantom.rsna.write import (
    BESIDE,
    SIZES,
    draw_grid,
    write_beside,
    write_scan,
    write_series,
    write_tables,
)

__all__ = ["BESIDE", "SIZES", "draw_grid", "write_beside", "write_scan", "write_series", "write_tables"]
