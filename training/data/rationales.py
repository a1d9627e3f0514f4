"""Rationales that a teacher wrote, in place of a data set's own: what `mmcot distill` leaves, and training reads.

A file of JSON Lines: a header (teacher, method, prompt, seed, kept share of each split), then `id`, `split`,
`rationale` of one kept rationale a line. A question may have several.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmcot.training.common import MissingFileError, UserError, read_jsonl, written_whole


def write_rationales(path: str | Path, header: Mapping[str, Any], rationales: Iterable[Mapping[str, Any]]) -> Path:
    """Writes the file, whole or not at all."""
    with written_whole(path) as file:
        for record in ({"header": dict(header)}, *rationales):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return Path(path)


def read_rationales(path: str | Path) -> dict[str, list[str]]:
    """id → rationales, in the file's order.

    Raises:
        MissingFileError, UserError: no such file; one that holds something else (the message has the line).
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"rationales: there is no file {path}; `mmcot distill` writes one")
    found: dict[str, list[str]] = {}
    try:
        records = list(read_jsonl(path))
    except ValueError as error:
        raise UserError(f"{path}: not a file of rationales ({error})") from None
    for number, record in enumerate(records, start=1):
        if isinstance(record, Mapping) and "header" in record and "id" not in record:
            continue
        rationale = record.get("rationale") if isinstance(record, Mapping) else None
        if not isinstance(rationale, str) or not rationale.strip() or record.get("id") is None:
            raise UserError(f"{path}: line {number}: expected an object with 'id' and 'rationale', both texts")
        found.setdefault(str(record["id"]), []).append(rationale)
    if not found:
        raise UserError(f"{path}: holds no rationales")
    return found


def with_rationales(problems, rationales: Mapping[str, list[str]], where: str | Path = "rationales"):
    """Problems whose solution is a teacher's rationale: one record for each, so a question may stand there several
    times.

    Ids stay unique: the second record of problem "4" is "4#2". Lectures are left out, for the rationale is complete.
    Problems without a rationale are left out.

    Args:
        problems: a `datasets.Dataset` of problem records.
        rationales: see `read_rationales`.

    Raises:
        UserError: none of the problems has a rationale.
    """
    ids = problems["id"][:]
    chosen = [(row, number) for row, id_ in enumerate(ids) for number in range(len(rationales.get(id_, ())))]
    if not chosen:
        raise UserError(f"{where}: has no rationale of any of the {len(ids)} problems: written for another source?")
    numbers = [number for _, number in chosen]

    def replaced(batch: dict[str, list], rows: list[int]) -> dict[str, list]:
        pairs = list(zip(batch["id"], (numbers[row] for row in rows), strict=True))
        return {
            "id": [id_ if number == 0 else f"{id_}#{number + 1}" for id_, number in pairs],
            "solution": [rationales[id_][number] for id_, number in pairs],
            "lecture": [""] * len(pairs),
        }

    return problems.select([row for row, _ in chosen]).map(replaced, batched=True, with_indices=True)
