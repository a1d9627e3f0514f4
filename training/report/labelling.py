"""Wrong answers in the terminal, one by one, and a person's label for each."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcot.training.evaluation.errors import LABELS, LabelsFile
from mmcot.training.evaluation.hallucination import contradictions, gold_text, written_rationale

KEYS = {label[0]: label for label in LABELS}  # h, c, l, a, o
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def label_errors(
    ids: Sequence[str],
    problems: Mapping[str, Mapping],
    predictions: Mapping[str, Any],
    labels: LabelsFile,
    *,
    pictures: Mapping[str, Sequence[Path]] | None = None,
    hints: bool = False,
    ask: Callable[[str], str] = input,
    say: Callable[[str], None] = print,
) -> int:
    """Shows each error that has no label yet, and asks for one; `s` skips, `b` goes back, `q` (or the end of input)
    stops.

    Args:
        ids: the errors, in order.
        labels: where labels go, each on disk at once.
        pictures: id → files of its pictures, to be named.
        hints: also show what the automatic indicator found. It may bias a labeller.

    Returns:
        How many of the errors have a label at the end.
    """
    keys = ", ".join(f"{key} {label}" for key, label in KEYS.items())
    place = next((i for i, id_ in enumerate(ids) if id_ not in labels.labels), len(ids))
    while place < len(ids):
        id_ = ids[place]
        say(f"\n[{place + 1} of {len(ids)}]")
        say(describe_error(id_, problems[id_], predictions[id_], (pictures or {}).get(id_, ()), hints))
        try:
            given = ask(f"{keys} | s skip, b back, q quit, ? help: ").strip().lower()
        except EOFError:
            break
        if given in KEYS or given in LABELS:
            labels.add(id_, KEYS.get(given, given))
            place += 1
        elif given == "s":
            place += 1
        elif given == "b":
            place = max(0, place - 1)
        elif given == "q":
            break
        else:
            say("\n".join(f"  {key}  {label}: {LABELS[label]}" for key, label in KEYS.items()))
    return sum(id_ in labels.labels for id_ in ids)


def describe_error(
    id_: str, problem: Mapping[str, Any], prediction: Any, pictures: Sequence[Path] = (), hints: bool = False
) -> str:
    """Question, options, gold and written rationale of a wrong answer, as text."""
    from mmcot.training.evaluation.answers import judged_answer

    chosen = judged_answer(id_, problem, prediction)
    lines = [f"{id_}  {problem['question']}"]
    context = problem.get("context") or problem.get("hint")  # an original problems.json is read as it is
    if context:
        lines.append(f"context:   {context}")
    lines += [f"picture:   {path}" for path in pictures]
    for index, choice in enumerate(problem["choices"]):
        marks = [mark for mark, at in (("right", problem["answer"]), ("answered", chosen)) if at == index]
        lines.append(f"  ({LETTERS[index]}) {choice}" + (f"   <- {', '.join(marks)}" if marks else ""))
    if chosen is None:
        lines.append("  no answer could be read")
    lines.append(f"gold:      {problem.get('solution') or '-'}")
    written = written_rationale(prediction)
    lines.append(f"written:   {'-' if written is None else written.removeprefix('Solution:').strip()}")
    if hints and written and problem.get("solution"):
        found = contradictions(written, gold_text(problem))
        lines += [f"indicator: {one['difference']} in “{one['statement']}”" for one in found]
    return "\n".join(lines)


def save_pictures(records: Mapping[str, Mapping], folder: str | Path) -> dict[str, list[Path]]:
    """Writes the pictures of some problems as PNG files, to be opened beside the terminal; id → files."""
    from mmcot.processing import load_images

    folder = Path(folder)
    found: dict[str, list[Path]] = {}
    for id_, record in records.items():
        for number, image in enumerate(load_images(record)):
            name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in id_)
            path = folder / f"{name}{f'-{number}' if number else ''}.png"
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                image.save(path)
            found.setdefault(id_, []).append(path)
    return found
