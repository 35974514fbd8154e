"""What the cards of corpora, encoders and fine-tuned models share: licences, what they are not for, how to cite."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from harmonize.corpus.card_text import plain_text
from harmonize.corpus.terms import terms_of

NOT_CLINICAL = "Not a medical device, and not for clinical use: for research."

TITLE, AUTHORS = "headspark: self-supervised pretraining for 3D head CT and MRI", "The headspark authors"
"""As CITATION.cff has them."""

SPARK = """@inproceedings{tian2023spark,
  title = {Designing {BERT} for Convolutional Networks: Sparse and Hierarchical Masked Modeling},
  author = {Tian, Keyu and Jiang, Yi and Diao, Qishuai and Lin, Chen and Wang, Liwei and Yuan, Zehuan},
  booktitle = {International Conference on Learning Representations},
  year = {2023},
  url = {https://arxiv.org/abs/2301.03580}
}"""

_OPEN = {"CC-BY-4.0": "cc-by-4.0"}
"""Names that the Hub has for licences that everybody may pass copies on under."""


def strict_sources(sources: Collection[str]) -> list[str]:
    """Those of the sources whose terms do not let everybody pass copies on; empty where all do."""
    return sorted(source for source in sources if not terms_of(source).may_share)


def licence_header(sources: Collection[str], *, name: str) -> dict[str, Any]:
    """The licence as the Hub's header has it: that of the strictest source.

    Args:
        sources: Whose scans it was made of.
        name: What the Hub calls terms that it has no name for.

    Example:
        >>> licence_header(["openmind"], name="terms-of-the-sources")
        {'license': 'cc-by-4.0'}
        >>> licence_header(["openmind", "rsna"], name="terms-of-the-sources")["license"]
        'other'
    """
    strict = strict_sources(sources)
    known = {_OPEN.get(terms_of(source).licence) for source in sources}
    if not strict and len(known) == 1 and None not in known:
        return {"license": known.pop()}
    links = {terms_of(source).link for source in strict or sources} - {""}
    header: dict[str, Any] = {"license": "other", "license_name": name}
    if len(links) == 1:
        header["license_link"] = links.pop()
    return header


def licence_section(sources: Collection[str], *, what: str) -> str:
    """The licence of each source, and which of them is the strictest.

    Args:
        sources: Whose scans it was made of.
        what: Is under them: "the scans", "what was learned from them".
    """
    rows = []
    for source in sorted(sources):
        terms = terms_of(source)
        rows.append(f"| {plain_text(source)} | {terms.licence} | {terms.link} |")
    strict = strict_sources(sources)
    said = "; ".join(f"{plain_text(source)}: {terms_of(source).why_not}" for source in strict)
    strictest = (
        f"The strictest hold for the whole: {said}."
        if strict
        else "The strictest asks that the source is named and a change is said, and lets everybody pass copies on."
    )
    table = "\n".join(["| source | licence | terms |", "|---|---|---|", *rows])
    return f"## Licence\n\nThe terms of the sources hold for {what}:\n\n{table}\n\n{strictest}"


def citation_section(version: object, *more: str) -> str:
    """How to cite it, as BibTeX.

    Args:
        version: Of headspark that made it.
        more: Further entries.
    """
    own = (
        f"@software{{headspark,\n  title = {{{TITLE}}},\n  author = {{{{{AUTHORS}}}}},\n"
        f"  version = {{{_word(version)}}},\n  license = {{Apache-2.0}}\n}}"
    )
    entries = "\n\n".join([own, *more])
    return f"## Citation\n\nCite the data too, as its sources ask.\n\n```bibtex\n{entries}\n```"


def _word(text: object) -> str:
    return "".join(letter for letter in str(text) if letter.isascii() and (letter.isalnum() or letter in ".+-"))
