"""What a card tells beside its tables: an example, what guessing and blanked pictures give, data, machine, needs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

PLACEHOLDER = {
    "question": "Which animal in the picture is the largest?",
    "choices": ["the cat", "the horse", "the mouse"],
    "context": "",
    "image": "picture.png",
}


def needs(requirements: Sequence[str] | None) -> str:
    """What has to be installed, as a sentence of its own paragraph; nothing where it isn't known."""
    if not requirements:
        return ""
    named = ", ".join(requirements)
    return f"Needs {named} (`pip install -r requirements.txt`), and no other package.\n\n"


def shown_problem(example: Mapping[str, Any] | None) -> str:
    """The problem that the card's code asks, as a Python literal."""
    problem = {name: (example or PLACEHOLDER).get(name) for name in ("question", "choices", "context", "image")}
    lines = [f"    {json.dumps(name)}: {_literal(value)}," for name, value in problem.items()]
    lines[-1] += "  # or a PIL image, bytes, a URL, a list of them, or None"
    return "\n".join(["{", *lines, "}"])


def _literal(value: Any) -> str:
    return "None" if value is None else json.dumps(value, ensure_ascii=False)


def example_section(example: Mapping[str, Any] | None) -> str:
    """A test question with its picture, and what the model made of it.

    Args:
        example: `question`, `choices`, `context`, `image` (file in the repository, or None), `answer` (index from 0),
            `rationale` and `said` (index, or None) of the model.
    """
    if example is None:
        return ""
    options = "  ".join(f"({chr(65 + number)}) {choice}" for number, choice in enumerate(example["choices"]))
    said = example.get("said")
    right = "right" if said == example["answer"] else f"right would be ({chr(65 + example['answer'])})"
    lines = ["## Example", ""]
    if example.get("image"):
        lines += [f"![the picture of the question]({example['image']})", ""]
    lines += [f"> **{_quoted(example['question'])}**", ">", f"> {_quoted(options)}"]
    if example.get("context"):
        lines[-2:-2] = [">", f"> {_quoted(example['context'])}"]
    if example.get("rationale"):
        lines += [">", f"> *Rationale:* {_quoted(example['rationale'])}"]
    answer = "none" if said is None else f"({chr(65 + said)}) {example['choices'][said]}"
    lines += [
        ">",
        f"> *Answer:* {_quoted(answer)} — {right}",
        "",
        f"A question of the {example.get('split', 'test')} split, as the model answered it.",
    ]
    return "\n".join([*lines, "", ""])


def _quoted(text: str) -> str:
    return " ".join(str(text).split()).replace("<", "&lt;")


def baselines(results: Mapping[str, Any], guessing: Mapping[str, float] | None, blank: Mapping[str, Any] | None):
    """What accuracies are to be compared with: guessing, and the same model without the pictures.

    Args:
        guessing: column → expected accuracy of guessing in %.
        blank: scores on the questions with a picture, asked without it.
    """
    found = []
    for column, which in (("Avg", "all questions"), ("IMG", "questions with a picture")):
        if guessing is None or column not in guessing or column not in results["accuracy"]:
            continue
        text = f"On {which}: guessing {guessing[column]:.2f} %, this model {results['accuracy'][column]:.2f} %"
        if column == "IMG" and blank is not None:
            text += f", the same model with its pictures blanked {blank['accuracy']['IMG']:.2f} %"
        found.append(f"- {text}.")
    return ["\n".join(found)] if found else []


def data_size(sizes: Mapping[str, tuple[int, int] | None] | None):
    """Questions by split, and how many have a picture; None stands for a stream, which nobody counted."""
    if not sizes:
        return []
    said = ", ".join(
        f"`{split}` {'a stream' if size is None else f'{size[0]:,} ({size[1]:,} with a picture)'}"
        for split, size in sizes.items()
    )
    return [f"Questions: {said}."]


def trained_on(machine: Mapping[str, Any] | None):
    """Device, time and versions."""
    if not machine:
        return []
    processes = f"{machine['processes']} processes on " if machine["processes"] > 1 else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return [f"Trained in {machine['time']} with {processes}{machine['device']}, {machine['precision']} ({versions})."]
