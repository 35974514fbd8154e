"""Tables from whoever, read within bounds: a file of a kilobyte cannot claim a milliard rows."""

from __future__ import annotations

import errno
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_FREE_ROWS = 10_000
_FREE_BYTES, _LARGEST_RATIO = 64 << 20, 500
"""Of any table; and how many times its size a larger one may have in memory. Ours, which hold hashes, have ten."""


def read_parquet(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """A table.

    Args:
        path: A regular file.
        schema: Columns that are wanted, and their types; None takes what is there.

    Raises:
        OSError: It is absent, unreadable, or no regular file.
        ValueError: It is damaged, lacks a column, has another type there, or claims more than its bytes can hold.
    """
    if not path.is_file():
        path.stat()  # raises if there is nothing
        raise OSError(errno.EINVAL, "no regular file", str(path))
    size = path.stat().st_size
    with path.open("rb") as stream:
        try:
            with pq.ParquetFile(stream) as file:
                facts = file.metadata
                claimed = sum(facts.row_group(number).total_byte_size for number in range(facts.num_row_groups))
                too_many = facts.num_rows > max(_FREE_ROWS, size)
                if too_many or claimed > max(_FREE_BYTES, _LARGEST_RATIO * size):
                    raise ValueError("it claims more than its bytes can hold")
                table = file.read()
            if schema is None:
                return table
            absent = [name for name in schema.names if name not in table.column_names]
            if absent:
                raise ValueError(f"it lacks the columns {', '.join(absent)}")
            twice = [name for name in schema.names if table.column_names.count(name) > 1]
            if twice:
                raise ValueError(f"it has the column {twice[0]} twice")
            return table.select(schema.names).cast(schema)
        # Damage comes as an ArrowException, as an OSError without a number, or as an error of the decoding.
        except (pa.ArrowException, OSError, KeyError, TypeError, UnicodeDecodeError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError("it is damaged, or no parquet file") from error
