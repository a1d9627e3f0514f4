"""Problems and predictions from files, joined by id: nothing is left over on either side."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmcot.training.common import MissingFileError, UserError
from mmcot.training.data.batched import read_records
from mmcot.training.data.splits import split_members, split_name
from mmcot.training.evaluation.answers import answer_index
from mmcot.training.evaluation.predictions import read_header


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
    json_file = path.is_file() and path.suffix in (".json", ".jsonl", ".ndjson")
    content = _read_json(path) if json_file else None
    if content is None or not (path.name == "problems.json" or _is_bare(content)):
        from mmcot.training.data.problems import load_problems  # which knows every form and name of field

        content = load_problems(source, split, image_rule="none", require_answer=False).remove_columns("images")
    problems = by_id(content, path)
    for id_, problem in problems.items():
        if not isinstance(problem, dict):
            raise UserError(f"{path}: problem {id_} is not an object with its fields")
    splits: dict[str, list[str]] = {}
    if path.name == "problems.json" and path.with_name("pid_splits.json").is_file():
        for name, ids in _read_json(path.with_name("pid_splits.json")).items():
            splits[name] = [str(id_) for id_ in ids if str(id_) in problems]
    else:
        for id_, problem in problems.items():
            if problem.get("split"):
                splits.setdefault(problem["split"], []).append(id_)
    return problems, splits


def _is_bare(content: Any) -> bool:
    """Whether the records hold what scoring needs and no questions."""
    records = list(content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else [])
    bare = [
        isinstance(record, Mapping) and ("num_choices" in record or "question" not in record) for record in records
    ]
    return not records or all(bare)


def read_predictions(path: str | Path) -> dict[str, Any]:
    """Predictions by id, each an index, a letter, an answer text or a dict with `answer` and maybe `rationale`.

    Args:
        path: a JSON object `{id: prediction}`, JSON Lines with `id`, `answer` and maybe `rationale`, or an output file
            of the original project (`predictions_ans_test.json`: `preds` and `labels` by position, returned as they
            are for `match` to join).
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"there is no predictions file {path}")
    try:
        content = _read_json(path)
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply to be predictions") from None
    if read_header(path):  # the first record says how the others came about
        content = content[1:]
    if is_original_output(content):
        return content
    predictions = by_id(content, path)
    for id_, prediction in predictions.items():
        _check_texts(f"{path}: prediction {id_}", prediction)
    return predictions


def _check_texts(where: str, prediction: Any) -> None:
    """Refuses a rationale that is no text, and a text that can't be written as UTF-8 (half a character)."""
    fields = prediction if isinstance(prediction, Mapping) else {"answer": prediction}
    generated = fields.get("generated")
    if generated is not None and not isinstance(generated, Mapping | str):
        raise UserError(f"{where}: 'generated' must be an object or a text, but is {generated!r:.80}")
    inner = generated if isinstance(generated, Mapping) else {}
    for name, text in (("rationale", fields.get("rationale")), ("generated.rationale", inner.get("rationale"))):
        if text is not None and not isinstance(text, str):
            raise UserError(f"{where}: {name!r} must be a text, but is {text!r:.80}")
    scores = fields.get("scores")
    if scores is not None:
        values = list(scores.values()) if isinstance(scores, Mapping) else scores
        if not isinstance(values, list) or not all(_is_probability(value) for value in values):
            raise UserError(f"{where}: 'scores' must be probabilities of the choices, but is {scores!r:.80}")
    for name in ("answer", "rationale"):
        text = fields.get(name)
        if isinstance(text, str) and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise UserError(f"{where}: {name!r} holds half a character (a lone surrogate): {text!a:.80}") from None


