"""The faults that a user meets: one line each, and a stable reason code where a scan is rejected."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

WRONG_USE = 2
"""The exit code of a command that was not understood, and that did nothing."""

EXIT_INTERRUPTED = 75
"""The exit code of work that was asked to stop and keeps what it has: EX_TEMPFAIL, give the same command again."""


class UserError(Exception):
    """The job cannot start or go on; the message is one line: what, where, what to do.

    Attributes:
        exit_code: 1 when nothing usable was found or the job could not finish, 2 for wrong use, 75 when it was stopped.
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class WrongUse(UserError):
    """The command, its options or its recipe cannot be meant so; nothing was done. Exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=WRONG_USE)


_NOT_LOADED = "the installation is not whole, or there is too little memory to load it; `headspark doctor` says more"
OUR_PACKAGES = ("harmonize", "headspark", "finetune")


def is_our_own(error: ImportError | MemoryError) -> bool:
    """Whether an import failed of something of ours: a fault of the code, not of the installation."""
    return isinstance(error, ImportError) and (error.name or "").partition(".")[0] in OUR_PACKAGES


def broken(error: ImportError | MemoryError) -> str:
    """One line about a library that cannot be loaded, or about memory that ran out.

    Example:
        >>> broken(ImportError("libtorch_cpu.so: failed to map segment from shared object"))
        'libtorch_cpu.so: failed to map segment from shared object: the installation is not whole, or there is too \
little memory to load it; `headspark doctor` says more'
        >>> broken(MemoryError())
        'not enough memory: take fewer --workers, or ask for a larger job'
    """
    if isinstance(error, MemoryError):
        return "not enough memory: take fewer --workers, or ask for a larger job"
    fault = str(error).strip().split("\n")[0] or type(error).__name__
    return f"{fault}: {_NOT_LOADED}"


class Reason(StrEnum):
    """Why a scan is rejected. The value is the stable code in rejected.parquet; docs/rejections.md explains each."""

    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    EMPTY = "empty"
    NOT_AN_IMAGE = "not_an_image"
    MISSING_FILE = "missing_file"
    MISSING_METADATA = "missing_metadata"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    UNSUPPORTED_UNIT = "unsupported_unit"
    UNSUPPORTED_MODALITY = "unsupported_modality"
    LOCALIZER = "localizer"
    DERIVED = "derived"
    TOO_FEW_SLICES = "too_few_slices"
    MIXED_GEOMETRY = "mixed_geometry"
    REPEATED_POSITIONS = "repeated_positions"
    MIXED_VOLUMES = "mixed_volumes"
    MISSING_SLICES = "missing_slices"
    BAD_GEOMETRY = "bad_geometry"
    BAD_INTENSITY = "bad_intensity"
    NOT_3D = "not_3d"
    NO_FOREGROUND = "no_foreground"
    TOO_LARGE = "too_large"
    DUPLICATE = "duplicate"
    UNSAFE_NAME = "unsafe_name"
    WORKER_DIED = "worker_died"
    IO_ERROR = "io_error"


class Stage(StrEnum):
    """What was being done with a scan when it was rejected; the column ``stage`` of rejected.parquet."""

    DISCOVER = "discover"
    LOAD = "load"
    RESAMPLE = "resample"
    NORMALISE = "normalise"
    WRITE = "write"


class Rejection(Exception):
    """One scan is rejected; the rest goes on.

    It is raised where the fault is known, and kept as a value where a look at headers finds it: two of the same
    reason, message and stage are equal.

    Args:
        reason: The stable code.
        message: One line for a person. It must not carry patient data: no header text, no raw file names.
        stage: What was being done; whoever runs the stages knows it, not the place where the fault is found.
    """

    def __init__(self, reason: Reason, message: str, *, stage: Stage = Stage.LOAD) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.stage = stage

    def at(self, stage: Stage) -> Rejection:
        """The same of another stage. Like any copy it holds none of the frames that this one was raised in."""
        return Rejection(self.reason, self.message, stage=stage)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rejection) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword-only arguments do not survive the pickling between processes by themselves.
        return _rebuild_rejection, self._key()

    def _key(self) -> tuple[Reason, str, Stage]:
        return self.reason, self.message, self.stage


class UnreadablePart(OSError):
    """A file of a scan besides its image could not be read; the message says which kind, for its name may be private.

    Attributes:
        part: What the file is, such as ``mask``.
    """

    def __init__(self, part: str, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self.part = part


@contextmanager
def reading(part: str) -> Iterator[None]:
    """Let a failure to read say which file of the scan it met.

    Example:
        >>> with reading("mask"):
        ...     open("no/such/file")
        Traceback (most recent call last):
            ...
        harmonize.errors.UnreadablePart: [Errno 2] No such file or directory
    """
    try:
        yield
    except OSError as error:
        raise UnreadablePart(part, error) from error


def unforeseen(error: Exception) -> Rejection:
    """A rejection for a fault that nobody foresaw; the fault's own text is left out, because it may quote a header."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return Rejection(Reason.UNREADABLE, f"unexpected {type(error).__name__} in {place}")


def _rebuild_rejection(reason: Reason, message: str, stage: Stage) -> Rejection:
    return Rejection(reason, message, stage=stage)
