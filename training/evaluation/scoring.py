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

from mmcot.training.evaluation.accuracy import accuracy_table
from mmcot.training.evaluation.answers import judged_answer, num_choices_of
from mmcot.training.evaluation.rationales import rationale_scores
from mmcot.training.evaluation.reading import by_id, check_same_ids

PROTOCOLS = ("generated", "teacher_forced")


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
        ValueError: ids do not match, a record lacks what is needed, or an option is unknown.
    """
    check_protocol(protocol)
    if unparsable not in ("wrong", "random"):
        raise ValueError(f"unparsable={unparsable!r} is neither 'wrong' nor 'random'")
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


def _score_rationales(problems, predictions, rationale_format, similarity_model) -> tuple[dict[str, float], int]:
    from mmcot.processing import build_prompt

    written = {
        id_: prediction.get("rationale") for id_, prediction in predictions.items() if isinstance(prediction, Mapping)
    }
    if all(text is None for text in written.values()):
        return {}, 0
    pairs = []
    for id_, problem in problems.items():
        reference = problem.get("rationale")
        if reference is None and rationale_format and problem.get("solution") is not None:
            known = {} if problem.get("choices") else {"choices": [], "answer": None}  # only `num_choices` is given
            reference = build_prompt({**problem, **known}, rationale_format)[1]
        if reference is not None:
            pairs.append((written.get(id_) or "", reference))
    if not pairs:
        return {}, 0
    hypotheses, references = zip(*pairs, strict=True)
    scores = rationale_scores(hypotheses, references)
    if similarity_model is not None:
        from mmcot.training.evaluation.similarity import similarities

        scores["similarity"] = sum(similarities(hypotheses, references, similarity_model)) / len(pairs)
    return {name: 100 * score for name, score in scores.items()}, sum(bool(text.strip()) for text in references)


def check_protocol(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is none of {', '.join(PROTOCOLS)}")
