"""Write the demo's page: what each step was given, what it made, and what the numbers mean, for a first reader."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from finetune.demo import figures
from finetune.evaluation import Estimate, Evaluation, evaluate, read
from finetune.evaluation.compare import SCORE, scores_of
from finetune.evaluation.text import interval, number
from finetune.report import figure_curves
from finetune.report.charts import figure_roc, figure_within
from harmonize import sources
from harmonize.corpus import Corpus, StoredVolume, read_volume
from harmonize.errors import Rejection
from harmonize.identity import raw_hash
from harmonize.labels import LABELS
from harmonize.page import Page
from harmonize.scan import HU, Scan
from headspark.pretraining.pictures import figure_losses
from headspark.run.folder import read_metrics

if TYPE_CHECKING:
    from finetune.demo import Demo, Step

RSNA = "rsna"
STYLE = """
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 0 1.25rem; }
.pair figure { margin: .5rem 0 1rem; } .pair figure img { width: 100%; }
details { margin: .5rem 0 1rem; } summary { color: var(--soft); cursor: pointer; font-size: .9rem; }
pre { overflow-x: auto; padding: .6rem .8rem; border: 1px solid var(--line); border-radius: .35rem; font-size: .8rem; }
.wide { overflow-x: auto; } .wide img { min-width: 38rem; } .wide figcaption { position: sticky; left: 0; }
@media (max-width: 40rem) { .wide figcaption { max-width: calc(100vw - 2.5rem); } }
.note { border-left: 4px solid var(--mark); padding: .1rem 0 .1rem .9rem; }
"""
WORDS = {
    "openmind": "Brain MRI as NIfTI, with a table about it.",
    "tcia": "DICOM from an archive of many studies: CT and MRI, with localizers and derived pictures among them.",
    "deeplesion": "CT as single slices, each a 16-bit PNG.",
    RSNA: "DICOM series of the RSNA 2025 challenge, with labels that say whether an aneurysm is there, and where.",
}
"""What each source's raw tree is like."""


def write_report(
    demo: Demo,
    *,
    series: str,
    prediction: Mapping[str, float],
    steps: Sequence[Step],
    seconds: Mapping[str, float],
) -> list[tuple[str, str]]:
    """Write ``report.html`` from the files of a finished demo.

    Args:
        demo: Where they are.
        series: The one that was asked about.
        prediction: The answer.
        steps: What was run, with its commands.
        seconds: That each step took, by its name.

    Returns:
        The headline numbers, as (name, value).
    """
    corpora = [Corpus.open(demo.corpus), Corpus.open(demo.corpus_rsna)]
    predictions = read(demo.model, corpus=corpora[1])
    found = evaluate(predictions)
    commands = {step.name: step.commands for step in steps}
    losses = [line["loss"] for line in read_metrics(demo.run) if line.get("loss") is not None]
    rejected = pd.concat([corpus.rejected for corpus in corpora])
    headline = [
        ("scans harmonized", str(sum(len(corpus.scans) for corpus in corpora))),
        ("scans rejected, each with its reason", str(len(rejected))),
        ("error on hidden voxels, first and last step", f"{losses[0]:.2f} → {losses[-1]:.2f}"),
        ("competition score, held-out series", _ranged(scores_of(predictions)[SCORE])),
        ("AUC within modality, aneurysm present", _ranged(found.within.mean)),
        ("AUC of all series together, aneurysm present", _ranged(found.within.pooled)),
    ]
    page = Page(
        "headspark demo",
        lead="This page was made by one command from nothing: heads were invented and written in the raw formats of "
        "four public data sets, turned into one corpus, used to pretrain a network without labels, and that network "
        "was taught to find aneurysms. Each picture and number comes from this run, not from real patients.",
        style=STYLE,
    )
    page.tiles([_tile(name, value) for name, value in headline])
    page.markup(f"<p class=note>{escape(_verdict(found))}</p>")
    _harmonized(page, demo, corpora, rejected)
    _commands(page, commands, "phantom", "harmonize", "verify")
    _pretrained(page, demo)
    _commands(page, commands, "pretrain", "push")
    _fine_tuned(page, demo, found)
    _commands(page, commands, "finetune")
    _predicted(page, corpora[1], series, prediction)
    _commands(page, commands, "predict")
    _time(page, steps, seconds)
    page.write(demo.report)
    return headline


def _verdict(found: Evaluation) -> str:
    """What the headline numbers do and do not show."""
    within, count = found.within.mean, len(found.predictions.scan_ids_N)
    read_as = "An AUC of 0.5 is what a coin reaches and 1 is perfect; the range holds 95 % of what other patients give."
    if np.isnan(within.value) or np.isnan(within.interval.low):
        worth = f"{count} held-out series are too few for a range."
    elif within.interval.low > 0.5:
        worth = f"Here the range within modality lies above 0.5: the network sees something, on {count} series."
    else:
        worth = (
            f"Here the range within modality holds 0.5, so {count} held-out series do not show that the network sees "
            "aneurysms. That is expected: the demo shows that all parts work together, in minutes and on a CPU, and "
            "makes no claim about accuracy."
        )
    return f"{read_as} {worth}"


