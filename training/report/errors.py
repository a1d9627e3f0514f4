"""The study of a run's errors: what `mmcot errors` does and prints."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.evaluation.errors import (
    LabelsFile,
    agreement,
    automatic_labels,
    corrected,
    draw_errors,
    label_shares,
    read_labels,
    sample_fingerprint,
    wrong_answers,
)
from mmcot.training.evaluation.hallucination import hallucination_rates, validate_indicator, written_rationale
from mmcot.training.evaluation.predictions import read_header
from mmcot.training.evaluation.protocol import protocol_of
from mmcot.training.evaluation.reading import match_file, read_problems


def error_study(
    source: str,
    predictions: str | Path,
    *,
    split: str | None = None,
    n: int = 50,
    seed: int = 0,
    labels: str | Path | None = None,
    labeller: str | None = None,
    ask: Callable[[str], str] | None = input,
    hints: bool = False,
    pictures: str | Path | None = None,
    second_labels: str | Path | None = None,
    other: str | Path | None = None,
    partial: bool = False,
    **source_options: Any,
) -> dict[str, Any]:
    """Draws wrong answers, has them labelled, and counts.

    Args:
        source, predictions, split: the problems and what was answered.
        n, seed: of the draw.
        labels: file of labels; the missing ones are asked for by `ask` (None: nothing is asked).
        labeller: who labels.
        hints, pictures: see `label_errors`, `save_pictures`.
        second_labels: another labeller's file, for the agreement.
        other: another run's predictions, for what it corrected.
        partial: leave out problems without a prediction.
        source_options: `columns`, `allow_urls`, `allow_outside` of `load_problems`, for the pictures.

    Returns:
        `questions`, `wrong`, `drawn` (ids), `seed`, `protocol`, `indicator` (rates by the automatic indicator over all
        questions, and over the drawn: `drawn`), and, where asked for, `labels`, `indicator_against_labels` (precision
        and recall of the indicator, the labels being the truth), `agreement`, `corrected`, `corrected_hallucinations`.
    """
    problems, splits = read_problems(source, split)
    problems, found = match_file(predictions, problems, splits, split, partial)
    drawn = draw_errors(problems, found, n, seed)
    automatic = automatic_labels(drawn, problems, found)
    result: dict[str, Any] = {
        "model": read_header(predictions).get("model"),
        "protocol": protocol_of(predictions, required=False),
        "questions": len(problems),
        "wrong": len(wrong_answers(problems, found)),
        "seed": seed,
        "drawn": drawn,
        "indicator": {**hallucination_rates(problems, found)},
    }
    own: dict[str, str] = {}
    if labels is not None:
        own = _label(source, labels, drawn, problems, found, seed, labeller, ask, hints, pictures, source_options)
        result["labels"] = label_shares(own)
        truth = {id_: label == "hallucination" for id_, label in own.items() if id_ in automatic}
        if truth:
            result["indicator_against_labels"] = _against(truth, automatic)
    if second_labels is not None:
        _, second = read_labels(second_labels)
        result["agreement"] = agreement(own, second)
    if other is not None:
        _, answers = match_file(other, problems, {}, split)
        result["corrected"] = corrected(drawn, problems, answers, own)
        flagged = [id_ for id_, hallucinated in automatic.items() if hallucinated]
        if flagged:
            result["corrected_by_indicator"] = corrected(flagged, problems, answers)["all"]
    return result


def _label(source, labels, drawn, problems, found, seed, labeller, ask, hints, pictures, options) -> dict[str, str]:
    from mmcot.training.report.labelling import label_errors, save_pictures

    header = {"predictions": sample_fingerprint(found), "seed": seed, "labeller": labeller}
    file = LabelsFile(labels, header)
    missing = [id_ for id_ in drawn if id_ not in file.labels]
    if missing and ask is not None:
        folder = (
            Path(pictures) if pictures else Path(labels).with_suffix("").with_name(f"{Path(labels).stem}-pictures")
        )
        shown = save_pictures(_with_images(source, drawn, problems, options), folder)
        label_errors(drawn, problems, found, file, pictures=shown, hints=hints, ask=ask)
    return {id_: file.labels[id_] for id_ in drawn if id_ in file.labels}


def _with_images(source: str, ids: list[str], problems: Mapping[str, Mapping], options: dict) -> dict[str, dict]:
    """The drawn problems with their images, from sources that have some."""
    from mmcot.training.data.problems import load_problems

    path = Path(source)
    if path.is_file() and path.name == "problems.json":
        source = str(path.parent)
    records = load_problems(source, problems[ids[0]].get("split"), require_answer=False, **options)
    rows = {id_: row for row, id_ in enumerate(records["id"][:])}
    return {id_: records[rows[id_]] for id_ in ids if id_ in rows}


def _against(truth: Mapping[str, bool], automatic: Mapping[str, bool]) -> dict[str, Any]:
    both = sum(truth[id_] and automatic[id_] for id_ in truth)
    said, there = sum(automatic[id_] for id_ in truth), sum(truth.values())
    return {
        "n": len(truth),
        "precision": 100 * both / said if said else None,
        "recall": 100 * both / there if there else None,
    }


def validate_on_embedded(
    source: str, predictions: str | Path | None = None, split: str | None = None
) -> dict[str, Any]:
    """Precision and recall of the indicator where the truth is known by construction.

    Args:
        source: "embedded:…".
        predictions: of a model on this source: also on what it wrote. A rationale that is neither the solution nor
            that of another picture of the same question is of unknown truth, and left out.

    Returns:
        `{"constructed": see `validate_indicator`, "written": the same and `unknown`}`.
    """
    from mmcot.training.data.embedded.misread import other_solutions, rationale_cases, truth_of_rationale
    from mmcot.training.data.embedded.source import embedded_options

    if not str(source).startswith("embedded"):
        raise UserError(f"{source}: --validate needs generated questions, whose truth is known: give embedded:…")
    options = embedded_options(source)
    common = {"seed": options["seed"], "skills": options["skills"]}
    size = options.get(split or "test", options["n"])
    result = {"constructed": validate_indicator(rationale_cases(size, split=split or "test", **common))}
    if predictions is not None:
        problems, splits = read_problems(source, split)
        problems, found = match_file(predictions, problems, splits, split)
        cases, unknown = [], 0
        for id_, problem in problems.items():
            text = written_rationale(found[id_])
            if text is None:
                continue
            index = int(id_.rpartition("-")[2])
            others = other_solutions(index, split=problem["split"], **common)
            truth = truth_of_rationale(text, problem, others)
            unknown += truth is None
            if truth is not None:
                gold = f"{problem['lecture']} {problem['solution']}"
                cases.append({"rationale": text, "gold": gold, "hallucinated": truth, "kind": _kind(truth)})
        result["written"] = {**validate_indicator(cases), "unknown": unknown}
    return result


def _kind(hallucinated: bool) -> str:
    return "another picture's solution" if hallucinated else "the solution"


def format_study(result: Mapping[str, Any]) -> str:
    """The result of `error_study`, `validate_on_embedded`, or both, as text."""
    lines = []
    for where, found in result.get("validation", {}).items():
        count = f"{found['n']:,}, {found['hallucinated']:,} hallucinated"
        lines.append(f"indicator of hallucination, {where} rationales: {count}")
        for name in ("precision", "recall"):
            lines.append(f"  {name:<10}{_rate(found[name], found['ci95'][name])}")
        if found.get("unknown"):
            lines.append(f"  {found['unknown']:,} others are neither right nor another picture's: of unknown truth")
        for kind, row in found["kinds"].items():
            truth = "hallucinated" if row["hallucinated"] else "true"
            lines.append(f"    {kind:<36}{row['n']:>6}  {truth:<13}found in {row['found']:5.1f} %")
    if "drawn" not in result:
        return "\n".join(lines)
    lines.append(
        f"{result['wrong']:,} of {result['questions']:,} answers are wrong; {len(result['drawn'])} drawn (seed "
        f"{result['seed']}); protocol: {result['protocol']}"
    )
    for group, found in result["indicator"].items():
        rate = _rate(found["hallucinated"], found["ci95"])
        lines.append(f"contradict the gold solution, {group} answers: {rate}  n {found['n']:,}")
    if "labels" in result:
        lines.append(f"labelled: {result['labels']['n']} of {len(result['drawn'])}")
        for label, found in result["labels"]["shares"].items():
            if "share" in found:
                lines.append(f"  {label:<14}{found['count']:>4}  {_rate(found['share'], found['ci95'])}")
    if "indicator_against_labels" in result:
        found = result["indicator_against_labels"]
        precision, recall = _percent(found["precision"]), _percent(found["recall"])
        lines.append(f"indicator against the labels: precision {precision}, recall {recall}")
    if "agreement" in result:
        found = result["agreement"]
        kappa = "not defined" if found["kappa"] is None else f"{found['kappa']:.3f}"
        lines.append(f"two labellers: agree on {found['agree']:.1f} % of {found['n']}, Cohen's kappa {kappa}")
        if found["differ"]:
            lines.append(f"  they differ on {', '.join(found['differ'])}")
    for group, found in result.get("corrected", {}).items():
        lines.append(
            f"corrected by the other run, {group}: {_rate(found['corrected'], found['ci95'])}  n {found['n']}"
        )
    if "corrected_by_indicator" in result:
        found = result["corrected_by_indicator"]
        lines.append(
            f"corrected by the other run, of those the indicator found: {_rate(found['corrected'], found['ci95'])}  "
            f"n {found['n']}"
        )
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f} %"


def _rate(value: float | None, interval) -> str:
    return "none" if value is None else f"{value:5.1f} % [{interval[0]:.1f}, {interval[1]:.1f}]"
