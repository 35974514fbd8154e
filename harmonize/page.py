"""Build a self-contained HTML page: one file with its style and pictures inside, readable offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from harmonize.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --paper: #ffffff; --line: #d9dee5; --mark: #0b6e99; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #9aa6b5; --paper: #14181d; --line: #313944; --mark: #5cc3ee; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; margin: 0 0 .25rem; } h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; }
p.lead { color: var(--soft); margin: 0 0 1.5rem; max-width: 75ch; } p { max-width: 75ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .75rem; margin: 1rem 0; }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .75rem .9rem; }
.tile b { display: block; font-size: 1.35rem; color: var(--mark); font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
figure { margin: 1rem 0 1.5rem; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .35rem; max-width: 90ch; }
figure img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: .35rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.short { white-space: nowrap; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
code { font-size: .9em; }
"""

SHORT = 32
"""Characters of a cell that stay on one line, such as a number with its interval; narrow screens scroll tables."""


class Page:
    """Collects sections in order; text is escaped, figures become PNG data URIs.

    Example:
        >>> page = Page("A corpus", lead="Three scans.")
        >>> page.heading("Scans")
        >>> page.table(["modality", "scans"], [["T1w", 3]])
        >>> "<td class=number>3</td>" in page.html()
        True
    """

    def __init__(self, title: str, *, lead: str = "", style: str = "") -> None:
        self.title = title
        self._style = STYLE + style
        self._parts = [f"<h1>{escape(title)}</h1>"]
        if lead:
            self._parts.append(f"<p class=lead>{escape(lead)}</p>")

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def tiles(self, facts: Iterable[tuple[str, str]]) -> None:
        """Add headline numbers as (value, what it is)."""
        inner = "".join(
            f"<div class=tile><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in facts
        )
        self._parts.append(f"<div class=tiles>{inner}</div>")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Add a table; numbers are right-aligned."""
        head = "".join(f"<th>{escape(column)}</th>" for column in columns)
        body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
        self._parts.append(f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>")

    def figure(self, figure: Figure, *, caption: str, dpi: int = 110) -> None:
        """Add a matplotlib figure; its texts are drawn as they are."""
        self.picture(png_of(figure, dpi=dpi), caption=caption)

    def picture(self, png: bytes, *, caption: str) -> None:
        """Add PNG bytes."""
        data = base64.b64encode(png).decode("ascii")
        self._parts.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{escape(caption, quote=True)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def markup(self, html: str) -> None:
        """Add HTML as it is; whoever calls answers for its escaping."""
        self._parts.append(html)

    def html(self) -> str:
        """The whole page."""
        return (
            "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
            '<meta name=viewport content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{self._style}</style></head>\n<body>\n"
            + "\n".join(self._parts)
            + "\n</body></html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the page atomically."""
        write_text(path, self.html())


def png_of(figure: Figure, *, dpi: int = 110) -> bytes:
    """A matplotlib figure as PNG bytes; its texts are drawn as they are."""
    from harmonize.figures import take_literally  # pages without figures go without matplotlib

    stream = io.BytesIO()
    take_literally(figure).savefig(stream, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    return stream.getvalue()


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = str(value)
        return f"<td{' class=short' if len(text) <= SHORT else ''}>{escape(text)}</td>"
    return f"<td class=number>{value if isinstance(value, int) else format(value, '.4g')}</td>"