def _harmonized(page: Page, demo: Demo, corpora: Sequence[Corpus], rejected: pd.DataFrame) -> None:
    page.heading("1. Raw scans become one corpus")
    page.text(
        "Every source has its own file format, voxel order, spacing and units. harmonize reads them all and writes one "
        "kind of file: axes right, anterior, superior; equal spacing; CT in Hounsfield units, MRI normalised."
    )
    histograms: list[tuple[str, Mapping[Any, Any], NDArray[np.float32], NDArray[np.float32]]] = []
    for corpus, names in ((corpora[0], demo.sources), (corpora[1], (RSNA,))):
        for name in names:
            pair = _first_pair(demo.raw / name, name, corpus)
            if pair is None:
                page.text(f"{name}: no scan was accepted.")
                continue
            scan, volume, row = pair
            page.markup(f"<h3>{escape(name)}</h3>")
            page.text(WORDS[name])
            page.markup("<div class=pair>")
            page.figure(
                figures.figure_raw(scan),
                caption=f"A raw {row['modality']} scan as its files hold it: {_by(row['raw_shape'])} voxels of "
                f"{_mm(row['raw_spacing'])} mm, in the order of the scanner.",
            )
            page.figure(
                figures.figure_stored(volume, scan.unit),
                caption=f"The same scan in the corpus: {_by(row['shape'])} voxels of {_mm(row['spacing'])} mm, upright "
                "and in true proportions.",
            )
            page.markup("</div>")
            histograms.append((name, row, _finite(scan.voxels_XYZ), _finite(volume.values())))
    page.heading("2. Intensities get one meaning")
    page.text(
        "The number in a CT voxel is a physical one and stays. The number in an MRI voxel means nothing between "
        "scanners, so it is mapped to a scale that all heads share."
    )
    page.markup("<div class=pair>")
    for name, row, before, after in histograms:
        kept = "stays in Hounsfield units" if row["unit"] == HU else "leaves the scanner's arbitrary units"
        page.figure(
            figures.figure_histogram(before, after, "HU" if row["unit"] == HU else "normalised"),
            caption=f"Voxel values of the {row['modality']} scan of {name}, raw and in the corpus: it {kept}.",
        )
    page.markup("</div>")
    page.heading("3. What cannot be used is said")
    if len(rejected):
        page.text("Nothing is dropped in silence: each scan that was left out is in rejected.parquet with its reason.")
        counts = rejected.groupby(["source", "reason"], as_index=False).agg(
            scans=("message", "size"), first=("message", "first")
        )
        rows = counts.to_numpy().tolist()
        page.table(["source", "reason", "scans", "what is said of the first"], rows)
    else:
        page.text("No scan was rejected here; those that are stand in rejected.parquet with their reason.")


def _pretrained(page: Page, demo: Demo) -> None:
    page.heading("4. Pretraining without labels")
    page.text(
        "Most of each scan is hidden, and the network learns to fill in what is missing from what is left. To do that "
        "it has to learn what heads look like, which no label tells it."
    )
    _wide(
        page,
        figure_losses(read_metrics(demo.run)),
        caption="Left, the error on hidden voxels falls as training goes on, on scans that were trained on and on "
        "scans that were held out; right, the learning rate that was used.",
    )
    pictures = sorted((demo.run / "pictures").glob("step_*.png"))
    if pictures:
        page.picture(
            pictures[-1].read_bytes(),
            caption="Held-out scans, one a row: the original, the blocks that the network was shown, and what it made "
            f"of the rest after {int(pictures[-1].stem.split('_')[1])} steps.",
        )


