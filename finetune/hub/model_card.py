"""The card of a fine-tuned model: what it answers, how to ask it, what that is worth, and what it learned from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from finetune.cohort import TRAINED_ON
from finetune.evaluation import Estimate, read
from finetune.evaluation.answers import measure, read_answers
from finetune.evaluation.areas import by_label
from finetune.evaluation.compare import scores_of
from finetune.evaluation.measures import NAMES
from finetune.evaluation.overlap import structures
from finetune.evaluation.predictions import PREDICTIONS, SUBJECT, read_of_run
from finetune.evaluation.text import interval
from finetune.metrics import DRAWS, draw_patients
from finetune.model_folder import Bundle
from finetune.report.training import figure_curves
from finetune.segmentation import said_columns
from finetune.tasks import MASKS, Task, make_task
from harmonize.bounded_files import fits, read_small
from harmonize.corpus.card_parts import NOT_CLINICAL, citation_section, licence_header, licence_section
from harmonize.corpus.card_text import plain_text
from headspark.hub.encoder_folder import CURVES, Card
from headspark.hub.model_card import fenced
from headspark.pretraining.pictures import png
from headspark.run.folder import RECIPE, read_metrics, read_state

_TRAINED_ON = [{"source": str, "modality": str, "series": int, "patients": int}]
_LIMITS = """## Use and limits

{research} It was judged on held-out patients of the data it was trained on; scanners,
protocols and patients of other places differ, so judge it on some of your own before you rely on any number. {said}
Whoever {made} of its data made errors, which it has learned too."""
_UNCALIBRATED = "Its probabilities are not calibrated, and no threshold comes with it."
_OF_NUMBERS = "It says of every head a number, and not how sure it is."
_OF_MASKS = "It draws what is likeliest in each voxel, and not how sure it is."

_GIVES = {
    "binary": "It gives the probability of",
    "multilabel": "It gives the probability of each of",
    "multiclass": "It gives the probability of each class, which add up to one",
    "regression": "It gives numbers, in the units of the table that it learned from",
}


def write_card(source: Path, models: Sequence[tuple[Path, Bundle]]) -> Card:
    """Make the card. Nothing in it is of one series or one patient.

    Args:
        source: Folder of the run, or of the cross-validation.
        models: Its models with what is known of them; all ask the same.

    Raises:
        UserError: Its predictions are damaged.
    """
    bundle = models[0][1]
    task = make_task(bundle.task)
    states = [read_state(path) or {} for path, _ in models]
    metrics = read_metrics(source) if len(models) == 1 else []
    sections = [
        _header(task),
        _opening(bundle, task, len(models)),
        _asking(task),
        _score(source, task),
        _training(states, task),
        f"![Losses and held-out scores by step]({CURVES})" if metrics else "",
        _preprocessing(bundle),
        _limits(task),
        licence_section(task.sources, what="what was learned from them"),
        _recipe(models[0][0]),
        _provenance(states[0]),
        _citation(states[0]),
    ]
    pictures = {CURVES: png(figure_curves(metrics))} if metrics else {}
    return Card(text="\n\n".join(section for section in sections if section) + "\n", pictures=pictures)


_ANSWERS = """## Ask it

```
finetune predict THIS_REPOSITORY_OR_FOLDER SERIES_FOLDER
```

```python
from pathlib import Path

from finetune.hub import fetch_model
from finetune.predict import Predictor

predictor = Predictor(fetch_model("THIS_REPOSITORY"))  # or Path("THIS_FOLDER")
answers = predictor.answers(Path("SERIES_FOLDER"))
```"""

_DRAWS = """## Ask it

```
finetune predict THIS_REPOSITORY_OR_FOLDER SCANS --masks MASKS
```

