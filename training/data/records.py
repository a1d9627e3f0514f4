"""What a problem record holds: its fields, the check of every value, and what is said of bad records."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmcot.training.common import MissingFileError, UserError

TEXT_COLUMNS = ("context", "lecture", "solution")  # empty when the source doesn't have them
LABEL_COLUMNS = ("caption", "subject", "grade", "topic", "category", "skill")  # None when the source doesn't have them
FIELDS = ("id", "question", "choices", "answer", *TEXT_COLUMNS, *LABEL_COLUMNS, "images", "has_image", "split")
MAX_CHOICES = 26  # options are lettered A to Z
SHOWN = 20  # bad records in one message
MANY_MISSING = 5  # images: more are told in one sentence

_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")


class Row(NamedTuple):
    """What a reader gives: the record as it stands in the source, or why it can't be read."""

    file: str
    place: str  # "line 3", "problem 7"
    values: dict[str, Any]
    fault: Exception | None = None
    split: str | None = None  # what its file, folder or list says
    cells: bool = False  # all values are text, as in CSV


class MissingImageError(MissingFileError):
    """An image that a record names isn't there."""

    def __init__(self, path: Path, text: str):
        super().__init__(text)
        self.path = path


class Faults:
    """Bad records of a source, so that one error names them all."""

    def __init__(self):
        self.count = 0
        self.told: dict[tuple[str, str], list[str]] = {}  # (file, what is wrong) -> places
        self.only_missing = True
        self.folders: list[str] = []  # of images that aren't there

    def add(self, row: Row, error: Exception) -> None:
        self.count += 1
        self.only_missing &= isinstance(error, FileNotFoundError)
        if isinstance(error, MissingImageError):
            self.folders.append(os.path.abspath(error.path.parent))
        if self.count <= SHOWN:
            self.told.setdefault((row.file, str(error)), []).append(row.place)

    def raise_any(self) -> None:
        """
        Raises:
            MissingFileError, UserError: there are bad records. One line: each with its file, line and field.
        """
        if not self.count:
            return
        if len(self.folders) == self.count > MANY_MISSING:
            (file, reason), (place, *_) = next(iter(self.told.items()))
            raise MissingFileError(
                f"{file}: {self.count:,} pictures are missing under {os.path.commonpath(self.folders)} ({place}: "
                f"{reason}, and so on): is the file of questions beside its pictures?"
            )
        told, before = [], None
        for (file, reason), places in self.told.items():
            where = "" if file == before else f"{file}: "
            told.append(f"{where}{', '.join(places)}: {reason}")
            before = file
        text = told[0] if self.count == 1 else f"{self.count} bad records: {'; '.join(told)}"
        if self.count > SHOWN:
            text += f"; and {self.count - SHOWN} more"
        raise (MissingFileError if self.only_missing else UserError)(" ".join(text.split()))


