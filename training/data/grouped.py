"""Records in another order than they are read in: those of a split together."""

import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmcot.training.data.splits import MADE


class Shelf:
    """What was read of each row, one record or several, on disk: with pictures it may not fit into memory.

    Args:
        folder: where the file lies, which goes when this object does.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as the shelf
        self.starts: list[int] = []
        self.sizes: list[int] = []

    def put(self, records: list[dict[str, Any]]) -> None:
        self.starts.append(self.file.tell())
        self.sizes.append(len(records))
        pickle.dump(records, self.file)

    def take(self, row: int) -> list[dict[str, Any]]:
        self.file.seek(self.starts[row])
        return pickle.load(self.file)

    def places(self, splits: Sequence[str | None]) -> list[tuple[int, int]]:
        """(row, number within the row) of each record: train, val, test, then others as they appear.

        Args:
            splits: of the rows.
        """
        turn = {name: number for number, name in enumerate(dict.fromkeys((*MADE, *splits)))}
        rows = sorted(range(len(splits)), key=lambda row: turn[splits[row]])
        return [(row, number) for row in rows for number in range(self.sizes[row])]