MASKS gets a `.nii.gz` for each DICOM series and image of SCANS, on the grid that it was acquired on, with the values
above; other voxels are 0."""


def _asking(task: Task) -> str:
    return _DRAWS if task.answers == MASKS else _ANSWERS


def _limits(task: Task) -> str:
    if task.answers == MASKS:
        return _LIMITS.format(research=NOT_CLINICAL, said=_OF_MASKS, made="drew the masks")
    said = _OF_NUMBERS if task.asks == "regression" else _UNCALIBRATED
    return _LIMITS.format(research=NOT_CLINICAL, said=said, made="read the labels")


def _header(task: Task) -> str:
    header: dict[str, Any] = {"library_name": "headspark"}
    header |= licence_header(task.sources, name="terms-of-the-training-data")
    if task.asks != "regression":
        header["pipeline_tag"] = "image-segmentation" if task.answers == MASKS else "image-classification"
    header["tags"] = ["headspark", "medical-imaging", "3d", "ct", "mri"]
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---"


def _opening(bundle: Bundle, task: Task, count: int) -> str:
    several = "" if count == 1 else f" {count} models of a cross-validation, which answer together."
    lines = [plain_text(label) for label in task.labels]
    if task.answers == MASKS:
        title, gives = "Segmentation of head CT and MRI", "It draws these, each by its value in the masks"
        lines = [f"{label}: {value}" for label, value in zip(lines, task.mask_values, strict=True)]
    else:
        what = "Regression from" if task.asks == "regression" else "Classification of"
        title, gives = f"{what} head CT and MRI", _GIVES[task.asks]
    labels = "\n".join(f"- {line}" for line in lines)
    return (
        f"# {title}\n\nFine-tuned by headspark (task {plain_text(bundle.task.kind)}, {bundle.encoder.kind} encoder)."
        f"{several} {gives}:\n\n{labels}"
    )


def _score(source: Path, task: Task) -> str:
    """What the predictions of held-out series are worth."""
    if not (source / PREDICTIONS).exists():
        return "## Score\n\nNo predictions of held-out series lie beside the model; nothing is known of its worth."
    if task.answers == MASKS:
        table = read_of_run(source / PREDICTIONS, said_columns(task))
        rows = [
            [one.name, one.series, interval(one.dice), interval(one.distance_mm)]
            for one in structures(table, task.labels)
        ]
        columns = ["structure", "series", "Dice", "surface distance, mm"]
        return _scored(len(table), table[SUBJECT].nunique(), _table(columns, rows))
    if task.any_label is None:
        found = measure(read_answers(source, asks=task.asks, labels=task.labels))
        own = found.labels if len(found.labels) > 1 else ()
        names = list(dict.fromkeys(name for one in (found.overall, *own) for name in one.measures))
        rows = [
            [one.name, one.series, *(interval(one.measures[name]) if name in one.measures else "" for name in names)]
            for one in (found.overall, *own)
        ]
        columns = ["of", "series", *(NAMES[name] for name in names)]
        return _scored(found.overall.series, found.overall.patients, _table(columns, rows))
    predictions = read(source, overall=task.labels[task.any_label])
    means: dict[str, Estimate] = scores_of(predictions)
    times_ND = draw_patients(predictions.subjects_N, draws=DRAWS)
    areas = [[one.name, one.positives, interval(one.roc)] for one in by_label(predictions, times_ND)]
    return _scored(
        len(predictions.scan_ids_N),
        len(set(predictions.subjects_N)),
        _table(["", "value"], [[name, interval(value)] for name, value in means.items()]),
        _table(["label", "positive", "AUC"], areas),
        *predictions.notes,
    )


def _scored(series: int, patients: int, *parts: str) -> str:
    lead = (
        f"On {series} held-out series of {patients} patients, none of whom it was trained on. In brackets: intervals "
        f"of 95 %, {DRAWS} draws of patients; - where a number is undefined."
    )
    return "\n\n".join(["## Score", lead, *parts])


def _training(states: Sequence[dict[str, Any]], task: Task) -> str:
    """What the first model was trained on; the folds of a cross-validation differ by which patients they leave out."""
    results = states[0].get("results")
    known = results.get(TRAINED_ON) if isinstance(results, dict) else None
    lead = "## Trained on"
    if len(states) > 1:
        lead += "\n\nThe first of the models; each leaves out, and was judged on, the patients of a fold of its own."
    if isinstance(known, list) and known and fits(known, _TRAINED_ON):
        rows = [[one["source"], one["modality"], one["series"], one["patients"]] for one in known]
        return f"{lead}\n\n{_table(['source', 'modality', 'series', 'patients'], rows)}"
    return f"{lead}\n\nSeries of {plain_text(', '.join(task.sources))}; how many, the run does not say."


def _preprocessing(bundle: Bundle) -> str:
    settings, data = bundle.settings, bundle.data
    spacing = settings.spacing if data.spacing is None else (data.spacing,) * 3
    facts = {
        "orientation": "RAS",
        "voxels, mm": _by(spacing),
        "box that the network sees, voxels": _by(data.patch),
        "region that is kept, mm": "all" if settings.circle_mm is None else _by(settings.circle_mm),
        "CT windows": ", ".join(f"{one.name} (W{one.width:g} L{one.level:g})" for one in data.windows),
        "MRI": f"{settings.mri_norm}, scaled {data.scaling}",
        "bias field of MRI": "corrected (N4)" if settings.n4 else "as it is",
    }
    table = _table(["", ""], [list(row) for row in facts.items()])
    return f"## Preprocessing\n\n`finetune predict` does it; `config.json` holds the same facts.\n\n{table}"


def _recipe(run: Path) -> str:
    """The resolved recipe of a run, without what is of its author's machine alone; nothing where it cannot be read."""
    try:
        recipe = yaml.safe_load(read_small(run / RECIPE))
    except (OSError, ValueError, yaml.YAMLError):
        return ""
    if not isinstance(recipe, dict):
        return ""
    text = yaml.safe_dump(without_places(recipe), sort_keys=False, allow_unicode=True)
    return f"## Recipe\n\n{fenced(text)}"


def without_places(value: Any) -> Any:
    """A recipe without paths: they name folders of its author's machine, and maybe its author.

    Example:
        >>> without_places({"data": {"cache_dir": "/home/me", "patch": [96, 96, 96]}, "task": {"kind": "aneurysm"}})
        {'data': {'cache_dir': '...', 'patch': [96, 96, 96]}, 'task': {'kind': 'aneurysm'}}
    """
    if isinstance(value, dict):
        return {key: without_places(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_places(one) for one in value]
    is_place = isinstance(value, str) and ("/" in value or "\\" in value or value.startswith("~"))
    return "..." if is_place else value


def _citation(state: dict[str, Any]) -> str:
    libraries = state.get("libraries")
    return citation_section(libraries.get("headspark", "") if isinstance(libraries, dict) else "")


def _provenance(state: dict[str, Any]) -> str:
    """What made it, as far as its run says so."""
    libraries = state.get("libraries")
    if not isinstance(libraries, dict):
        return ""
    named = plain_text(", ".join(f"{name} {version}" for name, version in libraries.items()), longest=1000)
    return f"## Provenance\n\nCode revision {plain_text(state.get('revision') or 'unknown')}; {named}."


def _by(numbers: Sequence[float]) -> str:
    return " x ".join(f"{one:g}" for one in numbers)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [[plain_text(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(columns), ["---"] * len(columns), *lines])
