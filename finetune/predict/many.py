"""Predict thousands of series: workers read and harmonize ahead, the models are asked for several at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from typing import cast

from threadpoolctl import threadpool_limits

from finetune.predict.ensemble import Ensemble, Said
from finetune.predict.journal import Row
from finetune.raw.look import Harmonized, Looked, Wish, look
from finetune.raw.places import Place
from harmonize import pool, time_limit
from harmonize.errors import Reason, Rejection
from harmonize.pool import Died

TIME_LIMIT_S = 3600.0
"""For the files of one folder; what takes longer loses its worker, as in `harmonize`."""

Looking = Generator[tuple[Place, Looked | Died], None, None]
"""Places with what was found there, in any order."""

_CAUSES = {time_limit.EXIT_CODE: "it twice took longer than an hour"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A series that was harmonized for the models."""

    looked: Looked
    series: Harmonized


def answer_places(
    places: Sequence[Place],
    ensembles: Sequence[Ensemble],
    *,
    workers: int,
    batch: int,
    known: Callable[[Place], set[int]] = lambda place: set(),
    asked: Callable[[], bool] = lambda: False,
) -> Iterator[Row]:
    """What becomes of each series, as it is known.

    Args:
        places: Where to look.
        ensembles: The same models, on a device each.
        workers: Processes that read and harmonize ahead; 0 does that in this one.
        batch: Series that are asked about at once.
        known: Numbers of a place's series that nobody need answer.
        asked: Whether to stop; what is being computed then is still answered.
    """
    if not places:
        return

    def more(looked: Looked) -> list[Place]:
        return [part for part in looked.parts if part.part not in known(part)]

    found = _looked_at(places, ensembles[0].panel.wishes, workers, more)
    with _Asking(ensembles, batch) as asking, closing(found):
        for place, looked in found:
            if isinstance(looked, Died):
                yield _row(Looked(place=place, state=place.state()), _death(looked))
            elif isinstance(looked.series, Harmonized):
                yield from asking.take(Waiting(looked=looked, series=looked.series))
            elif looked.series is not None:
                yield _row(looked, looked.series)
            if asked():
                break
        yield from asking.rest()


def _looked_at(
    places: Sequence[Place], wishes: Sequence[Wish], workers: int, more: Callable[[Looked], Iterable[Place]]
) -> Looking:
    if workers == 0:
        waiting = deque(places)
        while waiting:
            place = waiting.popleft()
            # One thread, as in a worker: sums of floats may depend on how many share them.
            with threadpool_limits(limits=1):
                looked = look(place, wishes=wishes)
            waiting.extend(more(looked))
            yield place, looked
        return
    function = partial(time_limit.within, function=partial(look, wishes=tuple(wishes)), seconds=TIME_LIMIT_S)
    yield from pool.run(function, places, workers=workers, more=more)


class _Asking:
    """Series of one kind that wait to be asked about together, and what is being asked on each device."""

    def __init__(self, ensembles: Sequence[Ensemble], batch: int) -> None:
        self._batch, self._devices = batch, len(ensembles)
        self._free: SimpleQueue[Ensemble] = SimpleQueue()
        for ensemble in ensembles:
            self._free.put(ensemble)
        self._threads = ThreadPoolExecutor(len(ensembles), thread_name_prefix="device")
        self._gathered: dict[str, list[Waiting]] = {}
        self._asked: set[Future[list[Row]]] = set()

    def __enter__(self) -> _Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def take(self, waiting: Waiting) -> Iterator[Row]:
        """Ask about a series as soon as there are enough of its kind; gives what has been answered meanwhile."""
        gathered = self._gathered.setdefault(waiting.series.kind, [])
        gathered.append(waiting)
        if len(gathered) == self._batch:
            self._ask(self._gathered.pop(waiting.series.kind))
        # One more batch than devices: the next lies ready, and no more series than that are held.
        yield from self._answered(at_most=self._devices)

    def rest(self) -> Iterator[Row]:
        """Ask about what is left, and wait for all answers."""
        for gathered in self._gathered.values():
            self._ask(gathered)
        self._gathered.clear()
        yield from self._answered(at_most=0)

    def _ask(self, gathered: list[Waiting]) -> None:
        self._asked.add(self._threads.submit(self._answer, gathered))

    def _answer(self, gathered: list[Waiting]) -> list[Row]:
        ensemble = self._free.get()
        try:
            found = ensemble.answer([waiting.series for waiting in gathered], where=True)
        finally:
            self._free.put(ensemble)
        return [_row(waiting.looked, said) for waiting, said in zip(gathered, found, strict=True)]

    def _answered(self, *, at_most: int) -> Iterator[Row]:
        """The rows that are ready; waits until no more than so many batches are being asked about."""
        while self._asked:
            left = len(self._asked) > at_most
            done, self._asked = wait(self._asked, timeout=None if left else 0, return_when=FIRST_COMPLETED)
            for future in done:
                yield from future.result()
            if not done:
                return


def _row(looked: Looked, said: Said | Rejection) -> Row:
    place = looked.place
    where = Row(
        place=place.key,
        state=looked.state,
        part=place.part,
        parts=place.parts,
        series=place.uid or place.name,
        folder=place.name,
    )
    if isinstance(said, Rejection):
        return replace(where, reason=said.reason.value, message=said.message)
    series = cast(Harmonized, looked.series)
    return replace(
        where,
        kind=series.kind,
        probabilities=tuple(said.probabilities.values()),
        decisions=said.decisions,
        candidates=said.candidates,
    )


def _death(died: Died) -> Rejection:
    killed = f"its process was killed twice (exit code {died.exit_code}), probably for memory or by a damaged picture"
    return Rejection(Reason.WORKER_DIED, _CAUSES.get(died.exit_code or 0, killed))
