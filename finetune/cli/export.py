"""`finetune export`: the encoder of a fine-tuned model, for another run to begin with."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harmonize.corpus.card_parts import NOT_CLINICAL, citation_section, licence_header, licence_section
from harmonize.corpus.card_text import plain_text
from harmonize.errors import WrongUse
from harmonize.terminal import say

if TYPE_CHECKING:
    from finetune.model_folder import Bundle

_CARD = """---
library_name: headspark
{header}
pipeline_tag: image-feature-extraction
tags: [headspark, medical-imaging, 3d, ct, mri, pytorch_model_hub_mixin]
---

# 3D encoder for head CT and MRI ({kind}), fine-tuned

{fine_tuned} (task {task}), and taken out of the model that came of it.

```python
from headspark import Encoder

encoder = Encoder.from_pretrained("THIS_REPOSITORY_OR_FOLDER")
maps = encoder(x_BCDHW)  # {channels} channels; one map a stage, finest first
```

Scans go in RAS at {spacing} mm: CT as the windows {windows} in [-1, 1], MRI normalised ({norm}) and copied into every
channel. `encoder.preprocessing` holds the same facts; `headspark.channels.to_network_input` takes them.
{decoder}
## Use and limits

To begin fine-tuning on head CT or MRI with, in research. {research} It has learned one task on the scans of
{sources}; of others nothing is known, nor whether it serves all groups of patients alike.

{licence}

{citation}
"""
_DECODER = """
The decoder that was trained with it lies beside it. It says {outputs}, each cell {stride} voxels wide:

```python
from headspark import load_encoder

encoder, decoder = load_encoder("THIS_REPOSITORY_OR_FOLDER", decoder=True)
logits_BCdhw = decoder(encoder(x_BCDHW))  # decoder.outputs: the channels of each, in this order
```
"""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of `finetune`."""
    parser = commands.add_parser(
        "export", parents=[common], help="the encoder of a finished run, as `finetune train --encoder` takes it"
    )
    parser.add_argument("model", type=Path, metavar="FT", help="folder of a finished run")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="ENCODER",
        help="its folder; what this command wrote there is replaced, and no pretrained encoder",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the encoder, and the decoder of a head that has one beside it.

    Raises:
        UserError: There is no finished run, or `--out` holds something else.
    """
    from finetune.model_folder import load_model, read_bundle
    from finetune.models.heads.decoder import DecodingHead
    from headspark.encoder import MaskableEncoder
    from headspark.hub import save_encoder
    from headspark.hub.encoder_folder import Card

    bundle = read_bundle(options.model)
    if bundle.view.pictures:
        raise WrongUse(f"{options.model}: its encoder looks at pictures, and `--encoder` takes one of volumes")
    _refuse_pretrained(options.out)
    network = load_model(options.model, bundle)
    decoders = [head.decoder for head in network.heads if isinstance(head, DecodingHead)]
    decoder = decoders[0] if decoders else None
    save_encoder(
        cast(MaskableEncoder, network.encoder),
        options.out,
        preprocessing=preprocessing_of(bundle),
        card=Card(text=_card(bundle, decoder)),
        decoder=decoder,
    )
    say(options.out)
    return 0


def _refuse_pretrained(out: Path) -> None:
    """Refuse to replace an encoder that another command wrote, such as the one that the run began with.

    Raises:
        WrongUse: There is one.
    """
    from headspark.folder_kind import is_encoder_config, read_json
    from headspark.hub.encoder_folder import CARD, CONFIG_NAME
    from headspark.hub.own_words import is_fine_tuned

    if is_encoder_config(read_json(out / CONFIG_NAME)) and not is_fine_tuned(out / CARD):
        raise WrongUse(f"{out}: an encoder that this command did not write, which stays as it is; give a new folder")


def preprocessing_of(bundle: Bundle) -> dict[str, Any]:
    """What a scan must have gone through before the encoder sees it, for config.json; keys as pretraining writes them.

    Args:
        bundle: Of the fine-tuned model.
    """
    from finetune.tasks import make_task
    from harmonize.settings import region_facts

    data, settings = bundle.data, bundle.settings
    return {
        "orientation": "RAS",
        "spacing_mm": list(settings.spacing) if data.spacing is None else [data.spacing] * 3,
        **region_facts(settings.region, settings.circle_mm),
        "ct_windows": [window.plain for window in data.windows],
        "mri_scaling": data.scaling,
        "mri_norms": dict.fromkeys(make_task(bundle.task).sources, settings.mri_norm),
        "patch": list(data.patch),
    }


def _card(bundle: Bundle, decoder: Any | None) -> str:
    import yaml

    from finetune.tasks import make_task
    from harmonize.provenance import library_versions
    from headspark.hub.own_words import FINE_TUNED

    facts = preprocessing_of(bundle)
    said = ""
    if decoder is not None:
        said = _DECODER.format(outputs=" and ".join(map(plain_text, decoder.outputs)), stride=decoder.stride)
    sources = make_task(bundle.task).sources
    header = yaml.safe_dump(licence_header(sources, name="terms-of-the-training-data"), sort_keys=False)
    return _CARD.format(
        header=header.rstrip(),
        fine_tuned=FINE_TUNED,
        research=NOT_CLINICAL,
        sources=plain_text(", ".join(sources)),
        licence=licence_section(sources, what="what was learned from them"),
        citation=citation_section(library_versions()["headspark"]),
        kind=bundle.encoder.kind,
        task=bundle.task.kind,
        channels=bundle.encoder.in_channels,
        spacing=" x ".join(f"{mm:g}" for mm in facts["spacing_mm"]),
        windows=plain_text(", ".join(f"{one.name} (W{one.width:g} L{one.level:g})" for one in bundle.data.windows)),
        norm=plain_text(bundle.settings.mri_norm),
        decoder=said,
    )
