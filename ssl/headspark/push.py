"""Export a run: ``headspark push RUN --out DIR``, or ``--repo USER/NAME``.

The token is the one of ``hf auth login`` or HF_TOKEN; it is never shown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from harmonize.errors import WrongUse
from harmonize.parser import Parser
from harmonize.terminal import say
from headspark.hub import push_encoder, save_encoder
from headspark.hub.encoder_folder import CARD
from headspark.hub.export import export_run, write_nnunet
from headspark.hub.own_words import is_fine_tuned
from headspark.run.checkpoint import folder_name

HF, NNUNET = "hf", "nnunet"


def main(argv: Sequence[str]) -> int:
    """Run the command line; gives the exit code."""
    options = _parser().parse_args(argv)
    form = _form(options)
    if form == HF and options.out is not None and is_fine_tuned(options.out / CARD):
        raise WrongUse(f"{options.out}: an encoder of `finetune export`, which stays as it is; give a new folder")
    exported = export_run(options.run, decoder=options.decoder, probe=options.probe)
    if form == NNUNET:
        say(write_nnunet(exported, options.out))
        return 0
    write: Callable[..., str | None]
    tag = folder_name(exported.step)
    if options.repo is None:
        write, where = save_encoder, options.out
    else:
        write, where = partial(push_encoder, private=not options.public, tag=tag), options.repo
    address = write(
        exported.model.encoder,
        where,
        preprocessing=exported.preprocessing,
        card=exported.card,
        decoder=exported.decoder,
    )
    say(address or where)
    if address is not None:
        say(f"tag {tag}: load_encoder({options.repo!r}, revision={tag!r}), or {options.repo}@{tag} as --encoder")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="headspark push", description="Export the encoder of a pretraining run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, metavar="DIR", help="write it there, in the way that --format says")
    place.add_argument("--repo", metavar="USER/NAME", help="push it to this repository of the Hub; made if need be")
    place.add_argument("--folder", type=Path, metavar="DIR", help=f"--out DIR --format {HF}")
    place.add_argument("--nnunet", type=Path, metavar="DIR", help=f"--out DIR --format {NNUNET}")
    parser.add_argument(
        "--format",
        choices=(HF, NNUNET),
        help=f"{HF} (default): config.json, model.safetensors and README.md; {NNUNET}: what nnU-Net fine-tunes from",
    )
    parser.add_argument("--decoder", action="store_true", help="with the decoder of a run of decoder.kind unet")
    parser.add_argument(
        "--probe", type=Path, metavar="FILE.json", help="put what `finetune probe --json` found on the card"
    )
    seen_by = parser.add_mutually_exclusive_group()
    seen_by.add_argument("--private", action="store_true", help="make a new repository private, which is the default")
    seen_by.add_argument("--public", action="store_true", help="make a new repository public")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _form(options: argparse.Namespace) -> str:
    """What is written, and in `options.out` where to, whichever way that was said.

    Raises:
        WrongUse: Options that contradict each other, or that do nothing.
    """
    for alias, form in (("folder", HF), ("nnunet", NNUNET)):
        if getattr(options, alias) is not None:
            if options.format not in (None, form):
                raise WrongUse(f"--format {options.format}: --{alias} means --format {form}; leave one of them out")
            options.out, options.format = getattr(options, alias), form
    form = options.format or HF
    if options.repo is None and (options.public or options.private):
        name = "public" if options.public else "private"
        raise WrongUse(f"--{name}: does nothing without --repo")
    if form == NNUNET and options.repo is not None:
        raise WrongUse(f"--format {NNUNET}: the Hub gets encoders of headspark alone; write it to --out DIR")
    if form == NNUNET and options.probe is not None:
        raise WrongUse(f"--probe: --format {NNUNET} has no card; leave it out")
    if form == NNUNET and options.decoder:
        raise WrongUse(f"--decoder: --format {NNUNET} holds a decoder of kind unet anyway; leave it out")
    return form
