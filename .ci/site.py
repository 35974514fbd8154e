"""What mkdocs is told besides mkdocs.yml: the README is the first page, and links out of docs/ lead somewhere.

The pages are written for GitHub, where a link may lead to any file of the repository. On the site a recipe is a section
of its gallery, and a folder has no page.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"(?<![\w`$])\$([^\s$`][^$`\n]*?)\$(?![\w`$])")
FORMULA_AT = "FORMULA"
"""Holds the place of a formula, whose signs Markdown would take for its own."""

GALLERY = "recipes.md"
LONG = 60
"""Characters of a cell that a narrow column cannot hold well."""


def on_files(files: Files, config: Any) -> Files:
    """The README becomes the first page."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=outside_code(readme, r"(\]\()docs/", r"\1")))
    return files


def outside_code(markdown: str, pattern: str, new: str) -> str:
    """Substitute where no block of code stands."""
    kept = iter([*FENCED.findall(markdown), ""])
    parts = (re.sub(pattern, new, part) + next(kept) for part in FENCED.split(markdown))
    return "".join(parts)


def on_page_markdown(markdown: str, *, page: Page, config: Any, files: Files) -> str:
    """Links that leave docs/; the gallery shows the recipes."""
    gallery = files.get_file_from_path(GALLERY)

    def lead(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = PurePosixPath(target.removeprefix("../"))
        if path.parts[:1] == ("recipes",) and path.suffix == ".yaml":
            anchor = f"#{path.stem}yaml"
            return f"[{text}]({'' if page.file.src_uri == GALLERY else GALLERY}{anchor})" if gallery else text
        return text if (ROOT / "docs" / target).is_dir() else match[0]

    written = LINK.sub(lead, FORMULA.sub(lambda match: f"{FORMULA_AT}{match[1].encode().hex()}.", markdown))
    return written + recipes() if page.file.src_uri == GALLERY else written


def recipes() -> str:
    """Each recipe as it stands in its file."""
    parts = [
        f"### `{path.name}`\n\n```yaml\n{path.read_text(encoding='utf-8')}```\n"
        for path in sorted(ROOT.glob("recipes/*.yaml"))
    ]
    return "\n\n## The files\n\n" + "\n".join(parts)


def on_page_content(html: str, **_: Any) -> str:
    """Formulas become MathML, which browsers draw by themselves.

    Tables of long texts say in each cell what its column is, so that a narrow screen can show a row as a card.
    """
    html = re.sub(rf"{FORMULA_AT}([0-9a-f]+)\.", lambda match: convert(bytes.fromhex(match[1]).decode()), html)
    return re.sub(r"<table>.*?</table>", lambda match: labelled(match[0]), html, flags=re.DOTALL)


def labelled(table: str) -> str:
    """The same table, with ``data-cards`` and labelled cells, if it has four columns or more and much text."""
    columns = [re.sub(r"<[^>]*>", "", one) for one in re.findall(r"<th[^>]*>(.*?)</th>", table)]
    texts = [re.sub(r"<[^>]*>", "", one) for one in re.findall(r"<td[^>]*>(.*?)</td>", table, re.DOTALL)]
    if len(columns) < 4 or max(map(len, texts), default=0) < LONG:
        return table

    def row(match: re.Match[str]) -> str:
        names = iter(columns)
        return re.sub(r"<td", lambda _: f'<td data-label="{next(names)}"', match[0])

    return re.sub(r"<tr>.*?</tr>", row, table.replace("<table>", "<table data-cards>"), flags=re.DOTALL)


class Wanted(HTMLParser):
    """What a page loads by itself to be seen: scripts, styles, pictures and frames.

    Attributes:
        addresses: As they stand there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag loads."""
        of = dict(attrs)
        loaded = [of.get("src")] if tag in ("script", "img", "iframe", "source") else []
        if tag == "link" and of.get("rel") in ("stylesheet", "icon", "preconnect"):
            loaded.append(of.get("href"))
        self.addresses += [address for address in loaded if address and not address.startswith("data:")]


def on_post_build(*, config: Any) -> None:
    """Refuse a site that needs anything from elsewhere, or lacks a file that a page loads.

    Raises:
        PluginError: Says which page wants what.
    """
    site = Path(config.site_dir)
    for path in sorted(site.rglob("*.html")):
        if path.name == "404.html":  # served for any address, so its own are absolute
            continue
        page = Wanted()
        page.feed(path.read_text(encoding="utf-8"))
        for address in page.addresses:
            if "//" in address or not (path.parent / re.split(r"[?#]", address)[0]).is_file():
                raise PluginError(f"{path.relative_to(site)} loads {address}, which does not lie in the site")
