"""`finetune probe`: what encoders know about a label, beside an untrained one and intensities alone."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harmonize.errors import WrongUse
from harmonize.parser import not_negative, positive
from harmonize.terminal import say, warn


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of `finetune`."""
    parser = commands.add_parser(
        "probe",
        parents=[common],
        help="what frozen encoders know about a label, side by side, with intervals",
        description="Linear and nearest-neighbour probes of frozen encoders, beside an untrained encoder and "
        "intensities alone.",
    )
    parser.add_argument(
        "--encoder",
        nargs="+",
        required=True,
        metavar="ENCODER",
        help="folders, USER/NAME[@REVISION] of the Hub, or tables of `headspark embed`",
    )
    parser.add_argument("--corpus", type=Path, required=True, help="whose scans")
    parser.add_argument(
        "--labels", type=Path, metavar="TABLE.csv", help="labels by scan_id, file or subject; default: the corpus's own"
    )
    parser.add_argument("--columns", nargs="+", default=[], metavar="COLUMN", help="of the table, to be told")
    parser.add_argument(
        "--groups",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="of the table, or of the corpus's own, whose values are judged apart, besides sex, age, source, modality "
        "and scanner",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to a file")
    parser.add_argument("--embeddings", type=Path, metavar="DIR", help="keep the vectors there, for the next time")
    parser.add_argument(
        "--shots", type=positive, nargs="*", default=[5, 10, 50, 100], metavar="N", help="labels of curves"
    )
    parser.add_argument("--folds", type=positive, default=5, help="of patients; default %(default)s")
    parser.add_argument("--draws", type=positive, default=1000, help="of the bootstrap over patients")
    parser.add_argument(
        "--seed", type=not_negative, default=0, help="of folds, few labels, untrained weights and bootstrap"
    )
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="tiles at once; default %(default)s")
    parser.add_argument("--device", help="such as cpu or cuda:1; default: the GPU, or the CPU")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Embed, probe, and print.

    Raises:
        UserError: Nothing can be probed.
    """
    from finetune.probing import askable, judge, read_question
    from finetune.probing.features import stacked, vectors_of
    from finetune.probing.questions import only
    from finetune.probing.text import card_lines
    from harmonize.corpus import Corpus
    from harmonize.errors import EXIT_INTERRUPTED
    from harmonize.files import write_json
    from headspark.embed import device_of
    from headspark.run.interrupt import interrupts

    if options.json is not None and (options.json.is_dir() or not options.json.name):
        raise WrongUse(f"--json {options.json}: a folder; give the name of a file")
    corpus = Corpus.open(options.corpus)
    question = read_question(
        corpus,
        options.labels,
        columns=options.columns,
        groups=options.groups,
        folds=options.folds,
        seed=options.seed,
    )
    askable(question)  # before hours are spent on vectors
    device = device_of(options.device)
    with ExitStack() as stack:
        folder = options.embeddings or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="probe-")))
        interrupt = stack.enter_context(interrupts())
        interrupt.begin()
        made, vectors = vectors_of(
            options.encoder,
            corpus,
            folder,
            device=device,
            batch=options.batch,
            seed=options.seed,
            asked=lambda: bool(interrupt),
        )
    if interrupt:
        kept = "what was embedded is kept" if options.embeddings else "give --embeddings DIR to go on the next time"
        warn(f"stopped by {interrupt.name}: {kept}")
        return EXIT_INTERRUPTED
    question = only(question, set.intersection(*(set(own) for own in vectors.values())))
    card = judge(
        question,
        stacked(vectors, question.keys_N),
        shots=sorted(set(options.shots)),
        draws=options.draws,
        seed=options.seed,
        tell=lambda name: warn(f"probing {name}"),
    )
    say(*card_lines(card))
    if options.json is not None:
        origin = {
            "encoders": {name: one.facts["encoder_sha256"] for name, one in made.items()},
            "corpus_sha256": corpus.manifest_sha256(),
            "seed": options.seed,
        }
        write_json(options.json, {**origin, **card.plain()})
    return 0
