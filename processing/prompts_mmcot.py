"""Prompts of Multimodal-CoT: a problem becomes a source text and a target text; an answer text becomes an index.

The texts are byte for byte those of amazon-science/mm-cot (`utils_prompt.py`, then the white-space rule of
`utils_data.py`), for every one of its formats, oddities included: models were trained on them. This module is plain
Python: no torch, no tokenizer.

A prompt format is "INPUT-OUTPUT". Letters: Q question, C context, M multiple options, L lecture, E explanation
(solution), A answer, G generated rationale (or, with none given, the gold lecture and solution in its place).
"""

import re
from collections.abc import Mapping
from numbers import Number
from typing import Any, NamedTuple

OPTION_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Input format -> its segments in order. "L"/"E"/"LE" before the closing are the paper's upper bounds, which give gold
# text away; "because" is what QCA ends in, glued to the closing.
INPUT_FORMATS = {
    "QCM": ("Q", "C", "M"),
    "CQM": ("C", "Q", "M"),
    "QC": ("Q", "C"),
    "QM": ("Q", "M"),
    "QCMG": ("Q", "C", "M", "G"),
    "CQMG": ("C", "Q", "M", "G"),
    "QCA": ("Q", "C", "A", "because"),
    "QCMA": ("Q", "C", "M", "A"),
    "QCML": ("Q", "C", "M", "L"),
    "QCME": ("Q", "C", "M", "E"),
    "QCMLE": ("Q", "C", "M", "LE"),
    "QCLM": ("Q", "C", "L", "M"),
    "QCEM": ("Q", "C", "E", "M"),
    "QCLEM": ("Q", "C", "LE", "M"),
}

SEGMENTS = {
    "Q": "Question: {question}",
    "C": "Context: {context}",
    "M": "Options: {options}",
    "A": "Answer: The answer is {answer}.",
    "L": "BECAUSE: {lecture}",
    "E": "BECAUSE: {solution}",
    "LE": "BECAUSE: {lecture} {solution}",
    "G": "Solution: {lecture} {solution}",
}

# Output format -> target. AL and AE have lecture and solution swapped, LE ends in a period of its own (so usually in
# two): both as in the original.
OUTPUT_FORMATS = {
    "A": "The answer is {answer}.",
    "E": "Solution: {solution}",
    "LE": "Solution: {lecture} {solution}.",
    "AL": "The answer is {answer}. BECAUSE: {solution}",
    "AE": "The answer is {answer}. BECAUSE: {lecture}",
    "ALE": "The answer is {answer}. BECAUSE: {lecture} {solution}",
    "AEL": "The answer is {answer}. BECAUSE: {solution} {lecture}",
    "LA": "{lecture} The answer is {answer}.",
    "EA": "{solution} The answer is {answer}.",
    "LEA": "{lecture} {solution} The answer is {answer}.",
    "ELA": "{solution} {lecture} The answer is {answer}.",
}

PROMPT_FORMATS = tuple(f"{source}-{target}" for source in INPUT_FORMATS for target in OUTPUT_FORMATS)

_ANSWER = re.compile(r"The answer is \(([A-Z])\)")


class ProblemError(ValueError):
    """A problem, picture or text that can't be used as it is. The message names it and says what to do."""

    user_error = True  # the command line prints the message alone


class Segment(NamedTuple):
    """One part of a source text: `kind` is a key of the tables above, or "closing"."""

    kind: str
    text: str


def option_letter(index: int) -> str:
    """0 -> "A" … 25 -> "Z"; anything else is a ValueError."""
    if not 0 <= index < len(OPTION_LETTERS):
        raise ProblemError(f"option {index} has no letter: a problem has at most {len(OPTION_LETTERS)} choices")
    return OPTION_LETTERS[index]


