"""The commands that work on a corpus which is there: merge, verify, report, locate, publish."""

from __future__ import annotations

import argparse
from pathlib import Path

from harmonize import sources
from harmonize.cli.command import DONE, FAILED, Command, add_corpus, add_raw, add_salt, add_workers
from harmonize.errors import UserError
from harmonize.parser import not_negative
from harmonize.pool import cores
from harmonize.salt import given_salt
from harmonize.terminal import say

DRAWN = 10_000
"""Pictures of a report: about 56 MB."""

SHOWN = 5
"""Names that are not found, and are told."""


def draw_brains(corpus: Path, workers: int) -> None:
    """Write the report of a corpus with brain masks, which never come without pictures to judge them by."""
    from harmonize.report import write_report

    say(f"brain masks to look at: {write_report(corpus, thumbnails=DRAWN, workers=max(1, workers))}")


def _add_options_of_verify(parser: argparse.ArgumentParser) -> None:
    add_corpus(parser)
    add_workers(parser)


def _add_options_of_report(parser: argparse.ArgumentParser) -> None:
    add_corpus(parser)
    parser.add_argument(
        "--thumbnails", type=not_negative, default=DRAWN, metavar="N", help="at most so many; default %(default)s"
    )
    add_workers(parser)


def _add_options_of_locate(parser: argparse.ArgumentParser) -> None:
    names = tuple(sources.SOURCES)
    parser.add_argument("source", choices=names, metavar="SOURCE", help=", ".join(names))
    add_raw(parser)
    add_corpus(parser)
    parser.add_argument(
        "names", nargs="*", default=[], metavar="NAME", help="scan ids or hashes; none: all that were rejected"
    )
    add_salt(parser, "the secret that the corpus was made with")


def _add_options_of_publish(parser: argparse.ArgumentParser) -> None:
    add_corpus(parser)
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="the dataset; made if need be")
    parser.add_argument("--public", action="store_true", help="make a new dataset public instead of private")
    parser.add_argument(
        "--i-may-share",
        action="append",
        default=[],
        choices=tuple(sources.SOURCES),
        metavar="SOURCE",
        help="you have the right to pass on this source's scans, though its terms do not allow it to everybody",
    )


def _merge(options: argparse.Namespace) -> int:
    from harmonize import engine
    from harmonize.corpus import RECORDS, Corpus, journal
    from harmonize.corpus.target import LOOK

    absent = journal.absent_shards(options.corpus / RECORDS)
    stray = engine.strays(options.corpus)
    merged = any((options.corpus / RECORDS / journal.journal_name(name, None)).exists() for name in sources.SOURCES)
    accepted, rejected = engine.merge(options.corpus)
    say(f"{options.corpus}: {accepted} scans, {rejected} rejected")
    if "brain_model" in Corpus.open(options.corpus).info["settings"]:
        draw_brains(options.corpus, cores())
    if absent:
        which = f"shards {', '.join(absent)}" if len(absent) > 1 else f"shard {absent[0]}"
        # The journals of a whole array are gone once they are put together.
        since = " since the last merge" if merged else ""
        say(f"{options.corpus}: {which} never ran{since}; run the same command without --shard to do what is missing")
    for source in stray:
        look = f"{RECORDS}/{source}{LOOK}"
        say(f"{options.corpus}: no shard of {source} began a scan, {look} was all that they left; give them again")
    return FAILED if absent or stray else DONE