def _is_probability(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 + 1e-6


def _read_json(path: Path) -> Any:
    """The content of a JSON file, or the list of records of a JSON Lines file; no key may occur twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            raise UserError(f"{path}: key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
        return content

    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no UTF-8 text ({error})") from None
    if path.suffix not in (".jsonl", ".ndjson"):
        try:
            return json.loads(text, object_pairs_hook=unique)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":  # one value after the other: JSON Lines by another name
                raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            records += [json.loads(line, object_pairs_hook=unique)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error.msg})") from None
    return records


def by_id(content: Any, origin: Any = "the records given") -> dict[str, Any]:
    """`{id: record}` of a mapping or of records with an `id`; ids become strings, none may occur twice."""
    if isinstance(content, Mapping) and "id" in content and not isinstance(content["id"], Mapping):
        content = [content]  # a JSON Lines file of one line
    if isinstance(content, Mapping):
        return {str(id_): record for id_, record in content.items()}
    if isinstance(content, (str, bytes)) or not isinstance(content, Iterable):
        raise UserError(f"{origin}: expected an object {{id: …}} or records with an `id`")
    records: dict[str, Any] = {}
    for number, record in enumerate(read_records(content), start=1):
        if not isinstance(record, Mapping) or record.get("id") is None:
            raise UserError(f"{origin}: record {number} has no `id`")
        if str(record["id"]) in records:
            raise UserError(f"{origin}: id {record['id']} occurs twice")
        records[str(record["id"])] = dict(record)
    return records


def match(
    problems: Mapping[str, Mapping],
    splits: Mapping[str, list[str]],
    predictions: Mapping[str, Any],
    split: str | None = None,
    partial: bool = False,
) -> tuple[dict[str, Mapping], dict[str, Any]]:
    """The problems of one split and their predictions, joined by id, none left over on either side.

    Args:
        problems, splits: as from `read_problems`.
        predictions: as from `read_predictions`. The original project's output has no ids: it is joined by position in
            the split's own order, and only if its labels are the problems' answers there.
        split: the split that was predicted; by default the one whose problems the predictions are, or all problems.
            Problems that name no splits are taken whole.
        partial: problems without a prediction are left out; predictions of no problem are refused all the same.

    Raises:
        UserError: ids are missing on a side, or there is no such split.
    """
    if split is not None and splits and not splits.get(split):
        raise UserError(f"the problems have no split {split!r}; there is {', '.join(splits)}")
    candidates = {name: {id_: problems[id_] for id_ in ids} for name, ids in splits.items()}
    everything = dict(problems)
    if split is not None:
        candidates = {split: candidates.get(split, everything)}
    else:
        candidates = {"test": everything, **candidates, "": everything}  # "test" is the split to name in a complaint
    if partial and not is_original_output(predictions):
        known = everything if split is None else candidates[split]
        chosen = {id_: problem for id_, problem in known.items() if id_ in predictions}
        check_same_ids(chosen or problems, predictions)
        if not chosen:
            raise UserError("none of the problems has a prediction")
        return chosen, dict(predictions)
    if is_original_output(predictions):
        return _join_by_position(candidates, predictions)
    for candidate in candidates.values():
        if candidate.keys() == predictions.keys():
            return candidate, dict(predictions)
    expected = next(iter(candidates.values()))
    hint = "" if split or not splits else "; name the split with --split"
    check_same_ids(expected, predictions, hint=hint)
    return expected, dict(predictions)


def match_file(
    path: str | Path,
    problems: Mapping[str, Mapping],
    splits: Mapping[str, list[str]],
    split: str | None = None,
    partial: bool = False,
    name: str | None = None,
) -> tuple[dict[str, Mapping], dict[str, Any]]:
    """A predictions file joined with its problems: `read_predictions` and `match`, whose errors name the file.

    Args:
        path: the predictions file.
        name: of its run, for errors; the other arguments are those of `match`.

    Raises:
        UserError: see `match`; or the file's header names another split than `split`.
    """
    who = str(path) if name is None else f"{name} ({path})"
    predictions, facts = read_predictions(path), read_header(path)
    predicted = facts.get("split")
    # ids may be equal in two splits: then nothing else would tell that these are answers to other questions
    asked = split_name(split)
    if asked is not None and predicted is not None and split_name(predicted) not in (asked, *split_members(asked)):
        raise UserError(
            f"{who}: has predictions of the split {predicted!r}, says its header, and {split!r} is asked for: give "
            f"--split {predicted}, or predictions of {split}"
        )
    try:
        return match(problems, splits, predictions, split, partial)
    except UserError as error:
        hint = ""
        if split is not None and "split" in facts and predicted is None:
            hint = (
                f"; its header names no split, so it may be of all: leave out --split, or predict with --split {split}"
            )
        elif split is None and predicted is not None:
            hint = f"; its header names the split {predicted!r}"
        if "without a prediction" in str(error) and not partial:
            hint += "; --partial takes the questions that have one"
        raise UserError(f"{who}: {error}{hint}") from None


def check_same_questions(first: str, others: str, problems: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuses runs of other questions than the first's; `first` and `others` name the two."""
    if problems.keys() != other.keys():
        both = len(problems.keys() & other.keys())
        raise UserError(
            f"{others}: answers {len(other):,} questions, {first} {len(problems):,}, and {both:,} of them are the "
            "same: runs are compared on the same questions of one split"
        )


def is_original_output(content: Any) -> bool:
    return isinstance(content, Mapping) and all(isinstance(content.get(key), list) for key in ("preds", "labels"))


def _join_by_position(candidates: Mapping[str, Mapping], output: Mapping) -> tuple[dict[str, Mapping], dict[str, Any]]:
    labels = output["labels"]
    if len(labels) != len(output["preds"]):
        raise UserError(f"the predictions file has {len(output['preds'])} preds but {len(labels)} labels")
    if not any(re.search(r"The answer is \([A-Z]\)", str(label)) for label in labels):
        raise UserError("the labels of the predictions file are no answers: this is the output of a rationale stage")
    for candidate in candidates.values():
        if len(candidate) == len(labels) and all(
            answer_index(label, problem) == problem.get("answer")
            for label, problem in zip(labels, candidate.values(), strict=True)
        ):
            return dict(candidate), dict(zip(candidate, output["preds"], strict=True))
    sizes = ", ".join(f"{name or 'all'}: {len(problems)}" for name, problems in candidates.items())
    raise UserError(
        f"the predictions file has no ids, and its {len(labels)} labels are not the answers of any split in order "
        f"({sizes}); "
        "its pid_splits.json is needed beside the problems"
    )


def check_same_ids(problems: Mapping[str, Any], predictions: Mapping[str, Any], hint: str = "") -> None:
    if problems and predictions and not problems.keys() & predictions.keys():
        (own, *_), (other, *_) = predictions, problems
        raise UserError(
            f"these are predictions of other questions: none of their ids ({own}, …) is one of the "
            f"{len(problems):,} problems' ({other}, …){hint}"
        )
    unanswered = [id_ for id_ in problems if id_ not in predictions]
    unknown = [id_ for id_ in predictions if id_ not in problems]
    complaints = [
        f"{len(ids)} without a {what} ({', '.join(ids[:5])}{', …' if len(ids) > 5 else ''})"
        for ids, what in ((unanswered, "prediction"), (unknown, "problem"))
        if ids
    ]
    if complaints:
        raise UserError(
            f"{len(predictions)} predictions do not match {len(problems)} problems: {'; '.join(complaints)}{hint}"
        )
