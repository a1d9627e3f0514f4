"""Which choice a prediction names."""

import re
from collections.abc import Mapping
from typing import Any

from mmcot.training.common import UserError


def num_choices_of(problem: Mapping) -> int:
    if problem.get("num_choices") is not None:
        return int(problem["num_choices"])
    if problem.get("choices"):
        return len(problem["choices"])
    raise UserError(f"problem {problem.get('id', '')} has neither `choices` nor `num_choices`")


def answer_index(answer: Any, problem: Mapping) -> int | None:
    """The index of the choice that a prediction names, or None if it names none that the problem has."""
    from mmcot.processing import parse_answer

    num_choices = num_choices_of(problem)
    if answer is None:
        return None
    if isinstance(answer, str):
        text = answer.strip()
        if letter := re.fullmatch(r"\(?([A-Za-z])\)?\.?", text):
            answer = ord(letter[1].upper()) - ord("A")
        elif re.fullmatch(r"\d+", text):
            answer = int(text)
        else:
            return parse_answer(text, num_choices)
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise UserError(f"the answer {answer!r} is neither an index nor a text")
    return answer if 0 <= answer < num_choices else None


def scores_of(prediction: Any) -> dict[str, float] | None:
    """Letter → score of a prediction, whose scores may be a list in the options' order; None without any."""
    scores = prediction.get("scores") if isinstance(prediction, Mapping) else None
    if not scores:
        return None
    return dict(scores) if isinstance(scores, Mapping) else {chr(65 + i): score for i, score in enumerate(scores)}


def judged_answer(id_: str, problem: Mapping, prediction: Any) -> int | None:
    if isinstance(problem.get("answer"), bool) or not isinstance(problem.get("answer"), int):
        raise UserError(f"problem {id_} has no `answer` (the index of the right choice)")
    if isinstance(prediction, Mapping):
        if "answer" not in prediction:
            raise UserError(f"prediction {id_} has no `answer`")
        prediction = prediction["answer"]
    try:
        return answer_index(prediction, problem)
    except ValueError as error:
        raise UserError(f"prediction {id_}: {error}") from None