def _verify(options: argparse.Namespace) -> int:
    from harmonize.corpus import RECORDS, journal, lock
    from harmonize.corpus.mending import Where, mended_by_merge
    from harmonize.corpus.target import LOCK
    from harmonize.corpus.verify import verify

    corpus = options.corpus
    # What a run has under way looks as if it were left by a killed one, and would be deleted by advice.
    busy = corpus / LOCK, f"{corpus}: a run is still writing this corpus; wait for it, then verify"
    lock.check_free(*busy, alone=True)
    faults = verify(corpus, workers=max(1, options.workers))
    if not faults:
        say(f"{corpus}: whole")
        return DONE
    lock.check_free(*busy, alone=True)
    try:
        mended = mended_by_merge(corpus, faults)
    except UserError:
        say(*faults)
        raise
    for fault in faults:
        say(f"{fault} (merge mends it)" if fault in mended else fault)
    if mended:
        say(f"{corpus}: {len(faults)} faults; delete nothing yet: harmonize merge {corpus}")
        say(f"mends {len(mended)} of them, for the journal in {RECORDS}/ knows better; then verify again")
    elif any(fault.where is Where.UNKNOWN for fault in faults):
        say(f"{corpus}: {len(faults)} faults; this version does not know what another one wrote:")
        say("look with that one, for a merge by this one would forget it; delete nothing")
    elif any(fault.where is Where.LOST for fault in faults):
        say(f"{corpus}: {len(faults)} faults; no command makes a standard histogram again that scans were made with:")
        say("bring it back from where the corpus came from, or from a copy; then verify again")
    elif any(fault.where is Where.TABLE for fault in faults):
        say(f"{corpus}: {len(faults)} faults; the journal in {RECORDS}/ lacks what would mend the tables:")
        say("bring the corpus back from where it came from, or from a copy")
    elif not journal.sources_in(corpus / RECORDS):
        say(f"{corpus}: {len(faults)} faults; it has no journal, as a corpus that was fetched: delete the files named,")
        say("then give the command that fetched it again (`hf download`), which brings what is missing, and only that")
    else:
        say(f"{corpus}: {len(faults)} faults; delete the files named, then give the harmonize commands again:")
        say("they make what is missing from the raw folders, and only that")
    return FAILED


def _report(options: argparse.Namespace) -> int:
    from harmonize.report import write_report

    say(write_report(options.corpus, thumbnails=options.thumbnails, workers=max(1, options.workers)))
    return DONE


def _locate(options: argparse.Namespace) -> int:
    from harmonize.corpus.locate import describe, locate
    from harmonize.sources.first_look import check_root

    check_root(options.source, options.raw)
    names = dict.fromkeys(options.names)
    unseen = set(names)
    salt = given_salt(options.salt, options.salt_file)
    for located in locate(options.source, options.raw, options.corpus, salt=salt, names=tuple(names)):
        say(describe(located))
        unseen -= {located.name, located.raw_hash}
    if unseen:
        shown = ", ".join([name for name in names if name in unseen][:SHOWN])
        raise UserError(
            f"only {len(names) - len(unseen)} of {len(names)} names stand in {options.corpus} and in {options.raw}; "
            f"not {shown}{' ...' if len(unseen) > SHOWN else ''}"
        )
    return DONE


def _publish(options: argparse.Namespace) -> int:
    from harmonize.corpus.publish import publish

    say(publish(options.corpus, options.repo, may_share=options.i_may_share, private=not options.public))
    return DONE


MERGE = Command(
    name="merge",
    text="put the shards of a corpus together and write its manifest from the files again",
    add_options=add_corpus,
    call=_merge,
)
VERIFY = Command(
    name="verify",
    text="check every row, file, hash and geometry of a corpus",
    add_options=_add_options_of_verify,
    call=_verify,
)
REPORT = Command(
    name="report",
    text="write a corpus's report/index.html: pictures, outliers first, statistics, what was rejected",
    add_options=_add_options_of_report,
    call=_report,
)
LOCATE = Command(
    name="locate",
    text="name the raw files behind a corpus's hashes: all that were rejected, or the ones you name",
    add_options=_add_options_of_locate,
    call=_locate,
)
PUBLISH = Command(
    name="publish",
    text="push a corpus to the Hugging Face Hub as a dataset",
    add_options=_add_options_of_publish,
    call=_publish,
)
