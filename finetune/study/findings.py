"""What the numbers of a study say and do not say, in sentences that are made of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from finetune.evaluation.areas import Estimate
from finetune.evaluation.text import number
from finetune.metrics import LEVEL
from finetune.study.compared import ASKED, Compared
from finetune.study.config import PROBE, StudyConfig
from finetune.study.pairs import ALL, Detected
from finetune.study.plan import COMPUTED_NOW, Planned, percent, planned
from finetune.study.table import ARM, INSIDE, LABELLED, OUTSIDE, Study

WHERE = {INSIDE: "in distribution", OUTSIDE: "out of distribution"}
"""Splits in words."""

HELPS, HARMS, UNSHOWN, UNDEFINED = "helps", "harms", "no difference shown", "undefined"


def verdict(difference: Estimate) -> str:
    """What an interval of a difference to the first arm says.

    Example:
        >>> from finetune.metrics import Interval
        >>> verdict(Estimate(value=0.1, interval=Interval(low=0.02, high=0.18, defined=1.0)))
        'helps'
    """
    low, high = difference.interval.low, difference.interval.high
    if not low <= high:  # NaN
        return UNDEFINED
    return HELPS if low > 0 else HARMS if high < 0 else UNSHOWN


def pretrained_arms(config: StudyConfig, one: Compared) -> list[str]:
    """The arms that begin with the pretrained encoder, as far as they were compared."""
    return [arm.name for arm in config.arms if arm.pretrained and arm.name in one.arms]


def sentences(
    study: Study, compared: Sequence[Compared], detected: Sequence[Detected], *, each: bool = True
) -> Iterator[str]:
    """What a reader should take away, the answer first and the limits last.

    Args:
        study: Whose.
        compared: Its comparisons.
        detected: Its detectability.
        each: Whether each difference is said, as a table has it.
    """
    config = study.config
    yield answer(config, compared)
    yield from _uncompared(study, compared)
    if each:
        yield from _differences(config, compared, planned(study))
    yield from _chance(config, compared)
    yield from _detection(config, detected)
    yield limits(config)


def answer(config: StudyConfig, compared: Sequence[Compared]) -> str:
    """The answer to the question of the study in one sentence or two."""
    verdicts = {
        measure: {
            f"{arm} with {one.labelled} labelled series, {WHERE[one.split]}": verdict(one.difference(arm, measure))
            for one in compared
            for arm in pretrained_arms(config, one)
        }
        for measure in ASKED
    }
    if not any(verdicts.values()):
        return "No arm with pretraining has been compared with the one without yet."
    if {one for own in verdicts.values() for one in own.values()} == {UNDEFINED}:
        return "Too few series or seeds: none of the comparisons has an interval."
    return " ".join(_counted(measure, own) for measure, own in verdicts.items())


def _counted(measure: str, verdicts: Mapping[str, str]) -> str:
    """What a measure says in all comparisons, which are named."""
    count, total = Counter(verdicts.values()), len(verdicts)
    if count[UNDEFINED] == total:
        return f"No comparison of {measure} has an interval."
    named = {kind: "; ".join(name for name, own in verdicts.items() if own == kind) for kind in (HELPS, HARMS)}
    changed = [
        f"{did} in {count[kind]} ({named[kind]})" for kind, did in ((HELPS, "helped"), (HARMS, "harmed")) if count[kind]
    ]
    if changed:
        begins = f"Pretraining {' and '.join(changed)} of {total} comparisons of {measure}"
    else:
        begins = f"This study does not show that pretraining changes {measure} in any of {total} comparisons"
    rest = f"; in {count[UNSHOWN]} no difference is shown" if count[UNSHOWN] and count[UNSHOWN] < total else ""
    undefined = f"; {count[UNDEFINED]} have no interval" if count[UNDEFINED] else ""
    return f"{begins}{rest}{undefined}."


def _uncompared(study: Study, compared: Sequence[Compared]) -> Iterator[str]:
    """Where nothing is compared, and why."""
    first = study.config.arms[0].name
    for labelled in study.config.design.labels:
        if any(one.labelled == labelled for one in compared):
            continue
        arms = [arm for arm in study.arms if (study.rows.loc[study.rows[LABELLED] == labelled, ARM] == arm).any()]
        if first not in arms:
            why = f"{first} has no predictions there"
        elif arms == [first]:
            why = f"no arm but {first} has predictions there"
        else:
            why = f"of no seed have {', '.join(arms)} all predictions there"
        yield f"With {labelled} labelled series nothing is compared: {why}."


def _differences(config: StudyConfig, compared: Sequence[Compared], plan: Planned) -> Iterator[str]:
    first = config.arms[0].name
    for one in compared:
        for arm in pretrained_arms(config, one):
            where = f"With {one.labelled} labelled series, {WHERE[one.split]}, {arm} minus {first}"
            said = "; ".join(_said(one, measure, arm, first, plan) for measure in ASKED)
            yield f"{where}: {said}."


def _said(one: Compared, measure: str, arm: str, first: str, plan: Planned) -> str:
    """What a measure says of an arm."""
    found = one.difference(arm, measure)
    scratch, own = one.score(first, measure).value, one.score(arm, measure).value
    numbers = f"{measure} {signed(found)} ({number(scratch)} without pretraining, {number(own)} with it)"
    said = verdict(found)
    if said == UNDEFINED:
        return f"{numbers}, too few series or seeds for an interval"
    if said == UNSHOWN:
        least = plan.smallest(measure, one.split)
        said = "was said beforehand to be" if plan.beforehand else f"is, {COMPUTED_NOW},"
        smallest = "" if least is None else f"; {least:.3f} {said} the smallest to be seen"
        return (
            f"{numbers}, no difference is shown (a benefit above {max(found.interval.high, 0):.3f} is excluded at "
            f"{percent(LEVEL)}, one of up to that is not{smallest})"
        )
    return f"{numbers}, pretraining {said}"


def _chance(config: StudyConfig, compared: Sequence[Compared]) -> Iterator[str]:
    count = len(ASKED) * sum(len(pretrained_arms(config, one)) for one in compared)
    if count > 1:
        yield (
            f"Of {count} intervals at {percent(LEVEL)}, {count * (1 - LEVEL):.1f} leave out 0 by chance where nothing "
            "differs: a single one that does is weak evidence."
        )
    guesses = [
        f"{one.labelled} labelled series, {WHERE[one.split]}, by {measure}"
        for one in compared
        for measure in ASKED
        if all(run.scores[measure].interval.low <= 0.5 for run in one.comparison.runs if not run.name.startswith(PROBE))
        and all(verdict(one.difference(arm, measure)) == UNSHOWN for arm in pretrained_arms(config, one))
    ]
    if guesses:
        yield (
            f"No arm is shown to be better than a guess with {'; '.join(guesses)}: arms that have learned nothing "
            "cannot differ, and that they do not says nothing of pretraining there."
        )


def _detection(config: StudyConfig, detected: Sequence[Detected]) -> Iterator[str]:
    arms = {arm.name for arm in config.arms if arm.pretrained}
    for one in detected:
        if one.by != ALL or one.arm not in arms:
            continue
        said = {HELPS: "more often", HARMS: "less often", UNSHOWN: "not shown to differ", UNDEFINED: "undefined"}
        yield (
            f"{one.arm} after {one.labelled} labelled series scores the sac's site higher with the sac than without "
            f"it in {percent(one.share.value)} of {one.pairs} heads; the share minus that of "
            f"{config.arms[0].name} is {signed(one.share_more)}: "
            f"{said[verdict(one.share_more)]}."
        )


def limits(config: StudyConfig) -> str:
    """What the study cannot say, whatever its numbers are."""
    seeds = len(config.design.seeds)
    told = "one seed tells nothing" if seeds == 1 else f"{seeds} seeds tell little"
    return (
        "What this does not say: the heads are phantoms, one pretraining of one small network was tried "
        f"({config.pretraining.recipe}), all arms took {config.arms[0].steps} steps whatever would have suited each, "
        f"and {told} of how much training runs differ. It does not carry over to real "
        "scans, larger networks, longer pretraining or other targets."
    )


def signed(estimate: Estimate) -> str:
    """A difference with its interval in a sentence."""
    low, high = estimate.interval.low, estimate.interval.high
    if math.isnan(estimate.value):
        return UNDEFINED
    return f"{estimate.value:+.3f} ({low:+.3f} to {high:+.3f})" if low <= high else f"{estimate.value:+.3f}"