def split_format(prompt_format: str) -> tuple[str, str]:
    """ "QCM-LE" -> ("QCM", "LE"); a ValueError that lists what there is for a format that doesn't exist."""
    source, _, target = str(prompt_format).partition("-")
    if source not in INPUT_FORMATS or target not in OUTPUT_FORMATS:
        raise ProblemError(
            f"prompt format {prompt_format!r} does not exist; it is INPUT-OUTPUT with INPUT one of "
            f"{', '.join(INPUT_FORMATS)} and OUTPUT one of {', '.join(OUTPUT_FORMATS)}"
        )
    return source, target


def reads_rationale(prompt_format: str) -> bool:
    """Whether the source has a place for a rationale (G)."""
    return "G" in INPUT_FORMATS[split_format(prompt_format)[0]]


def build_prompt(
    problem: Mapping[str, Any], prompt_format: str, *, use_caption: bool = False, rationale: str | None = None
) -> tuple[str, str]:
    """The source and target text of a problem.

    Args:
        problem: ScienceQA's keys `question`, `choices`, `answer` (index), `hint` (or `context`, which wins),
            `lecture`, `solution`, and `caption`. Missing texts count as empty.
        prompt_format: one of `PROMPT_FORMATS`, such as "QCM-E" (rationale stage) or "QCMG-A" (answer stage).
        use_caption: append the image's caption to the context.
        rationale: what stage 1 wrote, for the formats with G, taken as it is (it starts with "Solution:" by itself).
            None: the gold lecture and solution.

    Returns:
        (source, target), white space collapsed to single spaces. The target is "" if it needs an answer and the
        problem has none.

    Raises:
        ValueError: no such format; a source that needs an answer without one; an answer that is no choice's index.
    """
    _, output = split_format(prompt_format)
    segments = source_segments(problem, prompt_format, use_caption=use_caption, rationale=rationale)
    source = " ".join(segment.text for segment in segments)

    template = OUTPUT_FORMATS[output]
    answer = _answer(problem) if "{answer}" in template else ""
    if answer is None:
        return source, ""
    target = template.format(answer=answer, **prompt_fields(problem, use_caption))
    if target.endswith("BECAUSE:"):
        target = target.replace("BECAUSE:", "")
    # The original cuts its own leading "Answer:" off with a replacement that also hits the texts.
    return source, _collapse(target.replace("Answer:", ""))


def source_segments(
    problem: Mapping[str, Any], prompt_format: str, *, use_caption: bool = False, rationale: str | None = None
) -> list[Segment]:
    """The source of `build_prompt` in parts (none of them empty): joined by single spaces they are the source.

    The last one has the kind "closing" ("Answer:" or "Solution:").
    """
    layout, output = split_format(prompt_format)
    fields = prompt_fields(problem, use_caption)
    closing = "Answer:" if output == "A" else "Solution:"
    segments = []
    for kind in INPUT_FORMATS[layout]:
        if kind == "because":
            closing = "BECAUSE:" + closing
            continue
        if kind == "A":
            answer = _answer(problem)
            if answer is None:
                raise ProblemError(f"{problem_name(problem)}: the input format {layout} needs an answer, and has none")
            fields["answer"] = answer
        if kind == "G" and rationale is not None:
            text = _collapse(_checked(rationale, problem, "its rationale"))
        else:
            text = _collapse(SEGMENTS[kind].format(**fields))
        if text:
            segments.append(Segment(kind, text))
    return [*segments, Segment("closing", closing)]


def parse_answer(text: str | None, num_choices: int) -> int | None:
    """The index of the choice that a generated text names, or None.

    The text must hold "The answer is (X)" exactly once, and X must be one of the problem's `num_choices` letters.
    """
    found = _ANSWER.findall(text or "")
    if len(found) != 1:
        return None
    index = OPTION_LETTERS.index(found[0])
    return index if index < num_choices else None


