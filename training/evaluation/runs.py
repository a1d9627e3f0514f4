"""Several runs on the same questions in one table: accuracy with intervals, cost, paired tests against the first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.evaluation.answers import judged_answer
from mmcot.training.evaluation.comparison import compare
from mmcot.training.evaluation.predictions import read_header
from mmcot.training.evaluation.protocol import protocol_of, rationale_format_of
from mmcot.training.evaluation.reading import check_same_questions, match_file, read_problems
from mmcot.training.evaluation.scoring import evaluate_predictions

MOST_DIFFERING = 10


def compare_runs(
    source: str | Path, runs: Mapping[str, str | Path], split: str | None = None, partial: bool = False
) -> dict[str, Any]:
    """Compares predictions files, whatever method wrote them.

    Args:
        source: the problems, as `read_problems` takes them.
        runs: name → predictions file; the first is what the others are tested against.
        split: that was predicted; default: the one whose ids the files have.
        partial: leave out problems without a prediction; all runs have to answer the same.

    Returns:
        `runs`: name → scores as `evaluate_predictions` gives them, with `header` (method, model, protocol), `cost`
        (`parameters`, `tokens_per_question`, `seconds_per_question`, what is known of them); `tests`: name → accuracy
        difference to the first in points, its 95 % interval, McNemar's exact p-value and the same after Holm's
        correction for the number of runs; `differing`: the questions on which the runs differ most.

    Raises:
        UserError: fewer than two runs, ids that don't match, or a file that doesn't say its protocol.
    """
    if len(runs) < 2:
        raise UserError("a comparison needs two runs at least: --run NAME=FILE --run NAME=FILE")
    problems, splits = read_problems(source, split)
    chosen, found, results = None, {}, {}
    for name, path in runs.items():
        facts = read_header(path)
        own, found[name] = match_file(path, problems, splits, split, partial, name=name)
        chosen = own if chosen is None else chosen
        check_same_questions(next(iter(runs)), f"{name} ({path})", chosen, own)
        result = evaluate_predictions(
            chosen, found[name], protocol=protocol_of(path), rationale_format=rationale_format_of(path)
        )
        results[name] = {**result, "header": facts, "cost": _cost(facts, len(chosen))}
    first, *others = runs
    tests = {
        name: compare(chosen, found[first], found[name], protocol=_protocols(results))["columns"]["Avg"]
        for name in others
    }
    for name, adjusted in zip(tests, holm([test["p_value"] for test in tests.values()]), strict=True):
        tests[name] = {**tests[name], "p_holm": adjusted}
    return {"first": first, "runs": results, "tests": tests, "differing": _differing(chosen, found)}


def holm(p_values: list[float]) -> list[float]:
    """p-values after Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _protocols(results: Mapping[str, Mapping]) -> str:
    return "generated" if all(result["protocol"] == "generated" for result in results.values()) else "teacher_forced"


def _cost(facts: Mapping[str, Any], questions: int) -> dict[str, float | None]:
    tokens = facts.get("tokens")
    return {
        "parameters": facts.get("parameters"),
        "tokens_per_question": sum(tokens.values()) / questions if tokens else None,
        "seconds_per_question": facts.get("seconds_per_question"),
    }


def _differing(problems: Mapping[str, Mapping], runs: Mapping[str, Mapping]) -> list[dict[str, Any]]:
    """The questions that the most even shares of the runs get right and wrong, with what each answered."""
    found = []
    for id_, problem in problems.items():
        answers = {name: judged_answer(id_, problem, predictions[id_]) for name, predictions in runs.items()}
        right = sum(answer == problem["answer"] for answer in answers.values())
        split = min(right, len(runs) - right)
        if split:
            found.append((split, id_, answers))
    found.sort(key=lambda item: -item[0])  # stable: the problems' own order among equals
    return [
        {"id": id_, "question": problems[id_]["question"], "answer": problems[id_]["answer"], "answers": answers}
        for _, id_, answers in found[:MOST_DIFFERING]
    ]


def format_runs(comparison: Mapping[str, Any]) -> str:
    """The result of `compare_runs` as text."""
    from mmcot.training.evaluation.tables import format_table

    lines = [format_table(comparison["runs"]), ""]
    lines.append(f"{'cost':<24}{'parameters':>12}{'tokens':>10}{'seconds':>10}  a question")
    for name, result in comparison["runs"].items():
        cost = result["cost"]
        parameters = "" if cost["parameters"] is None else f"{cost['parameters'] / 1e6:.1f} M"
        tokens = "" if cost["tokens_per_question"] is None else f"{cost['tokens_per_question']:.0f}"
        seconds = "" if cost["seconds_per_question"] is None else f"{cost['seconds_per_question']:.3f}"
        lines.append(f"{name:<24}{parameters:>12}{tokens:>10}{seconds:>10}")
    lines += [
        "",
        f"accuracy minus that of {comparison['first']}: points, 95 % interval, McNemar's exact p, after Holm",
    ]
    for name, test in comparison["tests"].items():
        low, high = test["ci95"]
        interval = f"[{low:+.2f}, {high:+.2f}]"
        lines.append(
            f"{name:<24}{test['difference']:>+8.2f}  {interval:<18}{test['p_value']:>10.3g}{test['p_holm']:>10.3g}"
        )
    if comparison["differing"]:
        lines += ["", "questions on which they differ most (right answer, then each run's):"]
        for item in comparison["differing"]:
            letters = {name: "-" if index is None else chr(65 + index) for name, index in item["answers"].items()}
            given = "  ".join(f"{name}: {letter}" for name, letter in letters.items())
            lines.append(f"  {item['id']}  {item['question'][:60]}  ({chr(65 + item['answer'])})  {given}")
    return "\n".join(lines)
