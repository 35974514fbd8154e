"""The model card of a run: how to load the encoder, what it saw, how it was trained, and what came of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from harmonize.corpus.card_parts import NOT_CLINICAL, SPARK, citation_section, licence_header, licence_section
from harmonize.corpus.card_text import plain_text
from harmonize.corpus.terms import terms_of
from harmonize.terminal import printable
from headspark.channels import MRI_CLIP, MRI_KNEE
from headspark.config import to_yaml
from headspark.hub.encoder_folder import CURVES, RECONSTRUCTION, Card
from headspark.masking import ratio_bounds
from headspark.pretraining.pictures import figure_losses, png
from headspark.recipe import Recipe
from headspark.run.diverged import divergence
from headspark.run.folder import SAMPLES_PER_STEP

_DECODER = """The decoder that was pretrained with it lies beside it (`decoder.safetensors`, under nnU-Net's keys):

```python
from headspark import load_encoder

encoder, decoder = load_encoder("THIS_REPOSITORY_OR_FOLDER", decoder=True)
predicted_BCDHW = decoder(encoder(x_BCDHW))
```"""
_BEYOND = {
    "soft": f"by the logarithm beyond {MRI_KNEE:g}",
    "clip": f"clipped at {MRI_CLIP:g}",
    "linear": "without a bound",
}
"""What becomes of MRI beyond its tissues, for people."""

_NO_PROBE = """## Probe

No probe of it is known. `finetune probe --encoder THIS_REPOSITORY --corpus CORPUS --json probe.json` says what its
features know about labels of yours, beside an untrained network, and `headspark push --probe` puts it here."""

HUB_DATASETS = "https://huggingface.co/datasets/"
_NO_DIGIT = re.compile(r"[^0-9a-f]")


def preprocessing_of(recipe: Recipe, corpus: Mapping[str, Any]) -> dict[str, Any]:
    """What a scan must have gone through before the encoder sees it, for config.json.

    Args:
        recipe: Of the run.
        corpus: The corpus part of run.json.
    """
    return {
        "orientation": "RAS",
        "spacing_mm": corpus["spacing_mm"],
        # Runs of version 0.1.0 do not say.
        **{key: corpus[key] for key in ("region", "region_mm") if key in corpus},
        "ct_windows": list(recipe.data.ct_windows),
        "mri_scaling": recipe.data.scaling,
        "mri_norms": corpus["mri_norms"],
        "patch": recipe.data.patch,
    }


def write_card(
    recipe: Recipe,
    state: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    *,
    step: int,
    picture: Path | None,
    decoder: bool = False,
    probe: str = "",
) -> Card:
    """Make the card.

    Args:
        recipe: Of the run.
        state: run.json.
        metrics: The lines of metrics.jsonl.
        step: Of the checkpoint that is exported.
        picture: The newest reconstruction, or None.
        decoder: Whether the decoder lies beside the encoder.
        probe: The part that says what a probe found, as `headspark.hub.probe_table.read_probe` writes it.
    """
    pictures = {CURVES: png(figure_losses(metrics))}
    if picture is not None:
        pictures[RECONSTRUCTION] = picture.read_bytes()
    sections = [
        _header(state),
        _opening(recipe, state, step),
        _warning(state, metrics),
        _loading(recipe, state["corpus"]),
        _DECODER if decoder else "",
        _corpus(state["corpus"]),
        _training(recipe, state, metrics, step),
        f"![Loss by step]({CURVES})",
        f"![Original, visible, reconstruction]({RECONSTRUCTION})" if picture is not None else "",
        probe or _NO_PROBE,
        _limits(state["corpus"]),
        licence_section(_sources(state["corpus"]), what="what was learned from them"),
        f"## Recipe\n\n{fenced(to_yaml(shareable(recipe)))}",
        _provenance(state),
        citation_section(state["libraries"].get("headspark", ""), SPARK),
    ]
    return Card(text="\n\n".join(section for section in sections if section) + "\n", pictures=pictures)


def shareable(recipe: Recipe) -> Recipe:
    """A recipe without what is of its author's machine alone: the folder of the cache is a path of somebody's home."""
    return replace(recipe, data=replace(recipe.data, cache_dir=None))


def _header(state: Mapping[str, Any]) -> str:
    header: dict[str, Any] = {
        "library_name": "headspark",
        **licence_header(_sources(state["corpus"]), name="terms-of-the-training-data"),
        "pipeline_tag": "image-feature-extraction",
        "tags": ["headspark", "medical-imaging", "self-supervised", "3d", "ct", "mri", "pytorch_model_hub_mixin"],
    }
    links = [terms_of(source).link for source in _sources(state["corpus"])]
    datasets = [link.removeprefix(HUB_DATASETS) for link in links if link.startswith(HUB_DATASETS)]
    if datasets:
        header["datasets"] = datasets
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---"


def _opening(recipe: Recipe, state: Mapping[str, Any], step: int) -> str:
    count = sum(group["scans"] for group in state["corpus"]["groups"])
    sources = plain_text(", ".join(_sources(state["corpus"])))
    return (
        f"# 3D encoder for head CT and MRI ({recipe.encoder.kind})\n\n"
        f"Pretrained by headspark on {count} scans from {sources}, without labels, by masked modelling (SparK): "
        f"{_percent(ratio_bounds(recipe.mask.ratio))} of each patch was hidden and a decoder filled it in. "
        f"{_beside(recipe)}Step {step} of {recipe.train.steps}."
    )


def _beside(recipe: Recipe) -> str:
    """What was asked of the encoder beside filling in."""
    said = ""
    if recipe.vessels.mask_odds != 1:
        said += (
            f"The odds that blocks with vessels were hidden were {recipe.vessels.mask_odds:g} times those of others. "
        )
    if recipe.vessels.distance_weight > 0:
        said += f"How near vessels are was predicted too (weight {recipe.vessels.distance_weight:g}). "
    if recipe.hybrid.weight > 0:
        said += f"Embeddings of two maskings of a head were made alike (VICReg, weight {recipe.hybrid.weight:g}). "
    return said


def _warning(state: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    found = divergence(state, metrics)
    return "" if found is None else f"**This run {found}.**"


def _loading(recipe: Recipe, corpus: Mapping[str, Any]) -> str:
    norms = plain_text(", ".join(sorted(set(corpus["mri_norms"].values()))))
    windows = plain_text(", ".join(f"{one.name} (W{one.width:g} L{one.level:g})" for one in recipe.data.windows))
    return f"""## Load it

```python
from headspark import load_encoder

encoder = load_encoder("THIS_REPOSITORY_OR_FOLDER")
maps = encoder(x_BCDHW)  # {recipe.encoder.in_channels} channels; one map a stage, finest first
```

`encoder.strides` are {list(recipe.encoder.cumulative_strides)}, `encoder.channels` {list(recipe.encoder.features)}.
Scans go in RAS at {" x ".join(f"{mm:g}" for mm in corpus["spacing_mm"])} mm: CT as the windows
{windows} in [-1, 1], MRI normalised ({norms}), {_BEYOND[recipe.data.scaling]}, and copied into every channel.
`headspark.channels.to_network_input` does both, given `ct_windows` and `mri_scaling` of `encoder.preprocessing`, which
holds the same facts. Edges must be multiples of {recipe.encoder.cumulative_strides[-1]} voxels."""


def _corpus(corpus: Mapping[str, Any]) -> str:
    lines = ["| source | modality | scans | subjects | licence |", "|---|---|---|---|---|"]
    for group in corpus["groups"]:
        terms = terms_of(group["source"])
        licence = f"[{terms.licence}]({terms.link})" if terms.link else terms.licence
        source, modality = plain_text(group["source"]), plain_text(group["modality"])
        lines.append(f"| {source} | {modality} | {group['scans']} | {group['subjects']} | {licence} |")
    table = "\n".join(lines)
    return f"## Corpus\n\n{table}\n\nRejected while harmonizing: {corpus['rejected']} scans."


def _training(recipe: Recipe, state: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], step: int) -> str:
    rates = [line["samples_per_second"] for line in metrics if line.get("samples_per_second") is not None]
    losses = [line["loss"] for line in metrics if line.get("loss") is not None]
    held_out = [line["val_loss"] for line in metrics if line.get("val_loss") is not None]
    facts = {
        "samples per step": state.get(SAMPLES_PER_STEP),
        "patches": f"{recipe.data.patch} voxels wide",
        "hidden": f"{_percent(ratio_bounds(recipe.mask.ratio))} in blocks of {recipe.mask.block}",
        "optimizer": f"{recipe.optim.name}, learning rate {recipe.optim.lr:g}, {recipe.optim.schedule}",
        "precision": recipe.train.precision,
        "device": state.get("device"),
        "training loss, first and last line": f"{losses[0]:.4f}, {losses[-1]:.4f}" if losses else None,
        "held-out loss, first and last": f"{held_out[0]:.4f}, {held_out[-1]:.4f}" if held_out else None,
        "throughput": f"{median(rates):.2f} patches a second" if rates else None,
        "weights": "moving average" if recipe.train.ema is not None else None,
    }
    lines = [f"| {name} | {plain_text(value)} |" for name, value in facts.items() if value is not None]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *lines])


def _provenance(state: Mapping[str, Any]) -> str:
    libraries = plain_text(", ".join(f"{name} {version}" for name, version in state["libraries"].items()), longest=1000)
    manifest = _NO_DIGIT.sub("", state["corpus"]["manifest_sha256"])
    return (
        "## Provenance\n\n"
        f"Code revision {plain_text(state['revision'] or 'unknown')}; corpus manifest SHA-256 "
        f"`{manifest}`; {libraries}."
    )


def _limits(corpus: Mapping[str, Any]) -> str:
    """What it is for, what it is not for, and what nobody knows of it."""
    modalities = plain_text(", ".join(sorted({group["modality"] for group in corpus["groups"]})), longest=1000)
    return f"""## Use and limits

To begin fine-tuning on head CT or MRI with, and to compare scans by, in research. {NOT_CLINICAL} It answers no question
by itself: what is made of it is judged on patients of the place where it is used.

It has seen {modalities} of the sources above alone, whose scanners, countries, ages and diseases stand for no
population, and it has seen no labels. Of other modalities, other parts of the body, or scans that were prepared
otherwise, nothing is known; nor whether it serves all groups of patients alike."""


def _sources(corpus: Mapping[str, Any]) -> list[str]:
    return sorted({group["source"] for group in corpus["groups"]})


def fenced(text: str) -> str:
    """YAML as a block of code that no run of backticks in it ends."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    lines = "\n".join(printable(line) for line in text.rstrip("\n").split("\n"))
    return f"{fence}yaml\n{lines}\n{fence}"


def _percent(ratio: tuple[float, float]) -> str:
    low, high = ratio
    return f"{low:.0%}" if low == high else f"{low:.0%} to {high:.0%}"
