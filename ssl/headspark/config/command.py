"""A command's way out: a fault that a user meets is one line on standard error, and an exit code."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Sequence

from harmonize.errors import EXIT_INTERRUPTED, UserError, broken, is_our_own
from harmonize.parser import with_home
from harmonize.system import STOPPED, interrupt_again
from harmonize.terminal import escape_texts_of_errors, warn

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room on the disk, in the user's quota, or for a file of that size."""

_NO_MEMORY = re.compile("out of memory|can't allocate memory|Storage size calculation overflowed|not enough memory")
"""What PyTorch says on a GPU, and three things that it says on a CPU."""


def run_command(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a command and give its exit code: a `UserError` or a full disk becomes one line on standard error.

    So do a library that cannot be loaded, memory that ran out, and Ctrl-C where nothing is to be saved, whose exit code
    is that of whatever was asked to stop.

    ``--debug`` among the arguments shows the traceback too.
    """
    escape_texts_of_errors()
    interrupt_again()
    try:
        return command(with_home(argv))
    except UserError as error:
        if "--debug" in argv:
            raise
        warn(f"error: {error}")
        return error.exit_code
    except ImportError as error:
        if "--debug" in argv or is_our_own(error):
            raise
        warn(f"error: {broken(error)}")
        return 1
    except KeyboardInterrupt:
        if "--debug" in argv:
            raise
        warn(STOPPED)
        return EXIT_INTERRUPTED
    except OSError as error:
        if (error.errno not in FULL_DISK and not error.filename) or "--debug" in argv:
            raise
        where = f"{error.filename}: " if error.filename else ""
        advice = "make room and give the same command again" if error.errno in FULL_DISK else "fix that and try again"
        warn(f"error: {where}{error.strerror}; what was written before is intact: {advice}")
        return 1
    except (MemoryError, RuntimeError) as error:
        fault = " ".join(str(error).split())
        if not (isinstance(error, MemoryError) or _NO_MEMORY.search(fault)) or "--debug" in argv:
            raise
        warn(f"error: not enough memory ({fault}): take a smaller patch, batch, encoder or cache")
        return 1
