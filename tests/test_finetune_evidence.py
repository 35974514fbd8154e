"""Pages of evidence: where the network looked, what it says, and the mistake that is most like it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from standin_series import save_model
from test_finetune_train import write_corpus

from finetune.candidates import Candidate, rows_of, table_of
from finetune.cli import main
from finetune.report.evidence import nearest_mistakes, write_evidence
from finetune.tasks.aneurysm import AneurysmTask
from finetune.validation import write_held_out
from harmonize.corpus import Corpus
from harmonize.errors import UserError
from harmonize.labels import LABELS, PRESENT

SCANS = 8
SAID = (0.1, 0.9, 0.6, 0.8, 0.2, 0.3, 0.15, 0.95)
"""Of presence; every second series has a sac. 1.2.2 is ranked above 1.2.5, so one of them is called wrongly."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Corpus]:
    folder = tmp_path_factory.mktemp("evidence")
    corpus = write_corpus(folder / "corpus", scans=SCANS)
    model = save_model(folder / "FT")
    rows = []
    for case, said in zip(AneurysmTask().cases(corpus).cases, SAID, strict=True):
        place = case.spots[0].xyz_mm if case.spots else (0.0, 0.0, 0.0)
        found = [Candidate(xyz_mm=(place[0] + 3, place[1], place[2]), size_mm=6.5, score=said, places_P=(0.25,) * 13)]
        answers = dict.fromkeys(LABELS, 0.05) | {PRESENT: said}
        truth = {f"target: {label}": value for label, value in zip(LABELS, case.labels, strict=True)}
        who = {"scan_id": case.scan_id, "subject": case.subject, "modality": case.modality}
        rows.append({**who, **answers, **truth, "fold": 0, "candidates": rows_of(found, LABELS)})
    write_held_out(model, pd.DataFrame(rows))
    return model, corpus


class Text(HTMLParser):
    """The text of a page, and what it links to and loads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.links, self.pictures = "", [], []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "a":
            self.links.append(str(found["href"]))
        if tag == "img":
            self.pictures.append(str(found["src"]))


def test_each_series_has_a_page_with_its_place_its_probability_and_a_mistake_like_it(run: tuple[Path, Corpus]) -> None:
    model, corpus = run
    index = write_evidence(model, corpus)
    pages = sorted(path.name for path in index.parent.iterdir())
    assert pages == sorted(["index.html", *(f"1.2.{number}.html" for number in range(SCANS))])
    listed = Text(index.read_text())
    assert listed.links == [f"1.2.{number}.html" for number in np.argsort(SAID)[::-1]]
    page = Text((index.parent / "1.2.7.html").read_text())
    assert page.links == ["index.html"]
    assert len(page.pictures) == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.pictures)
    for words in ("calibrated probability, Aneurysm Present", "3.0 mm, a hit", "Nearest mistake", "0.950"):
        assert words in page.text, words
    texts = {name: Text((index.parent / name).read_text()).text for name in pages if name != "index.html"}
    wrong = [name for name, text in texts.items() if " wrong " in text]
    mistake = wrong[0].removesuffix(".html")
    assert len(wrong) == 1
    assert mistake in page.text
    assert "No series of another patient is called wrongly." in texts[wrong[0]]
    assert "subject-" not in page.text


def test_some_series_alone_and_what_cannot_be_drawn_are_said(
    run: tuple[Path, Corpus], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, corpus = run
    with pytest.raises(UserError, match=r"--series 9\.9: is no held-out series"):
        write_evidence(model, corpus, ["9.9"])
    with pytest.raises(UserError, match=r"has no candidates\.parquet"):
        write_evidence(save_model(tmp_path / "FT"), corpus)
    assert main(["report", str(model), "--evidence"]) == 2
    assert "--evidence: shows pictures of series; give --corpus CORPUS" in capsys.readouterr().err
    assert main(["report", str(model), "--series", "1.2.1"]) == 2


def test_the_nearest_mistake_is_of_another_patient() -> None:
    said = np.array([[0.9, 0.1], [0.88, 0.1], [0.5, 0.5], [0.1, 0.9]])
    wrong = np.array([True, True, False, True])
    assert nearest_mistakes(said, wrong, ["a", "a", "b", "c"]) == [3, 3, 1, 1]
    assert nearest_mistakes(said, wrong & False, ["a", "a", "b", "c"]) == [None] * 4


def test_tables_without_candidates_are_none() -> None:
    assert table_of(pd.DataFrame({"scan_id": ["a"]}), ["scan_id"]) is None
