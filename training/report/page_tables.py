"""A report's tables as (head, rows) of texts, for the page and for Markdown."""

from collections.abc import Mapping
from typing import Any

from mmcot.training.evaluation.accuracy import COLUMNS

Table = tuple[list[str], list[list[str]]]
SCORES = {"rougeL": "ROUGE-L", "rougeL_original": "ROUGE-L (original)", "bleu1": "BLEU-1", "bleu4": "BLEU-4"}


def accuracy_table(figures: Mapping[str, Any]) -> Table:
    """Runs × the paper's columns, with half the width of the intervals, n and protocol."""
    results = {name: run["result"] for name, run in figures["runs"].items()}
    columns = [column for column in COLUMNS if any(column in result["accuracy"] for result in results.values())]
    rows = []
    for name, result in results.items():
        cells = []
        for column in columns:
            if column in result["accuracy"]:
                low, high = result["ci95"][column]
                cells.append(f"{result['accuracy'][column]:.2f} ±{(high - low) / 2:.2f}")
            else:
                cells.append("")
        rows.append([name, result["protocol"], *cells])
    first = next(iter(results.values()))
    rows.append(["questions", "", *(f"{first['n'].get(column, ''):,}" for column in columns)])
    return ["run", "protocol", *columns], rows


def rationale_table(figures: Mapping[str, Any]) -> Table | None:
    """Scores of the written rationales; None where no run has any."""
    runs = {name: run for name, run in figures["runs"].items() if run["result"]["rationale"]}
    if not runs:
        return None
    keys = list(dict.fromkeys(key for run in runs.values() for key in run["result"]["rationale"]))
    rows = []
    for name, run in runs.items():
        result, quality = run["result"], run["rationales"]
        rows.append(
            [name, f"{result['rationale_n']:,}", *(f"{result['rationale'].get(key, 0):.2f}" for key in keys)]
            + [_number(quality and quality[key]) for key in ("exact", "right", "wrong")]
        )
    head = ["run", "n", *(SCORES.get(key, key) for key in keys), "word for word %"]
    return [*head, "ROUGE-L, right answers", "wrong ones"], rows


def by_table(figures: Mapping[str, Any], field: str) -> Table | None:
    """Accuracy for each value of a field; None where no question has it."""
    shares = {name: run["by"][field] for name, run in figures["runs"].items()}
    values = list(dict.fromkeys(value for own in shares.values() for value in own))
    if len(values) < 2:
        return None
    rows = []
    for value in values:
        entries = [own.get(value) for own in shares.values()]
        n = next(entry["n"] for entry in entries if entry)
        cells = [f"{e['accuracy']:.1f} [{e['ci95'][0]:.1f}, {e['ci95'][1]:.1f}]" if e else "" for e in entries]
        rows.append([value, f"{n:,}", *cells])
    return [field, "n", *shares], rows


def calibration_table(figures: Mapping[str, Any]) -> Table | None:
    """Confidence, accuracy and calibration error; None where no run has scores."""
    rows = [
        [name, f"{found['n']:,}", *(f"{found[key]:.1f}" for key in ("confidence", "accuracy", "ece"))]
        + [f"{found['brier']:.3f}"]
        for name, run in figures["runs"].items()
        if (found := run["calibration"])
    ]
    head = ["run", "n", "mean confidence %", "accuracy %", "calibration error", "Brier score"]
    return (head, rows) if rows else None


def letters_table(figures: Mapping[str, Any]) -> Table:
    """How often each letter is right, and is given."""
    confusions = {name: run["confusion"] for name, run in figures["runs"].items()}
    letters = max((found["letters"] for found in confusions.values()), key=len)
    first = next(iter(confusions.values()))
    rows = [["right", *(f"{first['right'].get(letter, 0):,}" for letter in letters), ""]]
    for name, found in confusions.items():
        given = [f"{found['given'].get(letter, 0):,}" for letter in letters]
        rows.append([f"given by {name}", *given, f"{sum(found['none']):,}"])
    return ["", *letters, "no choice named"], rows


def comparison_table(columns: Mapping[str, Mapping]) -> Table:
    """A paired comparison (see `compare`) as the paper's columns, one a line."""
    rows = []
    for column, row in columns.items():
        low, high = row["ci95"]
        rows.append(
            [column, f"{row['n']:,}", f"{row['accuracy_a']:.2f}", f"{row['accuracy_b']:.2f}"]
            + [f"{row['difference']:+.2f}", f"[{low:+.2f}, {high:+.2f}]", f"{row['only_a']:,}", f"{row['only_b']:,}"]
            + [f"{row['p_value']:.3g}"]
        )
    return ["column", "n", "first %", "other %", "difference", "95 % interval", "only first", "only other", "p"], rows


def differing_table(figures: Mapping[str, Any]) -> Table | None:
    """Questions that some runs get right and others wrong."""
    if not figures["differing"]:
        return None
    names = list(figures["runs"])
    rows = []
    for item in figures["differing"]:
        letters = ["-" if item["answers"][name] is None else chr(65 + item["answers"][name]) for name in names]
        rows.append([item["id"], " ".join(item["question"].split())[:90], chr(65 + item["answer"]), *letters])
    return ["id", "question", "right", *names], rows


def training_table(figures: Mapping[str, Any]) -> Table | None:
    """Steps and time of each stage; None where nothing is known of a training."""
    rows = []
    for name, run in figures["runs"].items():
        for stage, history in run["histories"].items():
            steps = max((entry["step"] for entry in history), default=None)
            seconds = run["seconds"].get(stage)
            rows.append(
                [name, stage, "" if steps is None else f"{steps:,}", "" if seconds is None else f"{seconds:,.0f}"]
            )
    return (["run", "stage", "last logged step", "seconds"], rows) if rows else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
