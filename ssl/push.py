"""Export the encoder of a run: ``python ssl/push.py RUN --folder ENCODER`` or ``--repo USER/NAME``.

The token is the one of ``hf auth login`` or HF_TOKEN; it is never shown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from headspark.config import run_command
from headspark.export import export_run
from headspark.hub import push_encoder, save_encoder


def main(argv: Sequence[str]) -> int:
    """Run the command line; gives the exit code."""
    parser = argparse.ArgumentParser(prog="push.py", description="Export the encoder of a pretraining run.")
    parser.add_argument("run", type=Path, help="folder of the run")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--folder", type=Path, help="write config.json, model.safetensors and README.md there")
    target.add_argument("--repo", help="push the same to this repository of the Hub, user/name")
    parser.add_argument("--private", action="store_true", help="make the repository private if it is new")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    exported = export_run(arguments.run)
    if arguments.folder is not None:
        save_encoder(exported.encoder, arguments.folder, preprocessing=exported.preprocessing, card=exported.card)
        print(arguments.folder)
    else:
        print(
            push_encoder(
                exported.encoder,
                arguments.repo,
                preprocessing=exported.preprocessing,
                card=exported.card,
                private=arguments.private,
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
