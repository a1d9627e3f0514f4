"""Scores of one run: accuracy in the paper's table, and its rationales. Neither a GPU nor a network is needed.

    problems, splits = read_problems("data/scienceqa")
    problems, predictions = match(problems, splits, read_predictions("predictions.jsonl"))
    result = evaluate_predictions(problems, predictions)
    print(format_table({"my model": result}))

Every result names its protocol: `generated` (rationales decoded freely; the default) or `teacher_forced` (the decoder
was fed the gold rationale, as for the paper's first tables; see docs/protocols.md).
"""

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.evaluation.accuracy import accuracy_table
from mmcot.training.evaluation.answers import judged_answer, num_choices_of
from mmcot.training.evaluation.predictions import PROTOCOLS
from mmcot.training.evaluation.rationales import rationale_scores
from mmcot.training.evaluation.reading import by_id, check_same_ids


def evaluate_predictions(
    problems: Mapping[str, Mapping] | Iterable[Mapping],
    predictions: Mapping[str, Any] | Iterable[Mapping],
    *,
    protocol: str = "generated",
    rationale_format: str | None = "QCM-E",
    unparsable: str = "wrong",
    seed: int = 0,
    similarity_model: str | Path | None = None,
) -> dict[str, Any]:
    """Scores of one run.

    Args:
        problems: `{id: problem}` or records with `id`; `answer` and `choices` (or `num_choices`) are required.
        predictions: `{id: prediction}` or records with `id`; see `read_predictions`.
        protocol: `generated` or `teacher_forced`; it labels the result.
        rationale_format: the prompt format whose target is the reference rationale of problems that have no
            `rationale` field of their own; None if there is none (one-stage runs).
        unparsable: what an answer that names no choice counts as: `wrong`, or `random`, a draw over the problem's own
            choices (the original draws over five).
        seed: of those draws; a problem's draw depends on its id and the seed only.
        similarity_model: a folder of a sentence-transformers model, for `similarity`.

    Returns:
        `{"accuracy": {column: %}, "n": {column: questions}, "ci95": {column: [low, high] %}, "rationale": {"rougeL",
        "rougeL_original", "bleu1", "bleu4"[, "similarity"]} in % (empty without rationales or references),
        "rationale_n", "protocol", "unparsable": count, "unparsable_counted_as", "interval": how ci95 was computed}`.
        A missing rationale counts as an empty one if others have theirs.

    Raises:
        UserError: ids do not match, a record lacks what is needed, or an option is unknown.
    """
    check_protocol(protocol)
    if unparsable not in ("wrong", "random"):
        raise UserError(f"unparsable={unparsable!r} is neither 'wrong' nor 'random'")
    problems, predictions = by_id(problems), by_id(predictions)
    check_same_ids(problems, predictions)
    chosen = {id_: judged_answer(id_, problem, predictions[id_]) for id_, problem in problems.items()}
    failed = [id_ for id_, index in chosen.items() if index is None]
    if unparsable == "random":
        for id_ in failed:
            chosen[id_] = random.Random(f"{seed}:{id_}").randrange(num_choices_of(problems[id_]))
    correct = [chosen[id_] == problem["answer"] for id_, problem in problems.items()]
    scores, scored = _score_rationales(problems, predictions, rationale_format, similarity_model)
    return {
        **accuracy_table(problems.values(), correct),
        "rationale": scores,
        "rationale_n": scored,
        "protocol": protocol,
        "unparsable": len(failed),
        "unparsable_counted_as": unparsable,
        "interval": "Wilson, 95 %",
    }


def evaluate_sources(
    problems: Mapping[str, Mapping] | Iterable[Mapping],
    predictions: Mapping[str, Any] | Iterable[Mapping],
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Scores of each source of a mixture (see `mmcot.training.data.mixture`), as `evaluate_predictions` gives them.

    Args: as those of `evaluate_predictions`.

    Returns:
        name of the source → scores, in the sources' order.
    """
    from mmcot.training.data.mixture import source_of

    problems, predictions = by_id(problems), by_id(predictions)
    check_same_ids(problems, predictions)
    ids: dict[str, list[str]] = {}
    for id_ in problems:
        ids.setdefault(source_of(id_), []).append(id_)
    return {
        name: evaluate_predictions({i: problems[i] for i in own}, {i: predictions[i] for i in own}, **options)
        for name, own in ids.items()
    }


def _score_rationales(problems, predictions, rationale_format, similarity_model) -> tuple[dict[str, float], int]:
    written = {id_: _written(prediction) for id_, prediction in predictions.items()}
    if all(text is None for text in written.values()):
        return {}, 0
    pairs = []
    for id_, problem in problems.items():
        reference = _reference(problem, rationale_format)
        if reference is not None:
            pairs.append((_like_reference(written[id_] or "", reference), reference))
    if all(_is_bare(reference) for _, reference in pairs):  # no gold rationale anywhere: nothing to score against
        return {}, 0
    hypotheses, references = zip(*pairs, strict=True)
    scores = rationale_scores(hypotheses, references)
    if similarity_model is not None:
        from mmcot.training.evaluation.similarity import similarities

        scores["similarity"] = sum(similarities(hypotheses, references, similarity_model)) / len(pairs)
    return {name: 100 * score for name, score in scores.items()}, sum(bool(text.strip()) for text in references)


def rationale_pair(problem: Mapping, prediction: Any, rationale_format: str | None) -> tuple[str, str] | None:
    """(written, reference) of one question, as they are scored; None where either is missing."""
    written, reference = _written(prediction), _reference(problem, rationale_format)
    if written is None or reference is None or _is_bare(reference):
        return None
    return _like_reference(written, reference), reference


def _written(prediction: Any) -> str | None:
    """The rationale as the network wrote it; the readable one where that isn't kept."""
    if not isinstance(prediction, Mapping):
        return None
    generated = prediction.get("generated")
    raw = generated.get("rationale") if isinstance(generated, Mapping) else None
    return prediction.get("rationale") if raw is None else raw


def _reference(problem: Mapping, rationale_format: str | None) -> str | None:
    """The gold rationale in the form of its training target, or None for a problem without one."""
    from mmcot.processing import build_prompt

    if problem.get("rationale") is not None:
        return problem["rationale"]
    if not rationale_format or problem.get("solution") is None:
        return None
    known = {} if problem.get("choices") else {"choices": [], "answer": None}  # only `num_choices` is given
    return build_prompt({**problem, **known}, rationale_format)[1]


def _is_bare(reference: str) -> bool:
    return not reference.removeprefix("Solution:").strip(" .")


def _like_reference(text: str, reference: str) -> str:
    """A readable rationale in the form of the reference: a leading "Solution:", lines joined by the two characters \\n
    that stand for a new line. What a network wrote by itself has that form."""
    if not text or not reference.startswith("Solution:") or text.startswith("Solution:"):
        return text
    return "Solution: " + "\\n".join(text.split("\n"))


def check_protocol(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol!r} is none of {', '.join(PROTOCOLS)}")
