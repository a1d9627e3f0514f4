"""Predictions files: JSON Lines whose first record says how the others came about.

    {"header": {"method": "multimodal-cot", "model": …, "split": "test", "protocol": "generated", …}}
    {"id": "4", "answer": 1, "rationale": …, "scores": […], "generated": {"rationale": …, "answer": …}}

One writer for every command that predicts: a file cut off is gone on with, by the same model and settings only, and
appears under its name when it is whole. Several processes write a part each.
"""

import glob
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError, drop_cut_line, full_disk_told, read_jsonl, written_whole


def header(method: str, **facts: Any) -> dict[str, Any]:
    """The header of a predictions file.

    Args:
        method: "multimodal-cot", or a method of `mmcot reason`.
        facts: `model` and `revision` (or `fingerprint`) of what predicted, `source` and `split` of the questions,
            `protocol` ("generated" or "teacher_forced"), `mode` ("score" or "generate"), `decoding` (options of
            generation), `images` ("given" or "blank"), `rationale_format` (None in one stage), `parameters`,
            `seconds_per_question`, and what a method adds (`prompt`, `seed`, `tokens`).
    """
    from mmcot import __version__

    return json.loads(json.dumps({"method": method, **facts, "mmcot": __version__}))


LATE = ("tokens", "seconds_per_question")  # known when all is written: they say nothing about what was begun


TEXTS = ("method", "model", "revision", "fingerprint", "source", "split", "protocol", "mode", "dtype", "images")
TEXTS += ("rationale_format", "stage")
NUMBERS = ("parameters", "seconds_per_question")
PROTOCOLS = ("generated", "teacher_forced")


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of a predictions file; empty for a file that has none.

    Raises:
        UserError: a field of the header isn't what `header` makes of it.
    """
    with open(path, "rb") as file:
        line = file.readline()
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    found = first.get("header") if isinstance(first, Mapping) and "id" not in first else None
    if not isinstance(found, Mapping):
        return {}
    for name, value in found.items():
        expected = _expected(name, value)
        if expected is not None:
            raise UserError(f"{path}: its header is damaged: {name!r} must be {expected}, but is {value!r:.80}")
    return dict(found)


def _expected(name: str, value: Any) -> str | None:
    """What a field of a header must be, where it isn't."""
    if value is None:
        return None
    if name in TEXTS and not isinstance(value, str):
        return "a text"
    if name == "protocol" and value not in PROTOCOLS:
        return " or ".join(PROTOCOLS)
    if name in NUMBERS:
        return None if _is_count(value) else "a number"
    if name == "tokens":
        counted = isinstance(value, Mapping) and all(map(_is_count, value.values()))
        return None if counted else "an object of numbers"
    return "an object" if name in ("decoding", "features") and not isinstance(value, Mapping) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


class PredictionsWriter:
    """Writes a predictions file record by record; use it in a `with` block.

    What an earlier, interrupted writer of the same header left is kept: see `done`.

    Args:
        path: the file; it appears when `finish` has been called. Until then records are in `<path>.partial-records`.
        header: see `header`; what an interrupted run left is gone on with only if its header is the same.
        rank, num_processes: this process's number, and how many write a part each.

    Attributes:
        done: id → record of what is written already: by this process, or by any of an interrupted run, however many
            processes it had.

    Raises:
        UserError: the interrupted file beside `path` comes from another model or other settings.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any], *, rank: int = 0, num_processes: int = 1):
        self.path, self.header = Path(path), dict(header)
        suffix = "" if num_processes == 1 else f".{rank}of{num_processes}"
        self.part = self.path.with_name(f"{self.path.name}.partial-records{suffix}")
        self.part.parent.mkdir(parents=True, exist_ok=True)
        drop_cut_line(self.part)
        self.done = self._written()
        self._file = None

    def _parts(self) -> list[Path]:
        name = glob.escape(f"{self.path.name}.partial-records")
        return sorted(path for suffix in ("", ".*of*") for path in self.path.parent.glob(f"{name}{suffix}"))

    def _written(self) -> dict[str, dict]:
        return {id_: record for part in self._parts() for id_, record in self._read(part).items()}

    def _read(self, part: Path) -> dict[str, dict]:
        try:
            records = list(read_jsonl(part))
            whole = all(isinstance(record, dict) and "id" in record for record in records[1:])
            found = records[0]["header"] if records else {}
            whole = whole and isinstance(found, dict)
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise UserError(f"{part}: is damaged: remove it to start anew")
        if not records:
            return {}
        keys = [key for key in {**found, **self.header} if found.get(key) != self.header.get(key) and key not in LATE]
        if self.header.get("fingerprint"):  # says which model it is better than the folder's name
            keys = [key for key in keys if key != "model"]
        if keys:
            raise UserError(
                f"{part}: was begun with another {', '.join(keys)}: choose another output, or remove it to start anew"
            )
        return {record["id"]: record for record in records[1:]}

    def __enter__(self) -> "PredictionsWriter":
        empty = not self.part.exists() or self.part.stat().st_size == 0
        self._file = open(self.part, "a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        if empty:
            self._write({"header": self.header})
        return self

    def __exit__(self, *error) -> None:
        with full_disk_told(self.part):  # closing writes what a failed write has left
            self._file.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        with full_disk_told(self.part):
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()

    def add(self, record: Mapping[str, Any]) -> None:
        """One prediction: `id`, `answer` (index or None), and what else there is."""
        self._write(record)
        self.done[record["id"]] = dict(record)

    def finish(self, ids: Iterable[str], **facts: Any) -> Path:
        """Joins the parts of all processes (to be called by one, when all are through), in the order of `ids`.

        `facts` are known only now, such as the tokens used, and join the header.
        """
        parts, records = self._parts(), self._written()
        with written_whole(self.path) as file:
            for record in ({"header": {**self.header, **facts}}, *(records[id_] for id_ in ids)):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        for part in parts:
            part.unlink()
        return self.path
