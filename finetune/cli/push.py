"""`finetune push`: a fine-tuned model in a folder to pass on, or on the Hub, as `finetune predict` takes it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harmonize.errors import WrongUse
from harmonize.terminal import say


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of `finetune`."""
    parser = commands.add_parser(
        "push",
        parents=[common],
        help="a finished run without its training, or a probe: a folder, or a repository of the Hub",
        description="Configuration, weights and a card. Nothing else of the run goes along: no predictions, no ids.",
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="FT",
        help="a finished run, a cross-validation, or FILE.json of `finetune probe --json`",
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, metavar="DIR", help="write it there; a model that was there is replaced")
    place.add_argument("--repo", metavar="USER/NAME", help="push it to this repository of the Hub; made if need be")
    seen_by = parser.add_mutually_exclusive_group()
    seen_by.add_argument("--private", action="store_true", help="make a new repository private, which is the default")
    seen_by.add_argument("--public", action="store_true", help="make a new repository public")
    parser.add_argument("--tag", help="revision that this push can be fetched by from now on, such as v1")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write or push the model, and print where it is.

    Raises:
        UserError: There is no finished run, or the place holds something else.
    """
    from finetune.hub import push_model, push_probe, save_model, save_probe
    from finetune.hub.probes import is_probe

    save, push = (save_probe, push_probe) if is_probe(options.model) else (save_model, push_model)
    if options.repo is None and options.tag is not None:
        raise WrongUse("--tag: does nothing without --repo")
    if options.repo is None and (options.public or options.private):
        raise WrongUse(f"--{'public' if options.public else 'private'}: does nothing without --repo")
    if options.repo is None:
        save(options.model, options.out)
        say(options.out)
    else:
        say(push(options.model, options.repo, private=not options.public, tag=options.tag))
    return 0
