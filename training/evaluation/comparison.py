"""Paired comparison of runs on the same problems."""

from collections.abc import Iterable, Mapping
from typing import Any

from mmcot.training.evaluation.accuracy import column_members, mcnemar_exact, paired_difference_interval
from mmcot.training.evaluation.answers import judged_answer
from mmcot.training.evaluation.protocol import NOT_STATED
from mmcot.training.evaluation.reading import by_id, check_same_ids
from mmcot.training.evaluation.scoring import check_protocol


def compare(
    problems: Mapping[str, Mapping] | Iterable[Mapping],
    predictions_a: Mapping[str, Any] | Iterable[Mapping],
    predictions_b: Mapping[str, Any] | Iterable[Mapping],
    *,
    protocol: str = "generated",
) -> dict[str, Any]:
    """Paired comparison of two runs on the same problems; unparsable answers count as wrong.

    Returns:
        `{"columns": {column: {"n", "accuracy_a", "accuracy_b", "difference" (B - A, points), "ci95": [low, high] of
        the difference, "only_a", "only_b" (questions that only one run got right), "p_value"}}, "protocol", "test" and
        "interval": how p and ci95 were computed}`, with the paper's columns.
    """
    if protocol != NOT_STATED:
        check_protocol(protocol)
    problems = by_id(problems)
    right = []
    for predictions in (by_id(predictions_a), by_id(predictions_b)):
        check_same_ids(problems, predictions)
        right.append(
            [judged_answer(i, problem, predictions[i]) == problem["answer"] for i, problem in problems.items()]
        )
    columns = {}
    for column, members in column_members(problems.values()).items():
        pairs = [(a, b) for a, b, member in zip(*right, members, strict=True) if member]
        n, only_a, only_b = len(pairs), pairs.count((True, False)), pairs.count((False, True))
        columns[column] = {
            "n": n,
            "accuracy_a": 100 * sum(a for a, _ in pairs) / n,
            "accuracy_b": 100 * sum(b for _, b in pairs) / n,
            "difference": 100 * (only_b - only_a) / n,
            "ci95": [100 * bound for bound in paired_difference_interval(only_a, only_b, n)],
            "only_a": only_a,
            "only_b": only_b,
            "p_value": mcnemar_exact(only_a, only_b),
        }
    return {
        "columns": columns,
        "protocol": protocol,
        "test": "McNemar, exact, two-sided",
        "interval": "Agresti-Min, 95 %",
    }
