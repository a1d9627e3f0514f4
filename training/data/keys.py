"""The keys of a source's records under our names: known aliases, keys that the user maps, keys left unread."""

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.data.records import FIELDS, SHOWN, answer_index, is_absent, shown

# Our field -> other names for it, read without a word: ScienceQA's, A-OKVQA's, M3CoT's, AI2D's, the Hub's ImageFolder.
ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("question_id",),
    "choices": ("options",),
    "answer": ("correct_choice_idx", "correct_choice", "answer_index", "answer_idx"),
    "context": ("hint",),
    "solution": ("rationale", "rationales"),
    "subject": ("domain",),
    "images": ("image", "file_name", "image_path", "image_file"),
}
# Read too, but said: whoever wrote the key may have meant something else.
GUESSES = {"img": "image", "picture": "image", "image_url": "image", "explanation": "solution"}
# Keys of those data sets that no prompt needs.
UNUSED = {"task", "direct_answers", "difficult_direct_answer", "image_id", "abcLabel"}
KNOWN = {*FIELDS, *UNUSED, *(name for names in ALIASES.values() for name in names)}

# choice_a, choiceA, option1, option_0, answer2, or A: the choices in columns of their own
_CHOICE_COLUMN = re.compile(r"(?:choice|option|answer)[ _]?([A-Za-z]|\d{1,2})|([A-Z])")


