"""Embed a corpus: `headspark embed CORPUS --encoder E --out EMB.parquet`, a vector a scan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from harmonize.corpus import Corpus
from harmonize.errors import EXIT_INTERRUPTED, WrongUse
from harmonize.parser import Parser, positive
from harmonize.terminal import say, warn
from headspark.embedding import Pooling, embed_corpus
from headspark.hub import load_encoder
from headspark.run.interrupt import interrupts

SHOWN = 3
"""Scans that could not be used and are told one by one."""


def main(argv: Sequence[str]) -> int:
    """Run the command line; gives the exit code."""
    options = _parser().parse_args(argv)
    pooling = Pooling(
        kind=options.pooling,
        patch=() if options.patch is None else (options.patch,) * 3,
        overlap=options.overlap,
    )
    if options.out.suffix != ".parquet":
        raise WrongUse(f"--out {options.out}: give a name that ends in .parquet")
    corpus = Corpus.open(options.corpus)
    encoder = load_encoder(options.encoder)
    note_spacing(corpus, encoder.preprocessing)
    with interrupts() as interrupt:
        interrupt.begin()
        found = embed_corpus(
            encoder,
            corpus,
            options.out,
            name=name_of(options.encoder),
            pooling=pooling,
            cells=options.cells,
            device=device_of(options.device),
            batch=options.batch,
            precision=options.precision,
            asked=lambda: bool(interrupt),
        )
    if found.interrupted:
        warn(f"stopped by {interrupt.name}: what was embedded is kept; the same command goes on")
        return EXIT_INTERRUPTED
    warn(*(f"not used: {fault}" for fault in found.faults[:SHOWN]))
    if len(found.faults) > SHOWN:
        warn(f"not used: {len(found.faults) - SHOWN} more scans")
    say(options.out)
    return 0


def name_of(encoder: str) -> str:
    """What an encoder is called: its repository, or the last part of its path, for paths are of somebody's home."""
    return Path(encoder).resolve().name if Path(encoder).exists() else encoder


def device_of(name: str | None) -> torch.device:
    """A device by its name; None: the GPU where there is one.

    Raises:
        WrongUse: There is none of that name.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise WrongUse(f"--device {name}: there is none ({str(error).splitlines()[0].partition('. ')[0]})") from error
    return device


def note_spacing(corpus: Corpus, preprocessing: object) -> None:
    """Say where a corpus has other voxels than the encoder was trained on."""
    stated = preprocessing.get("spacing_mm") if isinstance(preprocessing, dict) else None
    if isinstance(stated, list) and list(corpus.spacing) != stated:
        warn(f"note: {corpus.path} has voxels of {list(corpus.spacing)} mm, the encoder was trained on {stated} mm")


def _parser() -> Parser:
    parser = Parser(prog="headspark embed", description="A vector for each scan of a corpus, by a frozen encoder.")
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder of the corpus")
    parser.add_argument("--encoder", required=True, metavar="ENCODER", help="folder, or USER/NAME[@TAG] of the Hub")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="EMB.parquet", help="the table; the same command goes on"
    )
    parser.add_argument(
        "--pooling",
        choices=("mean", "max", "mean_max"),
        default="mean",
        help="how the cells of a head become one vector; default %(default)s",
    )
    parser.add_argument("--patch", type=positive, metavar="N", help="edge of a tile; default: as it was trained")
    parser.add_argument(
        "--overlap", type=float, default=0.25, help="share of a tile that neighbours have in common; default 0.25"
    )
    parser.add_argument("--cells", action="store_true", help="keep the map of cells of each scan too, as float16")
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="tiles at once; default %(default)s")
    parser.add_argument("--device", help="such as cpu or cuda:1; default: the GPU, or the CPU")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default %(default)s")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
