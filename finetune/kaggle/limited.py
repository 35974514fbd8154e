"""A function that may hang, called for at most so many seconds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class TooLong(Exception):
    """A call took longer than it may."""


class Limited(Generic[T]):
    """Calls a function in one thread beside the caller's, which is left to itself once a call took too long.

    A thread cannot be stopped: what hangs goes on, and the next call gets another. It ends with the process.
    """

    def __init__(self, function: Callable[..., T], seconds: float) -> None:
        self._function, self._seconds = function, seconds
        self._calls: SimpleQueue[tuple[Future[T], tuple[Any, ...]]] | None = None

    def __call__(self, *arguments: Any) -> T:
        """Return what the function returns, or raise what it raises.

        Raises:
            TooLong: It has not ended after so many seconds.
        """
        if self._calls is None:
            self._calls = SimpleQueue()
            Thread(target=_answer, args=(self._function, self._calls), daemon=True).start()
        called: Future[T] = Future()
        self._calls.put((called, arguments))
        try:
            return called.result(self._seconds)
        except TimeoutError as error:
            if called.done():  # the function's own
                raise
            self._calls = None
            raise TooLong(f"no answer within {self._seconds:g} s") from error


def _answer(function: Callable[..., T], calls: SimpleQueue[tuple[Future[T], tuple[Any, ...]]]) -> None:
    while True:
        called, arguments = calls.get()
        try:
            called.set_result(function(*arguments))
        except BaseException as error:
            called.set_exception(error)
