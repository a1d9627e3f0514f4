"""Columns and records of a data set, read many at a time.

`datasets` gives a column, like the data set itself, row by row where a loop goes through it: 7 µs a value and 50 µs a
record, twenty times what they take in batches. All at once (`problems["id"][:]`) is for what fits into memory.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

BATCH = 1000
PICTURES = 10  # records with pictures, which may be large: as many as `datasets` itself reads at once


def read_column(problems, name: str) -> Iterator[Any]:
    """The values of a column, one after another.

    Args:
        problems: a `datasets.Dataset`, or a mapping of columns.
    """
    if not hasattr(problems, "num_rows"):
        yield from problems[name]
        return
    for batch in problems.select_columns([name]).iter(_batch_size([name])):
        yield from batch[name]


def read_records(problems: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The records, one after another.

    Args:
        problems: a `datasets.Dataset`; any other iterable, a stream too, is gone through as it is.
    """
    if not hasattr(problems, "num_rows"):
        yield from problems
        return
    for batch in problems.iter(_batch_size(problems.column_names)):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _batch_size(names: list[str]) -> int:
    return PICTURES if "images" in names else BATCH
