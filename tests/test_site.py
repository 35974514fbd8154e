"""The site has every page, in both places a link works, and a page needs nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from command_lines import load
from pages import PAGES, ROOT, prose


class Settings(yaml.SafeLoader):
    """mkdocs.yml, whose one tag of Python is not followed."""


Settings.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
SETTINGS: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Settings)
ALIKE = re.compile(r"^(?: {0,3})(?:[-*] |\d+\. )")


def test_every_page_stands_once_in_the_navigation() -> None:
    named = [page for part in SETTINGS["nav"] for value in part.values() for page in listed(value)]
    assert sorted(named) == sorted({"index.md", *(page for page in PAGES if page != "README.md")})


def listed(part: Any) -> list[str]:
    return [part] if isinstance(part, str) else [page for each in part for page in each.values()]


def test_no_page_asks_for_fonts_or_scripts_from_elsewhere() -> None:
    assert SETTINGS["theme"]["font"] is False
    for path in [ROOT / "mkdocs.yml", *ROOT.glob("docs/assets/*.js"), *ROOT.glob("docs/assets/*.css")]:
        assert "//" not in re.sub(r"^\s*//.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE), path


@pytest.mark.parametrize("page", PAGES)
def test_lists_are_lists_on_github_and_on_the_site(page: str) -> None:
    """GitHub begins a list in the middle of a paragraph, and nests with two spaces; the site's Markdown does not."""
    before = ""
    for line in prose(page).splitlines():
        if ALIKE.match(line) and before and not before.startswith((" ", "<!--")) and not ALIKE.match(before):
            pytest.fail(f"{page}: no empty line before {line!r}")
        assert not re.match(r"^ {1,3}(?:[-*] |\d+\. )", line), f"{page}: {line!r}"
        before = line


class TestHooks:
    """What .ci/site.py makes of pages."""

    @pytest.fixture
    def hooks(self) -> Any:
        pytest.importorskip("mkdocs", reason="the docs extra is not installed; `make site` does")
        return load(ROOT / ".ci" / "site.py")

    def test_links_of_the_readme_lead_from_the_first_page(self, hooks: Any) -> None:
        text = "[a](docs/a.md) ![b](docs/images/b.png)\n```\n[c](docs/c.md)\n```\n[d](docs/d.md#e)\n"
        moved = hooks.outside_code(text, r"(\]\()docs/", r"\1")
        assert moved == "[a](a.md) ![b](images/b.png)\n```\n[c](docs/c.md)\n```\n[d](d.md#e)\n"

    def test_a_recipe_is_a_section_of_the_gallery(self, hooks: Any) -> None:
        files = SimpleNamespace(get_file_from_path=lambda path: path)
        page = SimpleNamespace(file=SimpleNamespace(src_uri="baselines.md"))
        written = hooks.on_page_markdown(
            "[`x`](../recipes/demo.yaml), [y](benchmarks)", page=page, config=None, files=files
        )
        assert written == "[`x`](recipes.md#demoyaml), y"
        page.file.src_uri = "recipes.md"
        gallery = hooks.on_page_markdown("[`x`](../recipes/demo.yaml)", page=page, config=None, files=files)
        assert gallery.startswith("[`x`](#demoyaml)\n")
        assert (ROOT / "recipes" / "demo.yaml").read_text() in gallery

    def test_a_formula_is_drawn_by_the_browser(self, hooks: Any) -> None:
        files = SimpleNamespace(get_file_from_path=lambda path: path)
        page = SimpleNamespace(file=SimpleNamespace(src_uri="method.md"))
        held = hooks.on_page_markdown("so $m_s$ is, `$HOME` not", page=page, config=None, files=files)
        shown = hooks.on_page_content(held)
        assert shown.startswith("so <math")
        assert "<msub><mi>m</mi><mi>s</mi></msub>" in shown
        assert shown.endswith("</math> is, `$HOME` not")

    def test_a_long_table_names_its_columns_in_each_cell(self, hooks: Any) -> None:
        head = "<tr><th>a</th><th>b</th><th>c</th><th><code>d</code></th></tr>"
        table = f"<table>{head}<tr><td>1</td><td>2</td><td>3</td><td>{'x' * 60}</td></tr></table>"
        assert "<table data-cards>" in hooks.on_page_content(table)
        assert f'<td data-label="d">{"x" * 60}</td>' in hooks.on_page_content(table)
        short = table.replace("x" * 60, "x")
        assert hooks.on_page_content(short) == short

    def test_what_lies_elsewhere_ends_the_build(self, hooks: Any, tmp_path: Path) -> None:
        from mkdocs.exceptions import PluginError

        config = SimpleNamespace(site_dir=str(tmp_path))
        (tmp_path / "here.js").write_text("")
        (tmp_path / "page.html").write_text('<script src="here.js?1"></script><a href="https://example.org">x</a>')
        hooks.on_post_build(config=config)
        for loads in ("<img src='https://example.org/x.png'>", "<link rel=stylesheet href=gone.css>"):
            (tmp_path / "page.html").write_text(loads)
            with pytest.raises(PluginError, match=r"page\.html loads .*, which does not lie in the site"):
                hooks.on_post_build(config=config)
