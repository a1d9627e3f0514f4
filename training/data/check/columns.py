"""The columns of a source, and what they are taken for."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mmcot.training.data.keys import ALIASES, GUESSES, UNUSED, as_list, is_choice_column, nearest
from mmcot.training.data.records import FIELDS, Row, is_absent


def find_columns(rows: Iterable[Row], columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every key of a source's records, in order of appearance.

    Args:
        rows: of the source as it stands.
        columns: our field -> the source's key, as the user maps them (`check_columns`).

    Returns:
        [{"key", "field": our name or None, "how": "mapped", "ours", "alias", "guessed", "an option", "not needed" or
        "not read", "nearest": a field with a similar name that no other key fills, or None,
        "filled": records that have a value, "of": all}].
    """
    filled: Counter[str] = Counter()
    options: set[str] = set()
    known: dict[tuple, None] = {}
    count = 0
    for row in rows:
        count += 1
        keys = tuple(row.values)
        if keys not in known:
            known[keys] = None
            options |= {key for key in keys if is_choice_column(key, row.values)}
        filled.update(key for key, value in row.values.items() if not is_absent(value) and value not in ("", []))
    mapped = {key: field for field, names in columns.items() for key in as_list(names)}
    names = list(dict.fromkeys(key for keys in known for key in keys))
    meanings = [_meaning(key, mapped, columns, options) for key in names]
    taken = {meaning["field"] for meaning in meanings} | set(columns)
    for meaning in meanings:
        meaning["nearest"] = nearest(meaning["key"], taken) if meaning["how"] == "not read" else None
    return [meaning | {"filled": filled[key], "of": count} for key, meaning in zip(names, meanings, strict=True)]


def _meaning(key: str, mapped: Mapping[str, str], columns: Mapping[str, Any], options: set[str]) -> dict[str, Any]:
    def found(field: str | None, how: str) -> dict[str, Any]:
        return {"key": str(key), "field": field, "how": how}

    if key in mapped:
        return found(mapped[key], "mapped")
    if key in FIELDS and key not in columns:
        return found(key, "ours")
    alias = next((field for field, others in ALIASES.items() if key in others), None)
    if alias is not None and alias not in columns:
        return found(alias, "alias")
    if key in options:
        return found("choices", "an option")
    guess = "images" if GUESSES.get(key) == "image" else GUESSES.get(key)
    if guess is not None and guess not in columns:
        return found(guess, "guessed")
    if key in UNUSED:
        return found(None, "not needed")
    return found(None, "not read")
