"""What is wrong with a command, as far as that can be told without a look at the raw scans."""

from __future__ import annotations

from pathlib import Path

from harmonize import sources
from harmonize.corpus import NYUL, check_claim, target
from harmonize.engine import histograms
from harmonize.engine.hold import check_free
from harmonize.errors import WrongUse
from harmonize.settings import Settings


def check(
    source: str,
    root: Path,
    out: Path,
    settings: Settings,
    *,
    shard: tuple[int, int] | None = None,
    nyul_folder: Path | None = None,
) -> None:
    """Check what can be checked of a command without a look at the raw scans; nothing is written.

    Raises:
        UserError: See `harmonize.engine.run`.
    """
    sources.get(source)
    if not root.is_dir():
        raise WrongUse(f"{root}: no such folder")
    target.check_place(out, root)
    check_claim(out, source, settings)
    check_free(out, source, shard)
    if nyul_folder is not None:
        histograms.check_given(nyul_folder, out / NYUL)
