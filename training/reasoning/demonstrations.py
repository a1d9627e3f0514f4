"""Demonstrations: solved problems before the question. They come from the training split or from a file, never from
the questions that are asked."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError, written_whole

KEYS = ("id", "question", "choices", "answer", "context", "caption", "lecture", "solution", "rationale")


def sample_demonstrations(train: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` problems of the training split, drawn by `seed`.

    Raises:
        UserError: there are fewer.
    """
    if count > len(train):
        raise UserError(f"{count} demonstrations are asked for, but the training split has {len(train)} problems")
    return [dict(train[index]) for index in random.Random(seed).sample(range(len(train)), count)]


def read_demonstrations(path: str | Path) -> list[dict[str, Any]]:
    """Demonstrations from JSON Lines: `question`, `choices`, `answer` (index or letter), and `rationale` or
    `solution`; `context`, `caption` and `lecture` if there are any. People write them by hand.

    Raises:
        UserError: file and line of a bad one.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file of demonstrations {path}")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not valid JSON ({error})") from None
        found.append(_checked(record, where))
    if not found:
        raise UserError(f"{path}: holds no demonstrations")
    return found


def _checked(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict) or not isinstance(record.get("question"), str):
        raise UserError(f"{where}: a demonstration is a JSON object with question, choices, answer and rationale")
    choices, answer = record.get("choices"), record.get("answer")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
        raise UserError(f"{where}: 'choices' must be a list of two texts at least")
    if isinstance(answer, str) and len(answer.strip("()")) == 1:
        answer = ord(answer.strip("()").upper()) - ord("A")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise UserError(
            f"{where}: 'answer' must be the letter or the index of a choice, but is {record.get('answer')!r:.80}"
        )
    rationale = record.get("rationale")
    solution = record.get("solution") or rationale or ""
    return {**record, "answer": answer, "solution": solution, "rationale": rationale or solution}


def write_demonstrations(path: str | Path, demonstrations: Iterable[Mapping[str, Any]]) -> None:
    """Writes them so that a person can read, mend and reuse them."""
    with written_whole(path) as file:
        for shot in demonstrations:
            kept = {key: shot[key] for key in KEYS if shot.get(key) not in (None, "")}
            file.write(json.dumps(kept, ensure_ascii=False) + "\n")


def rationale_of(demonstration: Mapping[str, Any]) -> str:
    """What a demonstration reasons: its own rationale, else its lecture and solution."""
    given = demonstration.get("rationale")
    if given:
        return given
    return " ".join(part for part in (demonstration.get("lecture"), demonstration.get("solution")) if part)
