"""Everything that a report says, as one dict: text, tables and charts are made of it and of nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.report.runs import ReportRun, differences

DIFFERING = 10


def report_figures(
    runs: Sequence[ReportRun],
    *,
    source: str | Path | None = None,
    split: str | None = None,
    probes: Mapping[str, str | Path] | None = None,
    protocol: str | None = None,
    partial: bool = False,
) -> tuple[dict[str, Any], dict[str, Mapping]]:
    """The figures of a report, and the problems that they are of.

    Args:
        runs: on the same questions; the first is what the others are tested against.
        source: the problems; default: what the predictions file says.
        split: that was predicted; default: what the file says, else the one whose ids it has.
        probes: name → predictions file of the first run's model on the same questions, with its pictures blanked or
            shuffled, say; default: blank, of a run that asked its questions without their pictures too.
        protocol: of files that don't say it.
        partial: leave out problems without a prediction; all runs have to answer the same.

    Returns:
        {"source", "split", "n", "chance", "runs": {name → {"result" (`evaluate_predictions`), "header", "by": {field →
        `accuracy_by`}, "calibration", "confusion", "rationales", "histories", "seconds"}}, "probes": {name → {"file",
        "columns": `compare` with the first run}}, "tests": {name → {"columns", "p_holm",
        "settings": differences}}, "differing": [{"id", "question", "answer", "answers"}]}; and id → problem.

    Raises:
        UserError: ids that don't match, a file that doesn't say its protocol, or no source.
    """
    from mmcot.training.evaluation.analysis import chance
    from mmcot.training.evaluation.comparison import compare
    from mmcot.training.evaluation.reading import check_same_questions, match_file, read_problems
    from mmcot.training.evaluation.runs import holm

    first = runs[0]
    source = source or first.header.get("source")
    if source is None:
        raise UserError(f"{first.file}: doesn't say which questions it answers: add --problems SOURCE")
    split = split or first.header.get("split")
    everything, splits = read_problems(source, split)
    problems: dict[str, Mapping] = {}
    answers: dict[str, dict[str, Any]] = {}
    found: dict[str, Any] = {"source": str(source), "split": split, "runs": {}, "probes": {}, "tests": {}}
    for run in runs:
        own, answers[run.name] = match_file(run.file, everything, splits, split, partial, name=run.name)
        problems = problems or own
        check_same_questions(first.name, f"{run.name} ({run.file})", problems, own)
        found["runs"][run.name] = _of_run(run, problems, answers[run.name], protocol)
    found |= {"n": len(problems), "chance": chance(problems)}
    asked = dict(probes or {})
    if first.blank is not None and not asked:
        asked["blank"] = first.blank
    for name, path in asked.items():
        beside = path == first.blank  # the run asked without a picture what has one, and nothing else
        own, probed = match_file(path, everything, splits, split, partial or beside, name=name)
        if beside:
            own = {id_: problem for id_, problem in own.items() if id_ in problems}
            probed = {id_: probed[id_] for id_ in own}
        else:
            check_same_questions(first.name, f"{name} ({path})", problems, own)
        told = {id_: answers[first.name][id_] for id_ in own}
        columns = compare(own, told, probed, protocol=_protocol(found, first))["columns"]
        found["probes"][name] = {"file": Path(path).name, "columns": columns}
    for run in runs[1:]:
        kinds = {_protocol(found, one) for one in (first, run)}
        if len(kinds) > 1:
            said = ", ".join(f"{one.name}: {_protocol(found, one)}" for one in (first, run))
            raise UserError(f"numbers of two protocols are not compared ({said}); see docs/protocols.md")
        compared = compare(problems, answers[first.name], answers[run.name], protocol=kinds.pop())
        found["tests"][run.name] = {"columns": compared["columns"], "settings": differences(first, run)}
    adjusted = holm([test["columns"]["Avg"]["p_value"] for test in found["tests"].values()])
    for test, p_holm in zip(found["tests"].values(), adjusted, strict=True):
        test["p_holm"] = p_holm
    found["differing"] = _differing(problems, answers) if len(runs) > 1 else []
    return found, problems


def _protocol(found: Mapping[str, Any], run: ReportRun) -> str:
    return found["runs"][run.name]["result"]["protocol"]


def _of_run(run: ReportRun, problems, predictions, protocol: str | None) -> dict[str, Any]:
    from mmcot.training.evaluation.analysis import (
        accuracy_by,
        calibration,
        letter_confusion,
        rationales_and_answers,
    )
    from mmcot.training.evaluation.protocol import protocol_of, rationale_format_of
    from mmcot.training.evaluation.scoring import evaluate_predictions

    format_ = rationale_format_of(run.file)
    result = evaluate_predictions(
        problems, predictions, protocol=protocol_of(run.file, protocol), rationale_format=format_
    )
    return {
        "result": result,
        "header": run.header,
        "by": {name: accuracy_by(problems, predictions, name) for name in ("skill", "subject", "grade", "context")},
        "calibration": calibration(problems, predictions),
        "confusion": letter_confusion(problems, predictions),
        "rationales": rationales_and_answers(problems, predictions, format_),
        "histories": run.histories,
        "seconds": run.seconds,
    }


def _differing(problems: Mapping[str, Mapping], answers: Mapping[str, Mapping]) -> list[dict[str, Any]]:
    """Questions that some runs get right and others wrong, those on which they are most divided first."""
    from mmcot.training.evaluation.analysis import judged

    chosen = {name: judged(problems, predictions) for name, predictions in answers.items()}
    rows = []
    for id_, problem in problems.items():
        given = {name: own[id_] for name, own in chosen.items()}
        right = sum(answer == problem["answer"] for answer in given.values())
        if 0 < right < len(given):
            rows.append((min(right, len(given) - right), id_, given))
    rows.sort(key=lambda row: -row[0])
    return [
        {"id": id_, "question": problems[id_]["question"], "answer": problems[id_]["answer"], "answers": given}
        for _, id_, given in rows[:DIFFERING]
    ]
