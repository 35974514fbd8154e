"""Export a run: ``python ssl/push.py RUN --folder ENCODER``, or ``--repo USER/NAME``, or ``--nnunet FOLDER``.

The token is the one of ``hf auth login`` or HF_TOKEN; it is never shown.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from harmonize.parser import Parser
from harmonize.terminal import say
from headspark.config import run_command
from headspark.hub.encoder_folder import push_encoder, save_encoder
from headspark.hub.export import export_run, write_nnunet


def main(argv: Sequence[str]) -> int:
    """Run the command line; gives the exit code."""
    parser = Parser(prog="push.py", description="Export the encoder of a pretraining run.")
    parser.add_argument("run", type=Path, help="folder of the run")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--folder", type=Path, help="write config.json, model.safetensors and README.md there")
    target.add_argument("--repo", help="push the same to this repository of the Hub, user/name")
    target.add_argument("--nnunet", type=Path, help="write a checkpoint that nnU-Net fine-tunes from")
    parser.add_argument("--private", action="store_true", help="make the repository private if it is new")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    exported = export_run(arguments.run)
    encoder, preprocessing, card = exported.model.encoder, exported.preprocessing, exported.card
    if arguments.folder is not None:
        save_encoder(encoder, arguments.folder, preprocessing=preprocessing, card=card)
        say(arguments.folder)
    elif arguments.nnunet is not None:
        say(write_nnunet(exported, arguments.nnunet))
    else:
        say(push_encoder(encoder, arguments.repo, preprocessing=preprocessing, card=card, private=arguments.private))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