def prompt_fields(problem: Mapping[str, Any], use_caption: bool) -> dict[str, str]:
    """What the templates above are filled with, the answer aside: a bad one is an error only where it is used."""
    context = problem.get("context")
    context = text_of(problem, "hint" if is_absent(context) else "context")
    caption = text_of(problem, "caption") if use_caption else ""
    return {
        "question": text_of(problem, "question"),
        "context": f"{context} {caption}".strip() or "N/A",
        "options": " ".join(f"({option_letter(index)}) {choice}" for index, choice in enumerate(choices_of(problem))),
        "lecture": _escape_newlines(text_of(problem, "lecture")),
        "solution": _escape_newlines(text_of(problem, "solution")),
    }


def text_of(problem: Mapping[str, Any], name: str) -> str:
    """A text field; "" where it is absent. A ProblemError where it is no text."""
    value = problem.get(name)
    return "" if is_absent(value) else _checked(value, problem, repr(name))


def choices_of(problem: Mapping[str, Any]) -> list[str]:
    """The choices' texts, from a list, tuple, NumPy array or pyarrow list; [] where there are none."""
    choices = problem.get("choices")
    if is_absent(choices):
        return []
    for convert in ("tolist", "as_py"):
        if hasattr(choices, convert):
            choices = getattr(choices, convert)()
    if not isinstance(choices, list | tuple):
        raise ProblemError(
            f"{problem_name(problem)}: 'choices' must be a list of texts, and is of type {type(choices).__name__}"
        )
    return [_checked(choice, problem, f"number {i} of 'choices'") for i, choice in enumerate(choices, start=1)]


def check_text(problem: Mapping[str, Any]) -> None:
    """Raise a ProblemError for a problem that can't be asked: a field that is no text, an empty question, fewer than
    two choices or more than 26."""
    for name in ("context", "hint", "caption", "lecture", "solution"):
        text_of(problem, name)
    if not text_of(problem, "question").strip():
        raise ProblemError(f"{problem_name(problem)}: the question is empty")
    count = len(choices_of(problem))
    if not 2 <= count <= len(OPTION_LETTERS):
        raise ProblemError(
            f"{problem_name(problem)} has {count} choice{'' if count == 1 else 's'}; "
            f"there must be 2 to {len(OPTION_LETTERS)}"
        )


def is_absent(value: Any) -> bool:
    """None, or what tables hold in its place: NaN of any type, pandas' NA and NaT."""
    missing = type(value).__name__ in ("NoneType", "NAType", "NaTType")
    return missing or (isinstance(value, Number) and bool(value != value))


def problem_name(problem: Mapping[str, Any]) -> str:
    """How messages call a problem: by its id, where it has one."""
    return "problem" if is_absent(problem.get("id")) else f"problem {shown(problem['id'], 80)}"


def shown(value: Any, limit: int = 200) -> str:
    """A value as one short, printable line of a message."""
    text = " ".join(str(value).encode("utf-8", "backslashreplace").decode().split())
    return text if len(text) <= limit else f"{text[: limit - 62]} … {text[-60:]}"


def _checked(text: Any, problem: Mapping[str, Any], name: str) -> str:
    if not isinstance(text, str):
        raise ProblemError(f"{problem_name(problem)}: {name} must be a text, and is of type {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise ProblemError(
            f"{problem_name(problem)}: {name} holds half of a character (a lone surrogate, {half}): decode it again"
        ) from None
    return text


def _answer(problem: Mapping[str, Any]) -> str | None:
    """ "(B)", or None for a problem without an answer."""
    answer: Any = problem.get("answer")
    count = len(choices_of(problem))
    if is_absent(answer):
        return None
    try:
        index = int(answer)  # of NumPy's types too, and of a column that pandas made floats for its NaN
    except (TypeError, ValueError, OverflowError):
        index = -1
    if index != answer or not 0 <= index < count:
        raise ProblemError(
            f"{problem_name(problem)}: answer {shown(answer, 80)} is not the index of one of its {count} choices"
        )
    return f"({option_letter(index)})"


def _escape_newlines(text: str) -> str:
    """A newline becomes the two characters \\n, which survive the white-space rule (T5 reads the first as <unk>)."""
    return text.replace("\n", "\\n")


def _collapse(text: str) -> str:
    return " ".join(text.split())
