"""What `check_data` found, as text for a terminal."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from mmcot.training.common import printable

WIDTH = 100
HOW = {
    "ours": "",
    "mapped": "as columns says",
    "alias": "another name for it",
    "guessed": "a guess",
    "an option": "one option",
    "not needed": "not needed",
    "not read": "NOT READ",
}


def format_check(found: Mapping[str, Any], samples: int = 1) -> str:
    """The whole result of `check_data`; `samples` questions are shown as the model will see them."""
    lines = [f"{found['source']}", ""]
    if found["columns"]:
        lines += [*_columns(found["columns"]), ""]
    for title, rows in facts(found):
        lines += [f"{title}", *(f"  {line}" for row in rows for line in _wrapped(row)), ""]
    for sample in found.get("samples", [])[:samples]:
        lines += [f"question {sample['id']} ({sample['split']}) as the model will see it", *_sample(sample), ""]
    return printable("\n".join([*lines, format_notes(found)]))


def format_notes(found: Mapping[str, Any]) -> str:
    """The warnings and faults, and what to do next."""
    lines = []
    for title, texts in (("worth a thought", found["warnings"]), ("to mend", found["faults"])):
        if texts:
            lines += [f"{title} ({len(texts)})"]
            for text in texts:
                lines += textwrap.wrap(text, WIDTH, initial_indent="  - ", subsequent_indent="    ")
    if not lines:
        lines = ["nothing stands in the way of a training, and nothing else was noticed"]
    elif not found["faults"]:
        lines += ["nothing stands in the way of a training"]
    return "\n".join(lines)


def facts(found: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(title, lines) of what was found, for terminal and page."""
    parts = []
    if found["splits"]:
        made = " (made: the source names none)" if found["made_splits"] else ""
        sizes = " · ".join(f"{name} {size:,}" for name, size in found["splits"].items())
        parts.append(("questions", [f"{sizes}{made}"]))
    if "images" in found:
        parts.append(("pictures", _pictures(found)))
    if "rationales" in found:
        parts.append(("rationales", _rationales(found["rationales"])))
    for stage, lengths in found.get("lengths", {}).items():
        parts.append((f"tokens, {stage} stage", _lengths(lengths)))
    if "options" in found:
        parts.append(("options", _options(found["options"])))
    if found.get("guessing"):
        parts.append(("accuracy without looking at the question", _guessing(found["guessing"])))
    if "duplicates" in found:
        parts.append(("questions that occur twice", _duplicates(found["duplicates"])))
    if "unknown_characters" in found:
        unknown = found["unknown_characters"]
        text = " ".join(f"{character} ({count:,})" for character, count in list(unknown.items())[:30]) or "none"
        parts.append(("characters that the tokenizer doesn't know", [text]))
    return parts


def column_rows(columns: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """(column, what it was taken for, how, filled) of every column."""
    rows = []
    for column in columns:
        how = HOW[column["how"]]
        if column["how"] == "not read" and column["nearest"]:
            how += f" (did you mean {column['nearest']}? columns.{column['nearest']}={column['key']} says so)"
        filled = f"{100 * column['filled'] / max(1, column['of']):.0f} %"
        rows.append((column["key"], column["field"] or "-", how, filled))
    return rows


def _columns(columns: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [("column", "taken for", "", "filled"), *column_rows(columns)]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return [f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[3]:>6}  {row[2]}".rstrip() for row in rows]


def _pictures(found: Mapping[str, Any]) -> list[str]:
    if found.get("pictures_left_out"):
        return ["left out, for what is to mend: questions that differ in their pictures alone count as equal here"]
    images = found["images"]
    shares = " · ".join(
        f"{name} {100 * images['with'][name] / max(1, size):.0f} %" for name, size in found["splits"].items()
    )
    lines = [f"questions with a picture: {shares}"]
    if images["pictures"]:
        several = f", {images['several']:,} questions have more than one" if images["several"] else ""
        lines.append(f"{images['files']:,} different pictures{several}")
    if images.get("widths"):
        width, height = images["widths"], images["heights"]
        formats = ", ".join(f"{name} {count:,}" for name, count in images["formats"].items())
        if all(side["min"] == side["max"] for side in (width, height)):
            lines.append(f"{width['min']} × {height['min']} pixels each; {formats}")
        else:
            lines.append(
                f"{width['min']}–{width['max']} × {height['min']}–{height['max']} pixels, median {width['median']} × "
                f"{height['median']}; {formats}"
            )
        if found.get("image_size"):
            lines.append(f"the model sees each at {found['image_size']}")
    if images["decoded"] and images["pictures"]:
        lines.append(f"broken: {len(images['broken']):,}")
    return lines


def _rationales(rationales: Mapping[str, Mapping]) -> list[str]:
    return [
        f"{split}: {facts['solution']:.0f} % have a solution"
        + (f" of {facts['words']:.0f} words" if facts["words"] else "")
        + f", {facts['lecture']:.0f} % a lecture"
        for split, facts in rationales.items()
    ]


def _lengths(lengths: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, limit in (("source", lengths["limit"]), ("target", lengths["target_limit"])):
        spread = lengths[name]
        if spread:
            lines.append(
                f"{name}: mean {spread['mean']:.0f}, 95 % are ≤ {spread['p95']}, longest {spread['max']}, "
                f"limit {limit}"
            )
    cut = [f"{count:,} lose the {what}'s end" for what, count in lengths["cut"].items()]
    cut += [f"{lengths['target_cut']:,} targets are cut"] if lengths["target_cut"] else []
    return [*lines, "cut: " + ("; ".join(cut) or "none")]


def _options(options: Mapping[str, Any]) -> list[str]:
    counts = " · ".join(f"{number} options: {count:,}" for number, count in options["counts"].items())
    letters = " · ".join(
        f"({letter}) {place['n']:,} (even: {place['expected']:,.0f})" for letter, place in options["answers"].items()
    )
    lines = [counts, f"right answers: {letters}"]
    lines += [f"without an answer: {split} {count:,}" for split, count in options["unanswered"].items()]
    return lines


def _guessing(guessing: Mapping[str, Any]) -> list[str]:
    return [
        f"guessing {guessing['chance']:.1f} % · always ({guessing['letter_used']}) {guessing['letter']:.1f} % · the "
        f"longest option {guessing['longest']:.1f} % · the option most often right in training "
        f"{guessing['frequent']:.1f} %   ({guessing['split']}, n = {guessing['n']:,})"
    ]


def _duplicates(duplicates: Mapping[str, Any]) -> list[str]:
    lines = []
    for split in dict.fromkeys([*duplicates["equal"], *duplicates["near"]]):
        equal, near = (len(duplicates[kind].get(split, ())) for kind in ("equal", "near"))
        lines.append(f"{split}, also in train: {equal:,} equal, {near:,} nearly equal (four fifths of the words)")
    if duplicates["contradicting"]:
        lines.append(f"with different answers: {len(duplicates['contradicting']):,}")
    return lines or ["none, by words and pictures"]


def _sample(sample: Mapping[str, Any]) -> list[str]:
    pictures = len(sample["images"])
    lines = [f"  pictures: {pictures}"]
    for stage, texts in sample["stages"].items():
        if "error" in texts:
            lines += _wrapped(f"{stage} stage: {texts['error']}", "  ")
            continue
        lines += _wrapped(f"{stage} stage reads ({texts['tokens']} tokens): {texts['source']}", "  ")
        if texts["target"]:
            lines += _wrapped(f"and shall write: {texts['target']}", "  ")
    return lines


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ") or [indent]
