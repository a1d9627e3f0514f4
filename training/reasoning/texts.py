"""What methods share: a problem as text, letters read from completions, votes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mmcot.processing import option_letter
from mmcot.processing.prompts_mmcot import prompt_fields

_LETTER = r"\(?([A-Z])\)?"


@cache
def templates() -> dict[str, Any]:
    """The prompts of all methods, from prompts.yaml."""
    import yaml

    return yaml.safe_load((Path(__file__).parent / "prompts.yaml").read_text(encoding="utf-8"))


def problem_fields(problem: Mapping[str, Any], use_caption: bool = False) -> dict[str, str]:
    """Fields of the templates: `question`, `context`, `options`, `problem` (all three as text), `last` (letter)."""
    fields = prompt_fields(problem, use_caption)
    fields["last"] = option_letter(len(problem["choices"]) - 1)
    fields["problem"] = templates()["problem"].format(**fields)
    return fields


def letters_of(problem: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(option_letter(index) for index in range(len(problem["choices"])))


def read_answer(text: str, problem: Mapping[str, Any], begun: bool = False) -> int | None:
    """Index of the choice that a completion names, or None.

    Read in this order: the last "answer is X"; with `begun` (the prompt ended in "the answer is (") the letter at
    the very beginning; one letter in parentheses; one letter alone; one option's text.
    """
    letters = "".join(letters_of(problem))
    own = rf"\(?([{letters}])\b\)?"
    if begun and (found := re.match(rf"\s*{own}", text)):
        return letters.index(found[1])
    if found := re.findall(rf"answer is:?\s*\**\s*{own}", text, re.IGNORECASE):
        return letters.index(found[-1].upper()) if found[-1].upper() in letters else None
    for pattern in (rf"\(([{letters}])\)", rf"(?<![A-Za-z])([{letters}])(?![A-Za-z'])"):
        named = set(re.findall(pattern, text))
        # "A" alone is more often an article than an answer, unless it is all there is
        if len(named) == 1 and (named != {"A"} or pattern.startswith(r"\(") or len(text.strip(" .():")) == 1):
            return letters.index(named.pop())
    lowered = text.lower()
    mentioned = [i for i, choice in enumerate(problem["choices"]) if choice and choice.lower() in lowered]
    return mentioned[0] if len(mentioned) == 1 else None


def vote(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The most frequent answer of several samples (Wang et al. 2022); a tie goes to the one with the higher scores,
    then to the one that was given first.

    Samples without an answer don't vote. The rationale is that of the most confident, or first, sample that agrees.
    """
    from mmcot.pipeline_mmcot import choose_result

    chosen = dict(choose_result(list(samples)))
    if "votes" in chosen:
        chosen["votes"] = {option_letter(index): count for index, count in sorted(chosen["votes"].items())}
    return chosen


def steps_of(rationale: str) -> int:
    """Reasoning steps of a rationale: its lines, or its sentences where it has one line (Fu et al. 2022)."""
    lines = [line for line in rationale.split("\n") if line.strip()]
    if len(lines) > 1:
        return len(lines)
    return len([sentence for sentence in re.split(r"[.!?](?:\s|$)", rationale) if sentence.strip()])


def unparsable(records: Iterable[Mapping[str, Any]]) -> int:
    return sum(record["answer"] is None for record in records)
