"""Evaluation: predictions and problems in, the paper's table out. Neither a GPU nor a network nor the full test set.

    problems, splits = read_problems("data/scienceqa")
    problems, predictions = match(problems, splits, read_predictions("predictions.jsonl"))
    result = evaluate_predictions(problems, predictions)
    print(format_table({"my model": result}))

Every result names its protocol: `generated` (rationales decoded freely; the default) or `teacher_forced` (the decoder
was fed the gold rationale, as for the paper's first tables; see docs/protocols.md).
"""

import json
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmcot.training.evaluation.predictions import read_header
from mmcot.training.evaluation.scores import (
    COLUMNS,
    accuracy_table,
    column_members,
    mcnemar_exact,
    paired_difference_interval,
    rationale_scores,
)

PROTOCOLS = ("generated", "teacher_forced")


# ---- reading -------------------------------------------------------------------------------------------------------


def read_problems(source: str | Path, split: str | None = None) -> tuple[dict[str, dict], dict[str, list[str]]]:
    """Problems by id, and the ids of each split that the source names.

    Args:
        source: a folder or `problems.json` of ScienceQA's layout (`pid_splits.json` beside it, if there), a JSON
            object `{id: problem}` of any name, a JSON Lines file, or whatever else
            `mmcot.training.load_problems` takes. To be scored, a problem needs `answer` and either `choices` or
            `num_choices`; the fields that decide on columns may be missing.
        split: spares loading the other splits where that costs something (sources of `load_problems`); see `match`.
    """
    path = Path(source)
    if (path / "problems.json").is_file():
        path = path / "problems.json"
    content = _read_json(path) if path.is_file() and path.suffix != ".parquet" else None
    if content is None or (isinstance(content, list) and any("id" not in record for record in content)):
        from mmcot.training.data.problems import (
            load_problems,
        )  # which knows the other forms, and gives ids to records without

        content = load_problems(source, split).remove_columns("images")
    problems = _by_id(content, path)
    for id_, problem in problems.items():
        if not isinstance(problem, dict):
            raise ValueError(f"{path}: problem {id_} is not an object with its fields")
    splits: dict[str, list[str]] = {}
    if path.name == "problems.json" and path.with_name("pid_splits.json").is_file():
        for name, ids in _read_json(path.with_name("pid_splits.json")).items():
            splits[name] = [str(id_) for id_ in ids if str(id_) in problems]
    else:
        for id_, problem in problems.items():
            if problem.get("split"):
                splits.setdefault(problem["split"], []).append(id_)
    return problems, splits