def is_absent(value: Any) -> bool:
    """None, or pandas' NaN for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def shown(value: Any) -> str:
    """A value for a message: short, on one line, printable."""
    text = value if isinstance(value, type) else f"{value!r:.80}"
    return str(text).encode("utf-8", "backslashreplace").decode().replace("\n", " ")


# -- checks -----------------------------------------------------------------------------------------------------------


def check_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name!r} must be a text, but is {shown(value)}")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{name!r} holds half of a character (a lone surrogate): {shown(value)}") from None
    return value


def checked(raw: Mapping[str, Any], require_answer: bool, unknown: Iterable[str] = ()) -> dict[str, Any]:
    """A renamed record with exactly our columns, but for the images.

    Raises:
        UserError: the message names the field, and leaves file and line to the caller.
    """
    question = raw["question"]
    if not isinstance(question, str) or not question.strip():
        others = _other_keys("question", raw, unknown)
        raise UserError(f"'question' must be a text that isn't empty, but is {shown(question)}{others}")
    choices = check_choices(raw, unknown)
    record = {"id": check_id(raw["id"]), "question": check_text("question", question), "choices": choices}
    answer = answer_index(raw["answer"], choices, raw["answer_key"])
    if answer is None and require_answer:
        key, value, others = raw["answer_key"], raw["answer"], _other_keys("answer", raw, unknown)
        if is_absent(value):
            raise UserError(f"{key!r} must be a choice's index, counted from 0, but is {shown(value)}{others}")
        raise UserError(f"{key!r} is {shown(value)}, which stands for a withheld answer: here each question needs one")
    record["answer"] = answer
    texts = {**raw, "solution": _first_solution(raw["solution"])}
    for name in (*TEXT_COLUMNS, *LABEL_COLUMNS):
        value = texts[name]
        if is_absent(value):
            record[name] = None if name in LABEL_COLUMNS else ""
        else:
            record[name] = check_text(name, value)
    return record


def _other_keys(field: str, raw: Mapping[str, Any], unknown: Iterable[str]) -> str:
    """Where a field is missing: which key of the record may be it."""
    others = list(unknown)
    if not is_absent(raw[field]) or not others:
        return ""
    keys = ", ".join(map(shown, others[:8]))
    return f"; keys of the record that are not read: {keys} (columns.{field}={others[0]} reads one)"


def check_id(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():  # pandas makes numbers of a column with a hole into floats
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"'id' must be a text or a whole number, but is {shown(value)}")
    return check_text("id", str(value))


def check_choices(raw: Mapping[str, Any], unknown: Iterable[str] = ()) -> list[str]:
    choices = raw["choices"]
    if not isinstance(choices, list) or len(choices) < 2:
        kind = "" if is_absent(choices) or isinstance(choices, list) else f" (a {type(choices).__name__})"
        raise UserError(
            f"'choices' must be a list of at least two texts, but is {shown(choices)}{kind}"
            f"{_other_keys('choices', raw, unknown)}"
        )
    for number, choice in enumerate(choices):
        if not isinstance(choice, str):
            raise UserError(f"'choices' must be a list of texts, but entry {number} is {shown(choice)}")
        check_text("choices", choice)
    if len(choices) > MAX_CHOICES:
        raise UserError(f"'choices' has {len(choices)} entries; {MAX_CHOICES} at most can be lettered")
    return choices


def _first_solution(value: Any) -> Any:
    """The first where a question has several (A-OKVQA's `rationales`)."""
    if not isinstance(value, list):
        return value
    return next((text for text in value if not is_absent(text)), None)


def with_each_solution(record: dict[str, Any], value: Any) -> list[dict[str, Any]]:
    """The record once for each of its solutions; the second one's id ends in #2."""
    texts = [text for text in value if not is_absent(text)] if isinstance(value, list) else []
    if len(texts) < 2:
        return [record]
    ids = [record["id"], *(f"{record['id']}#{number}" for number in range(2, len(texts) + 1))]
    return [
        record | {"id": id_, "solution": check_text("solution", text)} for id_, text in zip(ids, texts, strict=True)
    ]


def answer_index(value: Any, choices: list[str], key: str) -> int | None:
    """The index that an answer means: an index, a letter ("B", "(B)") or an option's text; None where it is withheld.

    Raises:
        UserError: it means no option, or two different ones.
    """
    if is_absent(value) or value == "":
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    last = len(choices) - 1
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{key!r} must be a choice's index, counted from 0, but is {shown(value)}")
    if isinstance(value, int):
        if value == -1:  # how published test sets withhold it
            return None
        if not 0 <= value <= last:
            raise UserError(f"{key!r} is {shown(value)}, but there are {len(choices)} choices, counted from 0")
        return value
    text = check_text(key, value).strip()
    if text == "-1":
        return None
    found: dict[int, str] = {}
    if text.isdecimal() and len(text) < 4 and int(text) <= last:
        found[int(text)] = "the index"
    if not key.endswith(("idx", "index")):
        letter = _LETTER.fullmatch(text)
        if letter and ord(letter[1].upper()) - ord("A") <= last:
            found.setdefault(ord(letter[1].upper()) - ord("A"), "the letter")
        for index, choice in enumerate(choices):
            if choice.strip() == text:
                found.setdefault(index, "the text")
    if len(found) == 1:
        return next(iter(found))
    write = ", ".join(f"{index} for {chr(ord('A') + index)}" for index in range(min(len(choices), 4)))
    if found:
        means = " and ".join(f"{what} of choice {index}" for index, what in sorted(found.items()))
        raise UserError(f"{key!r} is {shown(value)}, which is {means}: write the index ({write})")
    raise UserError(
        f"{key!r} must be a choice's index, letter or text, but is {shown(value)} of {len(choices)} choices: "
        f"write the index ({write})"
    )