class KeyReport:
    """Which keys of a source were not read, or read as another one."""

    def __init__(self, columns: Mapping[str, Any]):
        self.columns = columns
        self.mapped = {name for names in columns.values() for name in as_list(names)}
        self.unseen = set(self.mapped)
        self.counts: Counter[str] = Counter()
        self._seen: dict[tuple, tuple] = {}  # keys of a record -> those that aren't ours: most records have the same

    def take(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Counts a record's keys that aren't ours, and gives them."""
        keys = tuple(values)
        unknown = self._seen.get(keys)
        if unknown is None:
            unknown = tuple(
                key
                for key in keys
                if key not in KNOWN and key not in self.mapped and not is_choice_column(key, values)
            )
            self.unseen -= set(keys)
            if len(self._seen) < 1000:
                self._seen[keys] = unknown
        for key in unknown:
            if not is_absent(values[key]):
                self.counts[key] += 1
        return unknown

    def never_seen(self) -> list[str]:
        """Keys that `columns` names and no record has."""
        return sorted(self.unseen)

    def some_keys(self) -> str:
        return ", ".join(map(shown, next(iter(self._seen), ())[:SHOWN]))

    def lines(self) -> list[str]:
        """What to say of the source, a line at most for what was guessed and one for what wasn't read."""
        guessed = [key for key in self.counts if key in GUESSES]
        others = [key for key in self.counts if key not in GUESSES]
        said = []
        if guessed:
            what = ", ".join(f"{key!r} as {GUESSES[key]!r} ({self.counts[key]} records)" for key in guessed)
            say = " ".join(f"columns.{GUESSES[key]}={key}" for key in guessed)
            said.append(f"reads {what}; {say} says so without this line")
        if others:
            filled = {_field_of(key) for keys in self._seen for key in keys} | set(self.columns)
            what = ", ".join(_with_nearest(key, self.counts[key], filled) for key in others[:SHOWN])
            said.append(f"keys that are not read: {what}; columns.FIELD=KEY reads a key as one of ours")
        return said


def _with_nearest(key: str, count: int, filled: Collection[str]) -> str:
    near = nearest(key, filled)
    return f"{shown(key)} ({count} records{f', did you mean {near!r}?' if near else ''})"


def nearest(key: str, filled: Collection[str] = ()) -> str | None:
    """The field of ours whose name (or an alias of it) is most like a key, of those that no other key fills."""
    key = str(key).lower()
    if key in GUESSES:
        return None if _field_of(GUESSES[key]) in filled else GUESSES[key]
    names = sorted(name for name in KNOWN - UNUSED if _field_of(name) not in filled)
    cutoff = 0.75 if len(key) <= 6 else 0.65  # short words have letters in common by chance
    close = difflib.get_close_matches(key[:100], names, n=1, cutoff=cutoff)
    return close[0] if close else None


def _field_of(name: str) -> str:
    """The field that a name of ours stands for; another name as it is."""
    return next((field for field, others in ALIASES.items() if name in others), name)


def as_list(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def check_columns(columns: Mapping[str, Any] | None) -> dict[str, Any]:
    """`columns` of `load_problems`: our field -> the source's key (or keys, for choices in columns of their own)."""
    if columns is None:
        return {}
    if not isinstance(columns, Mapping):
        raise UserError(f"columns must be a mapping, as {{'image': 'img'}}, but is {shown(columns)}")
    checked = {}
    for ours, theirs in columns.items():
        field = _field_of(ours)
        if field not in FIELDS:
            near = nearest(ours)
            raise UserError(
                f"columns: there is no field {shown(ours)}{f' (did you mean {near!r}?)' if near else ''}; "
                f"fields are {', '.join(FIELDS)}"
            )
        several = field in ("choices", "images") and isinstance(theirs, list | tuple)
        if not all(isinstance(name, str) and name for name in (theirs if several else [theirs])):
            raise UserError(f"columns.{ours} must be the name of a key of the source, but is {shown(theirs)}")
        checked[field] = list(theirs) if several else theirs
    return checked


def renamed(values: Mapping[str, Any], columns: Mapping[str, Any], unknown: Iterable[str] = ()) -> dict[str, Any]:
    """The record under our names: what `columns` says, else the field itself, else its aliases, else a guess.

    `answer_key` is the key that the answer was found under; `image_keys` holds those of the images.
    """
    record: dict[str, Any] = {}
    for field in FIELDS:
        if field in columns:
            keys = as_list(columns[field])
            found = [values.get(key) for key in keys]
            record[field] = found if isinstance(columns[field], list) else found[0]
            if field == "answer":
                record["answer_key"] = keys[0]
            continue
        value, key = values.get(field), field
        if is_absent(value):
            for key in ALIASES.get(field, ()):
                value = values.get(key)
                if not is_absent(value):
                    break
            else:
                value, key = None, field
        record[field] = value
        if field == "answer":
            record["answer_key"] = key
    for key in unknown:
        field = GUESSES.get(key)
        field = "images" if field == "image" else field
        if field and field not in columns and is_absent(record[field]):
            record[field] = values[key]
    if is_absent(record["choices"]) and "choices" not in columns:
        record["choices"] = _choices_of_columns(values)
    if "answer" not in columns and not is_absent(values.get("answer")):
        _refuse_two_answers(values, record["choices"])
    return record


def _refuse_two_answers(values: Mapping[str, Any], choices: Any) -> None:
    index = values.get("correct_choice_idx")
    if isinstance(index, int) and isinstance(choices, list) and all(isinstance(choice, str) for choice in choices):
        answer = answer_index(values["answer"], choices, "answer")
        if answer != index:
            raise UserError(
                f"'answer' is {shown(values['answer'])}, but 'correct_choice_idx' is {index}: leave one out"
            )


def is_choice_column(key: Any, values: Mapping[str, Any]) -> bool:
    """Whether a record's key is one of several columns that hold a choice each."""
    return isinstance(key, str) and is_absent(values.get("choices")) and key in _choice_columns(values)


def _choice_columns(values: Mapping[str, Any]) -> dict[str, int]:
    """Key -> number, of the keys that hold a choice each: all with one beginning, from a, A, 0 or 1 on."""
    groups: dict[tuple, dict[str, int]] = {}
    for key in values:
        match = _CHOICE_COLUMN.fullmatch(key) if isinstance(key, str) else None
        if match:
            mark = match[1] or match[2]
            number = int(mark) if mark.isdecimal() else ord(mark.lower()) - ord("a")
            groups.setdefault((key[: -len(mark)], mark.isdecimal(), mark.isupper()), {})[key] = number
    for group in groups.values():
        first = min(group.values())
        if len(group) > 1 and first <= 1 and sorted(group.values()) == list(range(first, first + len(group))):
            return group
    return {}


def _choices_of_columns(values: Mapping[str, Any]) -> list[Any] | None:
    columns = _choice_columns(values)
    if not columns:
        return None
    choices = [values[key] for key in sorted(columns, key=columns.__getitem__)]
    while choices and (is_absent(choices[-1]) or choices[-1] == ""):  # fewer options than columns
        choices.pop()
    return choices
