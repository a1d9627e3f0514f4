"""What lies behind an accuracy: by kind of question, by letter, by confidence, by rationale.

All functions take problems and predictions by id, as `match` gives them.
"""

from collections.abc import Mapping
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.evaluation.accuracy import grade_number, has_image, has_text, wilson_interval
from mmcot.training.evaluation.answers import judged_answer, num_choices_of, scores_of

FIELDS = ("skill", "topic", "subject", "grade", "context")
CONTEXTS = {(True, True): "text and image", (True, False): "text", (False, True): "image", (False, False): "neither"}


def share(right: int, n: int) -> dict[str, Any]:
    """`{"n", "accuracy", "ci95": [low, high]}` in %, Wilson's interval."""
    return {"n": n, "accuracy": 100 * right / n, "ci95": [100 * bound for bound in wilson_interval(right, n)]}


def judged(problems: Mapping[str, Mapping], predictions: Mapping[str, Any]) -> dict[str, int | None]:
    """Id → index of the choice that was named, or None."""
    return {id_: judged_answer(id_, problem, predictions[id_]) for id_, problem in problems.items()}


def accuracy_by(
    problems: Mapping[str, Mapping], predictions: Mapping[str, Any], field: str
) -> dict[str, dict[str, Any]]:
    """Accuracy for each value of a field: value → see `share`.

    Args:
        field: skill, topic, subject, grade (in order), or context: what comes with a question, "text", "image", "text
            and image" or "neither". Questions without the field are left out; {} where none has it.
    """
    if field not in FIELDS:
        raise UserError(f"{field!r} is none of {', '.join(FIELDS)}")
    groups: dict[Any, list[bool]] = {}
    for id_, answer in judged(problems, predictions).items():
        value = _value(problems[id_], field)
        if value is not None:
            groups.setdefault(value, []).append(answer == problems[id_]["answer"])
    if field == "grade":
        groups = {f"grade {grade}": groups[grade] for grade in sorted(groups)}
    else:
        groups = dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))
    return {value: share(sum(right), len(right)) for value, right in groups.items()}


def _value(problem: Mapping, field: str) -> Any:
    if field == "grade":
        return grade_number(problem)
    if field == "context":
        text, image = has_text(problem), has_image(problem)
        return None if text is None or image is None else CONTEXTS[text, image]
    return problem.get(field) or None


def chance(problems: Mapping[str, Mapping]) -> float:
    """Expected accuracy in % of drawing one of each question's options."""
    return 100 * sum(1 / num_choices_of(problem) for problem in problems.values()) / len(problems)


def calibration(
    problems: Mapping[str, Mapping], predictions: Mapping[str, Any], bins: int = 10
) -> dict[str, Any] | None:
    """Whether the options' scores mean what they say: of the answers given with 80 %, are 80 % right?

    The confidence of an answer is its score among the question's own options (Guo et al., ICML 2017).

    Returns:
        {"n", "ece": expected calibration error in points, "brier": mean squared error of the whole distribution over
        the options (0 is best, 2 worst), "confidence": mean in %, "accuracy": in %, "bins": [{"low", "high", "n",
        "confidence", "accuracy", "ci95"}] in %, without empty ones}; None where predictions have no scores.
    """
    pairs, brier = [], 0.0
    for id_, answer in judged(problems, predictions).items():
        scores = scores_of(predictions[id_])
        if not scores or answer is None:
            continue
        gold = problems[id_]["answer"]
        pairs.append((scores.get(chr(65 + answer), 0.0), answer == gold))
        brier += sum((score - (letter == chr(65 + gold))) ** 2 for letter, score in scores.items())
    if not pairs:
        return None
    groups: dict[int, list[tuple[float, bool]]] = {}
    for confidence, right in pairs:
        groups.setdefault(min(int(confidence * bins), bins - 1), []).append((confidence, right))
    found = []
    for number, group in sorted(groups.items()):
        right = sum(ok for _, ok in group)
        mean = 100 * sum(confidence for confidence, _ in group) / len(group)
        found.append(
            {"low": 100 * number / bins, "high": 100 * (number + 1) / bins, "confidence": mean}
            | share(right, len(group))
        )
    n = len(pairs)
    return {
        "n": n,
        "ece": sum(group["n"] * abs(group["confidence"] - group["accuracy"]) for group in found) / n,
        "brier": brier / n,
        "confidence": 100 * sum(confidence for confidence, _ in pairs) / n,
        "accuracy": 100 * sum(right for _, right in pairs) / n,
        "bins": found,
    }


def letter_confusion(problems: Mapping[str, Mapping], predictions: Mapping[str, Any]) -> dict[str, Any]:
    """Right letters against given ones: does a model prefer a place?

    Returns:
        {"letters": ["A", …], "counts": [[n] of right letter × given letter], "none": [n] of right letter: no choice
        was named, "right": {letter → questions where it is right}, "given": {letter → times it was given}}.
    """
    answers = judged(problems, predictions)
    size = max(num_choices_of(problem) for problem in problems.values())
    letters = [chr(65 + place) for place in range(size)]
    counts = [[0] * size for _ in letters]
    none = [0] * size
    for id_, answer in answers.items():
        gold = problems[id_]["answer"]
        if answer is None:
            none[gold] += 1
        else:
            counts[gold][answer] += 1
    return {
        "letters": letters,
        "counts": counts,
        "none": none,
        "right": {letter: sum(row) + none[i] for i, (letter, row) in enumerate(zip(letters, counts, strict=True))},
        "given": {letter: sum(row[i] for row in counts) for i, letter in enumerate(letters)},
    }


def rationales_and_answers(
    problems: Mapping[str, Mapping], predictions: Mapping[str, Any], rationale_format: str | None = "QCM-E"
) -> dict[str, Any] | None:
    """Whether better rationales go with right answers.

    Returns:
        {"n", "right": mean ROUGE-L in % of the rationales of right answers (None where there are none), "wrong":
        likewise, "bins": [{"low", "high": ROUGE-L in %, "n", "accuracy", "ci95"}], "exact": share of rationales in %
        that are the reference word for word, "right_but_poor": ids of right answers whose rationale has less than a
        half of the reference's words in common}; None where there are no rationales or references.
    """
    from mmcot.training.evaluation.rationales import rouge_l
    from mmcot.training.evaluation.scoring import rationale_pair

    rows = []
    for id_, answer in judged(problems, predictions).items():
        pair = rationale_pair(problems[id_], predictions[id_], rationale_format)
        if pair is not None:
            rows.append((id_, rouge_l(*pair), answer == problems[id_]["answer"], pair[0].split() == pair[1].split()))
    if not rows:
        return None
    bounds = (0, 0.25, 0.5, 0.75, 0.9, 1.0)
    bins = []
    for number, (low, high) in enumerate(zip(bounds, bounds[1:], strict=False)):
        last = number == len(bounds) - 2
        own = [right for _, score, right, _ in rows if low <= score < high or (last and score >= high)]
        if own:
            bins.append({"low": 100 * low, "high": 100 * high} | share(sum(own), len(own)))
    found: dict[str, Any] = {"n": len(rows), "bins": bins}
    for name, wanted in (("right", True), ("wrong", False)):
        scores = [score for _, score, right, _ in rows if right == wanted]
        found[name] = 100 * sum(scores) / len(scores) if scores else None
    found["exact"] = 100 * sum(same for *_, same in rows) / len(rows)
    found["right_but_poor"] = [id_ for id_, score, right, _ in rows if right and score < 0.5]
    return found
