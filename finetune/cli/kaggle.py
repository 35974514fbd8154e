"""`finetune kaggle`: a folder that answers the competition's gateway, to be uploaded as it is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from finetune.cli.predict import weights
from harmonize.terminal import say


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of `finetune`."""
    parser = commands.add_parser(
        "kaggle",
        parents=[common],
        help="pack models, code and wheels as a submission that needs no internet",
        description="Write a folder with the models, the code, and a script that answers the competition's gateway; it "
        "is tried on phantom series in a process of its own. Several models answer together.",
    )
    parser.add_argument(
        "models", type=Path, nargs="+", metavar="FT", help="folder of a finished run or of a cross-validation"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="a new folder; a submission that was there is replaced",
    )
    parser.add_argument("--weights", type=weights, metavar="W,W", help="what each model's logits count")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels of what the competition's machine lacks")
    parser.add_argument(
        "--geometry", type=Path, metavar="FOLDER", help="of `finetune geometry`: sees what stripped series do not say"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the folder.

    Raises:
        UserError: There is no finished run, `--out` holds something else, or what was packed does not answer.
    """
    from finetune.kaggle.pack import pack

    pack(options.models, options.out, weights=options.weights, wheels=options.wheels, geometry=options.geometry)
    say(options.out)
    return 0
