"""Tables from whoever, read within bounds: a file of a kilobyte cannot claim a milliard rows."""

from __future__ import annotations

import errno
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_FREE_ROWS = 10_000
_FREE_BYTES, _LARGEST_RATIO = 64 << 20, 500
"""Of any table; and how many times its size a larger one may have in memory. Ours, which hold hashes, have ten."""

_FREE_VALUES, _VALUES_PER_BYTE = 1 << 20, 4
"""Of any table, those of its lists counted; and how many a larger one may have for each byte."""


def read_parquet(path: Path, schema: pa.Schema | None = None, *, optional: Collection[str] = ()) -> pa.Table:
    """A table.

    Args:
        path: A regular file.
        schema: Columns that are wanted, and their types; None takes what is there.
        optional: Those of them that older tables lack; there they hold nothing.

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
                facts, plain = file.metadata, file.schema_arrow
            _check_claim(facts, size)
            # A text of a megabyte that stands in each row takes a megabyte, until it is written out.
            # Group by group, because dictionaries within lists cannot be put together.
            with pq.ParquetFile(stream, metadata=facts, read_dictionary=_texts(facts)) as file:
                parts, left = [plain.empty_table()], _most(size)
                for number in range(facts.num_row_groups):
                    part = file.read_row_group(number)
                    left -= sum(_written_out(chunk) for column in part.columns for chunk in column.chunks)
                    if left < 0:
                        raise ValueError("it holds more than its bytes can")
                    parts.append(part.cast(plain))
                table = pa.concat_tables(parts)
            if schema is None:
                return table
            absent = [name for name in schema.names if name not in table.column_names and name not in optional]
            if absent:
                raise ValueError(f"it lacks the columns {', '.join(absent)}")
            twice = [name for name in schema.names if table.column_names.count(name) > 1]
            if twice:
                raise ValueError(f"it has the column {twice[0]} twice")
            for name in optional:
                if name not in table.column_names:
                    table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
            return table.select(schema.names).cast(schema)
        # Damage comes as an ArrowException, as an OSError without a number, or as an error of the decoding.
        except (pa.ArrowException, OSError, KeyError, TypeError, UnicodeDecodeError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError("it is damaged, or no parquet file") from error


def _most(size: int) -> int:
    return max(_FREE_BYTES, _LARGEST_RATIO * size)


def _check_claim(facts: pq.FileMetaData, size: int) -> None:
    groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
    claimed = sum(group.total_byte_size for group in groups)
    values = sum(group.column(number).num_values for group in groups for number in range(group.num_columns))
    too_many = facts.num_rows > max(_FREE_ROWS, size) or values > max(_FREE_VALUES, _VALUES_PER_BYTE * size)
    if too_many or claimed > _most(size):
        raise ValueError("it claims more than its bytes can hold")


def _texts(facts: pq.FileMetaData) -> list[str]:
    columns = [facts.schema.column(number) for number in range(len(facts.schema))]
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _written_out(values: pa.Array) -> int:
    """Bytes of an array when each of its texts stands in its own place."""
    if isinstance(values, pa.DictionaryArray):
        return pc.sum(pc.take(pc.binary_length(values.dictionary), values.indices)).as_py() or 0
    if isinstance(values, pa.StructArray):
        return sum(map(_written_out, values.flatten()))
    if isinstance(values, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        return _written_out(values.flatten())
    return int(values.nbytes)
