"""Two users of one machine who are not us: code that runs as one of them, in a process of its own."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")

FIRST, SECOND = 65534, 64999

two_users = pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can be two other users")


def as_user(user: int, function: Callable[[], T]) -> T:
    """What `function` returns in a forked process of that user; whatever it raises fails the test.

    All that it imports must be imported already: that user may not be able to read this Python.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer: tuple[bool, object] = (False, "died")
        try:
            os.close(reading)
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            os.umask(0o022)
            answer = (True, function())
        except BaseException:
            answer = (False, traceback.format_exc())
        finally:
            with os.fdopen(writing, "wb") as stream:
                pickle.dump(answer, stream)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        content = stream.read()
    os.waitpid(child, 0)
    worked, value = pickle.loads(content)
    if not worked:
        pytest.fail(f"as user {user}: {value}")
    return value
