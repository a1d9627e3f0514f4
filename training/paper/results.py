"""What a finished row gave, and the tables of several: published beside measured, with intervals and paired tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcot.training.common import read_jsonl, versions
from mmcot.training.evaluation.comparison import compare
from mmcot.training.evaluation.protocol import NOT_STATED
from mmcot.training.evaluation.reading import read_predictions
from mmcot.training.evaluation.runs import holm
from mmcot.training.paper.published import PUBLISHED_LENGTHS, PUBLISHED_ROWS
from mmcot.training.paper.rows import TABLE_TITLES, TABLES, TITLES
from mmcot.training.stages.recipe import Recipe

_SCORES = ("accuracy", "n", "ci95", "rationale", "rationale_n", "protocol", "unparsable", "interval")


def collect_row(recipe: Recipe, result: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What the tables keep of a finished run.

    Args:
        recipe: of the row, whose run lies in its `output_dir`.
        result: the test split's, as `run_recipe` gives it.
        seconds: that the run took in this process; 0 or so where it was finished before.
    """
    folder = Path(recipe.output_dir)
    return {
        **{name: result[name] for name in _SCORES},
        "lengths": rationale_lengths(recipe),
        "recipe": recipe.identity(),
        "predictions": folder / "answer" / "predictions_test.jsonl",
        "seconds": round(seconds, 1),
    }


def rationale_lengths(recipe: Recipe) -> dict[str, Any] | None:
    """Tokens of the texts that a run wrote for the test split, without the end token, against the limit.

    Returns:
        `{"mean", "p95", "longest", "limit", "at_limit": %, "n"}` of the rationales, in one stage of what stands before
        or behind the answer; None for a run that writes none.
    """
    from transformers import AutoTokenizer

    folder = Path(recipe.output_dir)
    stage = "answer" if recipe.one_stage else "rationale"
    texts = [
        (record.get("generated") or {}).get("rationale")
        for record in read_jsonl(folder / stage / "predictions_test.jsonl")
        if "id" in record
    ]
    if all(text is None for text in texts):
        return None
    tokenizer = AutoTokenizer.from_pretrained(folder / stage, trust_remote_code=False)
    limit = recipe.for_stage(stage).max_new_tokens
    counts = sorted(
        len(ids) for ids in tokenizer([text or "" for text in texts], add_special_tokens=False)["input_ids"]
    )
    return {
        "mean": round(sum(counts) / len(counts), 2),
        "p95": counts[min(len(counts) - 1, int(0.95 * len(counts)))],
        "longest": counts[-1],
        "limit": limit,
        "at_limit": round(100 * sum(count >= limit for count in counts) / len(counts), 2),
        "n": len(counts),
    }


def tables_of_results(plan, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The tables of the rows that are there.

    Args:
        plan: the `Plan` of the run.
        measured: row → what `collect_row` gave.

    Returns:
        `source`, `version`, `network`, `overrides`, `finished`; `tables`: table → `title` and `rows`, each with `row`,
        `title`, `published` (`accuracy`, `rouge_l`, `protocol`, `source`; or None), `accuracy` (Avg, %), `ci95`, `n`,
        `rouge_l`, `protocol`, `test` (against the table's first row: `difference`, `ci95`, `only_a`, `only_b`,
        `p_value`, `p_holm`, `same_protocol`; None for that one); `lengths`: row → `rationale_lengths`; `rows`: row →
        all scores, `recipe`, `seconds`; `versions`.
    """
    tables = {
        table: {
            "title": TABLE_TITLES[table],
            "rows": _table_rows(plan, [row for row in TABLES[table][plan.version] if row in measured], measured),
        }
        for table in plan.tables
    }
    return {
        "source": plan.source if plan.source.startswith("embedded") else Path(plan.source).name,
        "version": plan.version,
        "network": plan.network,
        "overrides": [text for text in plan.overrides if "hub_token" not in text],
        "finished": len(measured) == len(plan.recipes),
        "tables": tables,
        "lengths": {row: result["lengths"] for row, result in measured.items() if result["lengths"]},
        "published_lengths": PUBLISHED_LENGTHS,
        "interval": "Wilson, 95 %",
        "test": "McNemar, exact, two-sided; Holm over the rows of a table; difference with Agresti-Min, 95 %",
        "rows": {
            row: {key: value for key, value in result.items() if key not in ("predictions", "lengths")}
            for row, result in measured.items()
        },
        "versions": versions(),
    }


def _table_rows(plan, rows: Sequence[str], measured: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        result, published = measured[row], PUBLISHED_ROWS.get((plan.version, row))
        found.append(
            {
                "row": row,
                "title": TITLES[row],
                "published": None if published is None else dict(vars(published)),
                "accuracy": result["accuracy"]["Avg"],
                "ci95": result["ci95"]["Avg"],
                "n": result["n"]["Avg"],
                "rouge_l": result["rationale"].get("rougeL"),
                "protocol": result["protocol"],
                "test": None,
            }
        )
    if len(rows) > 1:
        for entry, test in zip(found[1:], _tests(plan, rows, measured), strict=True):
            entry["test"] = test
    return found


def _tests(plan, rows: Sequence[str], measured: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each row but the first against the first, on the same questions."""
    from mmcot.training.data.problems import load_problems

    first, *others = rows
    recipe = plan.recipes[first]
    problems = load_problems(
        recipe.data, recipe.test_split, image_rule="none", columns=recipe.columns, allow_outside=recipe.allow_outside
    )
    predictions = {row: read_predictions(measured[row]["predictions"]) for row in rows}
    known = {
        problem["id"]: problem for problem in problems.remove_columns("images") if problem["id"] in predictions[first]
    }
    tests = []
    for row in others:
        test = compare(known, predictions[first], predictions[row], protocol=NOT_STATED)["columns"]["Avg"]
        kept = {key: test[key] for key in ("difference", "ci95", "only_a", "only_b", "p_value")}
        same = measured[first]["protocol"] == measured[row]["protocol"]
        tests.append({"against": first, **kept, "same_protocol": same})
    for test, adjusted in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
        test["p_holm"] = adjusted
    return tests
