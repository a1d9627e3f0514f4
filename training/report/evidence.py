"""What other commands measured of a run's model, as sections of its report: files of `mmcot probe`, of
`mmcot predict --save-gate` and of `mmcot errors --json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcot.training.common import MissingFileError, UserError
from mmcot.training.report.page_tables import Table

MOST_SKILLS = 40
# a file's kind by a key that no other kind has
KINDS = {"probes": "probes", "stages": "gate", "drawn": "errors"}
NAMES = {
    "blank": "without the picture",
    "other-picture": "another question's picture",
    "shuffled": "options in another order",
}


def read_evidence(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The files' contents, each with its `kind`, "probes", "gate" or "errors", and `file`.

    Raises:
        MissingFileError, UserError: no such file, or one of another kind.
    """
    found = []
    for path in map(Path, paths):
        if not path.is_file():
            raise MissingFileError(f"there is no file {path}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: is not JSON ({error})") from None
        kind = next((KINDS[key] for key in KINDS if isinstance(content, dict) and key in content), None)
        if kind is None:
            raise UserError(
                f"{path}: expected what `mmcot probe`, `mmcot predict --save-gate` or `mmcot errors --json` writes"
            )
        one = {"kind": kind, "file": path.name, **content}
        try:
            evidence_texts(one)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError):
            raise UserError(f"{path}: is damaged: write it anew") from None
        found.append(one)
    return found


def evidence_texts(found: Mapping[str, Any]) -> tuple[str, str, list[Table]]:
    """Title, text and tables of one file's section."""
    return {"probes": _probes, "gate": _gate, "errors": _errors}[found["kind"]](found)


def _probes(found: Mapping[str, Any]) -> tuple[str, str, list[Table]]:
    head = ["asked again with", "n", "accuracy", "before", "same answer", "same rationale"]
    rows = []
    for name, probe in found["probes"].items():
        parts = [(NAMES[name], probe)] if name in NAMES else []
        if name == "truncated":
            parts = [(f"the first {kept} % of its rationale's words", one) for kept, one in probe.items()]
        for title, one in parts:
            rationale = _rate(one["same_rationale"]) if "same_rationale" in one else ""
            numbers = [one["accuracy"]["n"], _rate(one["accuracy"]), _rate(one["before"])]
            rows.append([title, *map(str, numbers), _rate(one["same_answer"]), rationale])
    edited = found["probes"].get("edited") or {}
    text = "Does the answer follow from the rationale, and the rationale from the picture? In %, with 95 % intervals."
    if "follows" in edited:
        text += (
            f" Where the rationale is made to name another option ({edited['follows']['n']:,} questions), the answer "
            f"follows it in {_rate(edited['follows'])} % and stays in {_rate(edited['stays'])} %."
        )
    return f"Faithfulness: {_model(found)}", text, [(head, rows)]


def _gate(found: Mapping[str, Any]) -> tuple[str, str, list[Table]]:
    tables = []
    for stage, one in found["stages"].items():
        groups = {
            name.replace("_", " "): one[name] for name in ("all", "with_picture", "without_picture") if name in one
        }
        skills = sorted(one["skills"].items(), key=lambda item: -item[1]["questions"])[:MOST_SKILLS]
        head = [f"{stage} stage", "questions", "mean", "5 %", "median", "95 %"]
        rows = [
            [
                name,
                f"{row['questions']:,}",
                f"{row['mean']:.3f}",
                *(f"{row['quantiles'][q]:.3f}" for q in ("5", "50", "95")),
            ]
            for name, row in [*groups.items(), *skills]
        ]
        tables.append((head, rows))
    text = (
        "The gate of the fusion: which share of a token's state comes from the picture, over all source tokens. "
        "Without a picture it isn't 0, for the zero patch has a projection of its own."
    )
    return f"Gate: {_model(found)}", text, tables


def _errors(found: Mapping[str, Any]) -> tuple[str, str, list[Table]]:
    rows = [
        [f"contradict the gold solution, {group} answers (indicator)", f"{one['n']:,}", _rate(one, "hallucinated")]
        for group, one in found["indicator"].items()
    ]
    for label, one in found.get("labels", {}).get("shares", {}).items():
        if "share" in one:
            rows.append([f"labelled: {label}", f"{one['n']:,}", _rate(one, "share")])
    for group, one in found.get("corrected", {}).items():
        rows.append([f"corrected by another run: {group}", f"{one['n']:,}", _rate(one, "corrected")])
    text = f"{found['wrong']:,} of {found['questions']:,} answers are wrong, {len(found['drawn'])} were drawn."
    if "agreement" in found:
        kappa = found["agreement"]["kappa"]
        said = "not defined" if kappa is None else f"{kappa:.2f}"
        text += f" Two labellers agree on {found['agreement']['agree']:.0f} % (Cohen's kappa {said})."
    return f"Errors: {_model(found)}", text, [(["", "n", "% [95 % interval]"], rows)]


def _model(found: Mapping[str, Any]) -> str:
    return str(found.get("model") or found["file"])


def _rate(row: Mapping[str, Any], name: str = "percent") -> str:
    return f"{row[name]:.1f} [{row['ci95'][0]:.1f}, {row['ci95'][1]:.1f}]"