def read_predictions(path: str | Path) -> dict[str, Any]:
    """Predictions by id, each an index, a letter, an answer text or a dict with `answer` and maybe `rationale`.

    Args:
        path: a JSON object `{id: prediction}`, JSON Lines with `id`, `answer` and maybe `rationale`, or an output file
            of the original project (`predictions_ans_test.json`: `preds` and `labels` by position, returned as they
            are for `match` to join).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no predictions file {path}")
    content = _read_json(path)
    if read_header(path):  # the first record says how the others came about
        content = content[1:]
    return content if _is_original_output(content) else _by_id(content, path)


def _read_json(path: Path) -> Any:
    """The content of a JSON file, or the list of records of a JSON Lines file; no key may occur twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"{path}: key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
        return content

    text = path.read_text(encoding="utf-8-sig")
    if path.suffix not in (".jsonl", ".ndjson"):
        try:
            return json.loads(text, object_pairs_hook=unique)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":  # one value after the other: JSON Lines by another name
                raise ValueError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            records += [json.loads(line, object_pairs_hook=unique)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not valid JSON ({error.msg})") from None
    return records


def _by_id(content: Any, origin: Any = "the records given") -> dict[str, Any]:
    """`{id: record}` of a mapping or of records with an `id`; ids become strings, none may occur twice."""
    if isinstance(content, Mapping) and "id" in content and not isinstance(content["id"], Mapping):
        content = [content]  # a JSON Lines file of one line
    if isinstance(content, Mapping):
        return {str(id_): record for id_, record in content.items()}
    if isinstance(content, (str, bytes)) or not isinstance(content, Iterable):
        raise ValueError(f"{origin}: expected an object {{id: …}} or records with an `id`")
    records: dict[str, Any] = {}
    for number, record in enumerate(content, start=1):
        if not isinstance(record, Mapping) or record.get("id") is None:
            raise ValueError(f"{origin}: record {number} has no `id`")
        if str(record["id"]) in records:
            raise ValueError(f"{origin}: id {record['id']} occurs twice")
        records[str(record["id"])] = dict(record)
    return records


# ---- joining predictions to problems -------------------------------------------------------------------------------


def match(
    problems: Mapping[str, Mapping],
    splits: Mapping[str, list[str]],
    predictions: Mapping[str, Any],
    split: str | None = None,
) -> tuple[dict[str, Mapping], dict[str, Any]]:
    """The problems of one split and their predictions, joined by id, none left over on either side.

    Args:
        problems, splits: as from `read_problems`.
        predictions: as from `read_predictions`. The original project's output has no ids: it is joined by position in
            the split's own order, and only if its labels are the problems' answers there.
        split: the split that was predicted; by default the one whose problems the predictions are, or all problems.
            Problems that name no splits are taken whole.

    Raises:
        ValueError: ids are missing on a side, or there is no such split.
    """
    if split is not None and splits and not splits.get(split):
        raise ValueError(f"the problems have no split {split!r}; there is {', '.join(splits)}")
    candidates = {name: {id_: problems[id_] for id_ in ids} for name, ids in splits.items()}
    everything = dict(problems)
    if split is not None:
        candidates = {split: candidates.get(split, everything)}
    else:
        candidates = {"test": everything, **candidates, "": everything}  # "test" is the split to name in a complaint
    if _is_original_output(predictions):
        return _join_by_position(candidates, predictions)
    for candidate in candidates.values():
        if candidate.keys() == predictions.keys():
            return candidate, dict(predictions)
    expected = next(iter(candidates.values()))
    _check_same_ids(expected, predictions, hint="" if split or not splits else "; name the split with --split")
    return expected, dict(predictions)


def _is_original_output(content: Any) -> bool:
    return isinstance(content, Mapping) and all(isinstance(content.get(key), list) for key in ("preds", "labels"))


def _join_by_position(candidates: Mapping[str, Mapping], output: Mapping) -> tuple[dict[str, Mapping], dict[str, Any]]:
    labels = output["labels"]
    if len(labels) != len(output["preds"]):
        raise ValueError(f"the predictions file has {len(output['preds'])} preds but {len(labels)} labels")
    if not any(re.search(r"The answer is \([A-Z]\)", str(label)) for label in labels):
        raise ValueError("the labels of the predictions file are no answers: this is the output of a rationale stage")
    for candidate in candidates.values():
        if len(candidate) == len(labels) and all(
            _answer_index(label, problem) == problem.get("answer")
            for label, problem in zip(labels, candidate.values(), strict=True)
        ):
            return dict(candidate), dict(zip(candidate, output["preds"], strict=True))
    sizes = ", ".join(f"{name or 'all'}: {len(problems)}" for name, problems in candidates.items())
    raise ValueError(
        f"the predictions file has no ids, and its {len(labels)} labels are not the answers of any split in order "
        f"({sizes}); "
        "its pid_splits.json is needed beside the problems"
    )


def _check_same_ids(problems: Mapping[str, Any], predictions: Mapping[str, Any], hint: str = "") -> None:
    unanswered = [id_ for id_ in problems if id_ not in predictions]
    unknown = [id_ for id_ in predictions if id_ not in problems]
    complaints = [
        f"{len(ids)} without a {what} ({', '.join(ids[:5])}{', …' if len(ids) > 5 else ''})"
        for ids, what in ((unanswered, "prediction"), (unknown, "problem"))
        if ids
    ]
    if complaints:
        raise ValueError(
            f"{len(predictions)} predictions do not match {len(problems)} problems: {'; '.join(complaints)}{hint}"
        )


def _num_choices(problem: Mapping) -> int:
    if problem.get("num_choices") is not None:
        return int(problem["num_choices"])
    if problem.get("choices"):
        return len(problem["choices"])
    raise ValueError(f"problem {problem.get('id', '')} has neither `choices` nor `num_choices`")


def _answer_index(answer: Any, problem: Mapping) -> int | None:
    """The index of the choice that a prediction names, or None if it names none that the problem has."""
    from mmcot.processing import parse_answer

    num_choices = _num_choices(problem)
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
        raise ValueError(f"the answer {answer!r} is neither an index nor a text")
    return answer if 0 <= answer < num_choices else None


# ---- evaluating ----------------------------------------------------------------------------------------------------


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
    _check_protocol(protocol)
    if unparsable not in ("wrong", "random"):
        raise ValueError(f"unparsable={unparsable!r} is neither 'wrong' nor 'random'")
    problems, predictions = _by_id(problems), _by_id(predictions)
    _check_same_ids(problems, predictions)
    chosen = {id_: _judged_answer(id_, problem, predictions[id_]) for id_, problem in problems.items()}
    failed = [id_ for id_, index in chosen.items() if index is None]
    if unparsable == "random":
        for id_ in failed:
            chosen[id_] = random.Random(f"{seed}:{id_}").randrange(_num_choices(problems[id_]))
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


def _check_protocol(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is none of {', '.join(PROTOCOLS)}")


def _judged_answer(id_: str, problem: Mapping, prediction: Any) -> int | None:
    if isinstance(problem.get("answer"), bool) or not isinstance(problem.get("answer"), int):
        raise ValueError(f"problem {id_} has no `answer` (the index of the right choice)")
    if isinstance(prediction, Mapping):
        if "answer" not in prediction:
            raise ValueError(f"prediction {id_} has no `answer`")
        prediction = prediction["answer"]
    try:
        return _answer_index(prediction, problem)
    except ValueError as error:
        raise ValueError(f"prediction {id_}: {error}") from None


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
    _check_protocol(protocol)
    problems = _by_id(problems)
    right = []
    for predictions in (_by_id(predictions_a), _by_id(predictions_b)):
        _check_same_ids(problems, predictions)
        right.append(
            [_judged_answer(i, problem, predictions[i]) == problem["answer"] for i, problem in problems.items()]
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


# ---- printing ------------------------------------------------------------------------------------------------------


def format_table(results: Mapping[str, Mapping]) -> str:
    """The paper's table as text: for each run its accuracies (%), half the width of their 95 % intervals, the number
    of questions, the protocol, the rationale's scores and how many answers could not be parsed."""
    columns = [column for column in COLUMNS if any(column in result["accuracy"] for result in results.values())]
    width = max([len(name) for name in results] + [12])
    lines = [" " * width + "".join(f"{column:>8}" for column in columns)]
    for name, result in results.items():
        half_widths = {column: (high - low) / 2 for column, (low, high) in result["ci95"].items()}
        for label, values, form in (
            (name, result["accuracy"], ".2f"),
            ("  ±", half_widths, ".2f"),
            ("  n", result["n"], "d"),
        ):
            cells = (format(values[column], form) if column in values else "" for column in columns)
            lines.append(f"{label:<{width}}" + "".join(f"{cell:>8}" for cell in cells))
        notes = [f"protocol: {result['protocol']}"]
        names = {"rougeL": "ROUGE-L", "rougeL_original": "ROUGE-L (original)", "bleu1": "BLEU-1", "bleu4": "BLEU-4"}
        notes += [f"{names.get(key, key)} {score:.2f}" for key, score in result["rationale"].items()]
        if result["unparsable"]:
            notes.append(f"unparsable: {result['unparsable']}, counted as {result['unparsable_counted_as']}")
        lines.append("  " + " · ".join(notes))
    lines.append("Accuracy in %; ± is half the width of the 95 % interval (Wilson).")
    return "\n".join(lines)


def format_comparison(comparison: Mapping, name_a: str = "A", name_b: str = "B") -> str:
    """The result of `compare` as text."""
    lines = [
        f"A = {name_a}",
        f"B = {name_b}",
        f"protocol: {comparison['protocol']}",
        f"{'':<6}{'n':>6}{'A':>8}{'B':>8}{'B - A':>8}  {'95 % interval':<18}{'only A':>7}{'only B':>7}{'p':>10}",
    ]
    for column, row in comparison["columns"].items():
        low, high = row["ci95"]
        lines.append(
            f"{column:<6}{row['n']:>6}{row['accuracy_a']:>8.2f}{row['accuracy_b']:>8.2f}{row['difference']:>+8.2f}  "
            f"{f'[{low:+.2f}, {high:+.2f}]':<18}{row['only_a']:>7}{row['only_b']:>7}{row['p_value']:>10.3g}"
        )
    lines.append("only A/B: questions that only this run got right; p: McNemar's exact test, two-sided.")
    return "\n".join(lines)