def _fine_tuned(page: Page, demo: Demo, found: Evaluation) -> None:
    within, count = found.within, len(found.predictions.scan_ids_N)
    page.heading("5. Fine-tuning with labels")
    page.text(
        "The pretrained network gets a head for 14 labels: is there an aneurysm, and in which of 13 arteries. It is "
        "trained in stages: first the new head alone, then the deep layers, then all of it."
    )
    _wide(
        page,
        figure_curves(read_metrics(demo.model)),
        caption="Above, the training loss and its parts fall through the three stages (the bands); below, how well "
        "held-out series are ranked on the way, where 0.5 is a guess.",
    )
    page.heading("6. How good is it?")
    page.text(
        f"{count} series of {len(set(found.predictions.subjects_N))} patients were held out. Some modalities show "
        "aneurysms better and are asked for when one is suspected; so a model can score well by knowing the modality "
        "alone. The fair number looks inside each modality."
    )
    _wide(
        page,
        figure_within(found),
        caption="How well series with an aneurysm are told from those without, inside each modality, on average, and "
        "all together; the bars hold 95 % of 1000 draws of patients, the dashed line is a guess.",
    )
    rows = [[one.name, one.series, one.positives, interval(one.roc)] for one in within.groups]
    rows += [
        ["mean over modalities", "", "", interval(within.mean)],
        ["all together", count, "", interval(within.pooled)],
    ]
    page.table(["modality", "series", "with aneurysm", "AUC (95 % range)"], rows)
    _wide(
        page,
        figure_roc(found),
        caption="What each threshold would give on the held-out series: the more a curve bows to the upper corner, the "
        "better; few series make coarse steps.",
    )
    page.text("More of this run, such as calibration and the worst mistakes, is in finetuned/report.html.")


def _predicted(page: Page, corpus: Corpus, series: str, prediction: Mapping[str, float]) -> None:
    page.heading("7. One series, asked as in practice")
    page.text("The raw DICOM series goes in, and 14 probabilities come out; the series is one of those held out.")
    row = corpus.scans.set_index("scan_id").loc[series]
    truth = dict(zip(LABELS, row["labels"], strict=True))
    true = ", ".join(label for label in LABELS[:-1] if truth[label]) or "none"
    picture, marked = figures.figure_place(corpus, series)
    where = "through the place that the labels mark (ring)" if marked else "through its middle"
    page.markup("<div class=pair>")
    page.figure(picture, caption=f"The series ({row['modality']}) {where}; true aneurysms: {true}.")
    page.figure(
        figures.figure_answers(prediction, truth),
        caption="What the model says of each artery and, last, of any aneurysm; filled bars are true labels.",
    )
    page.markup("</div>")
    page.markup("<details><summary>The same in numbers</summary>")
    page.table(["label", "probability"], [[label, prediction[label]] for label in LABELS])
    page.markup("</details>")


def _time(page: Page, steps: Sequence[Step], seconds: Mapping[str, float]) -> None:
    page.heading("8. What it cost, and what to do next")
    page.figure(
        figures.figure_time({step.name: seconds[step.name] for step in steps if step.name in seconds}),
        caption=f"Seconds that each step took on this machine, {sum(seconds.values()):.0f} in all.",
    )
    page.text(
        "Give the commands above your own folders: README.md has them in order, docs/ a guide for each, and "
        "headspark recipes lists the settings that come along, from a laptop to many GPUs."
    )


def _commands(page: Page, commands: Mapping[str, Sequence[Sequence[str]]], *names: str) -> None:
    lines = [shlex.join(command) for name in names for command in commands[name]]
    page.markup(
        f"<details><summary>The commands of this part</summary><pre>{escape(chr(10).join(lines))}</pre></details>"
    )


def _tile(name: str, value: str) -> tuple[str, str]:
    """The number large, and the range that belongs to it small."""
    first, _, between = value.partition(" (")
    return first, f"{name}; 95 % range {between[:-1]}" if between else name


def _wide(page: Page, figure: Figure, *, caption: str) -> None:
    """A picture that a narrow screen scrolls, because its text could not be read if it were smaller."""
    page.markup("<div class=wide>")
    page.figure(figure, caption=caption)
    page.markup("</div>")


def _ranged(estimate: Estimate) -> str:
    low, high = estimate.interval.low, estimate.interval.high
    if np.isnan(estimate.value):
        return number(estimate.value)
    return f"{estimate.value:.2f}" + ("" if np.isnan(low) else f" ({low:.2f} to {high:.2f})")


def _first_pair(root: Path, name: str, corpus: Corpus) -> tuple[Scan, StoredVolume, Mapping[Any, Any]] | None:
    """The first accepted scan of a source, raw and harmonized."""
    module = sources.get(name)
    rows = corpus.scans[corpus.scans["source"] == name].set_index("raw_hash")
    for ref in sources.references(name, root):
        digest = raw_hash(ref, salt="")
        if digest not in rows.index:
            continue
        try:
            scan = module.load(ref)
        except Rejection:
            continue
        row = rows.loc[[digest]].to_dict("records")[0]
        return scan, read_volume(corpus.path / row["image_file_name"], shape=row["shape"]), row
    return None


def _finite(voxels: NDArray[np.generic]) -> NDArray[np.float32]:
    flat = np.asarray(voxels, dtype=np.float32).ravel()[::7]
    return flat[np.isfinite(flat)]


def _by(values: Iterable[float]) -> str:
    return " x ".join(str(int(value)) for value in values)


def _mm(values: Iterable[float]) -> str:
    return " x ".join(f"{float(value):.2f}" for value in values)
