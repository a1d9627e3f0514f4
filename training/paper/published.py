"""The published results as data, and the comparison of a measured result with one of them.

Accuracy in % on ScienceQA's test split (4,241 questions), in the columns of the paper's table. Sources: [v1] arXiv
2302.00923v1, table 4; [v5] its TMLR version, arXiv 2302.00923v5, table 4; [ScienceQA] the leaderboard at
scienceqa.github.io. What the two protocols mean: docs/protocols.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.evaluation.accuracy import COLUMNS, wilson_interval

# Questions in each column of the test split, which the width of an interval depends on (Lu et al. 2022, table 3 and
# the released problems; the three subjects, and the two grades, add up to all).
TEST_QUESTIONS = dict(zip(COLUMNS, (2252, 889, 1100, 2046, 2017, 1435, 2724, 1517, 4241), strict=True))


@dataclass(frozen=True)
class Published:
    """One row of the table.

    Attributes:
        title: what was evaluated.
        accuracy: column → %.
        protocol: "generated", "teacher_forced", or None where it has no meaning.
        source: where it was published.
        rouge_l: ROUGE-L of the rationales in %, where published.
    """

    title: str
    accuracy: dict[str, float]
    protocol: str | None
    source: str
    rouge_l: float | None = None


def _row(title: str, accuracy: str, protocol: str | None, source: str, rouge_l: float | None = None) -> Published:
    values = dict(zip(COLUMNS, map(float, accuracy.split()), strict=True))
    return Published(title, values, protocol, source, rouge_l)


PUBLISHED = {
    "random": _row("random choice", "40.28 46.13 29.25 47.45 40.08 33.66 39.35 40.67 39.83", None, "[ScienceQA]"),
    "human": _row("human", "90.23 84.97 87.48 89.60 87.50 88.10 91.59 82.42 88.40", None, "[ScienceQA]"),
    "unifiedqa-base": _row(
        "UnifiedQA base, CoT", "71.00 76.04 78.91 66.42 66.53 81.81 77.06 68.82 74.11", None, "[ScienceQA]"
    ),
    "gpt-3.5": _row(
        "GPT-3.5, QCM→ALE, 2-shot",
        "75.44 70.87 78.09 74.68 67.43 79.93 78.23 69.68 75.17",
        "generated",
        "[ScienceQA]",
    ),
    "base-v1": _row(
        "base, UnifiedQA + DETR",
        "87.52 77.17 85.82 87.88 82.90 86.83 84.65 85.37 84.91",
        "teacher_forced",
        "[v1]",
        96.97,
    ),
    "large-v1": _row(
        "large, UnifiedQA + DETR",
        "95.91 82.00 90.82 95.26 88.80 92.89 92.44 90.31 91.68",
        "teacher_forced",
        "[v1]",
    ),
    "base-v5": _row(
        "base, FLAN-Alpaca + ViT, captions",
        "84.06 92.35 82.18 82.75 82.75 84.74 85.79 84.44 85.31",
        "generated",
        "[v5]",
        93.46,
    ),
    "large-v5": _row(
        "large, FLAN-Alpaca + ViT, captions",
        "91.03 93.70 86.64 90.13 88.25 89.48 91.12 89.26 90.45",
        "generated",
        "[v5]",
    ),
}


@dataclass(frozen=True)
class PublishedRow:
    """A row of the tables on what each part is worth: accuracy (Avg) and, of two stages, ROUGE-L, both in %.

    Attributes:
        protocol: of two-stage rows, that of the version's commands; None where the paper doesn't say it.
    """

    accuracy: float
    rouge_l: float | None
    protocol: str | None
    source: str


# (version of the paper, row) -> what was published. Rows are named after their recipes; those of base and large are
# the Avg column above. Sources: [v1] arXiv 2302.00923v1 and [v5] arXiv 2302.00923v5, tables 2 and 3 and the ablations.
_ROWS_V1 = {
    "text-one-stage-qcm-a": (80.40, None),
    "text-one-stage-qcm-lea": (67.86, None),
    "text-one-stage-qcm-ale": (69.77, None),
    "text-only": (70.53, 91.76),
    "captions-only": (71.12, 91.85),
    "one-stage-qcm-a": (82.57, None),
    "backbone-clip": (84.81, None),
    "backbone-resnet": (84.77, None),
    "one-stage-qcm-a-clip": (81.21, None),
    "one-stage-qcm-a-resnet": (80.97, None),
}
_ROWS_V5 = {
    "text-one-stage-qcm-a": (81.63, None),
    "text-one-stage-qcm-lea": (69.32, None),
    "text-one-stage-qcm-ale": (69.68, None),
    "text-only": (78.57, 90.73),
    "captions-only": (79.37, None),
    "one-stage-qcm-a": (82.62, None),
    "backbone-clip": (84.27, None),
    "backbone-detr": (83.16, None),
    "backbone-resnet": (82.86, None),
    "large-one-stage-qcm-a": (84.56, None),
    "large-text-only": (83.97, None),
    # A-OKVQA, multiple choice, val
    "aokvqa": (50.57, None),
    "aokvqa-text-only": (47.86, None),
}


def _published_rows() -> dict[tuple[str, str], PublishedRow]:
    found = {}
    for version, rows in (("v1", _ROWS_V1), ("v5", _ROWS_V5)):
        protocol = PUBLISHED[f"base-{version}"].protocol
        for name, (accuracy, rouge_l) in rows.items():
            # how the first version decoded what has no pictures isn't stated
            unstated = "one-stage" in name or (version == "v1" and name.endswith("-only"))
            own = None if unstated else protocol
            found[version, name] = PublishedRow(accuracy, rouge_l, own, f"[{version}]")
        for name in ("base", "large"):
            whole = PUBLISHED[f"{name}-{version}"]
            found[version, name] = PublishedRow(whole.accuracy["Avg"], whole.rouge_l, whole.protocol, whole.source)
    return found


PUBLISHED_ROWS = _published_rows()
# Tokens of the longest output (rationale and answer), and the limit: nothing was cut off [v1, v5]
PUBLISHED_LENGTHS = {"longest_below": 400, "limit": 512}
# Of 50 wrong answers of the text-only baseline, the share (%) with a hallucinated rationale, and the share (%) of
# those that vision corrected
PUBLISHED_HALLUCINATION = {
    "v1": {"n": 50, "hallucinated": 64.0, "corrected_by_vision": 62.5},
    "v5": {"n": 50, "hallucinated": 56.0, "corrected_by_vision": 60.7},
}


def expected_interval(name: str, column: str, n: int | None = None) -> tuple[float, float]:
    """95 % interval (Wilson, in %) of a published accuracy, at `n` questions or at those of the test split."""
    n = n or TEST_QUESTIONS[column]
    low, high = wilson_interval(PUBLISHED[name].accuracy[column] / 100 * n, n)
    return 100 * low, 100 * high


def compare_with_published(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """A measured result beside a published one.

    Args:
        name: key of `PUBLISHED`.
        result: as `evaluate_predictions` gives it.

    Returns:
        `{"columns": {column: {"published", "interval": 95 % interval of the published value at this n, "measured",
        "n", "difference": measured - published, "agrees": measured lies in it}}, "agrees": whether Avg does,
        "whole_test_split": bool, "protocol": {"published", "measured"}, "source"}`, with the columns that were
        measured, and "rougeL" `{"published", "measured"}` where both are known.

    Raises:
        UserError: the protocols differ; the numbers can't be compared then.
    """
    published = PUBLISHED[name]
    if published.protocol is not None and result["protocol"] != published.protocol:
        raise UserError(
            f"{name} was published with the protocol {published.protocol}, this result has {result['protocol']}: "
            "the two can't be compared"
        )
    columns = {}
    for column in COLUMNS:
        if column in result["accuracy"]:
            measured, n = result["accuracy"][column], result["n"][column]
            low, high = expected_interval(name, column, n)
            columns[column] = {
                "published": published.accuracy[column],
                "interval": [low, high],
                "measured": measured,
                "n": n,
                "difference": measured - published.accuracy[column],
                "agrees": low <= measured <= high,
            }
    comparison = {
        "columns": columns,
        "agrees": columns["Avg"]["agrees"],
        "whole_test_split": all(row["n"] == TEST_QUESTIONS[column] for column, row in columns.items()),
        "protocol": {"published": published.protocol, "measured": result["protocol"]},
        "source": published.source,
    }
    if published.rouge_l is not None and "rougeL" in result["rationale"]:
        comparison["rougeL"] = {"published": published.rouge_l, "measured": result["rationale"]["rougeL"]}
    return comparison


def format_expected(name: str) -> str:
    """The published numbers of a model and their intervals, as text."""
    published = PUBLISHED[name]
    lines = [f"published: {published.title}, {published.source}, protocol {published.protocol}; accuracy in %"]
    lines.append(f"{'':<6}{'':>8}  {'95 % interval':<16}{'n':>6}")
    for column, value in published.accuracy.items():
        low, high = expected_interval(name, column)
        lines.append(f"{column:<6}{value:>8.2f}  [{low:.2f}, {high:.2f}]  {TEST_QUESTIONS[column]:>6,}")
    return "\n".join(lines)


def format_comparison_with_published(name: str, comparison: Mapping[str, Any]) -> str:
    """The result of `compare_with_published` as text."""
    lines = [
        f"{name}, ScienceQA test, protocol {comparison['protocol']['measured']}; accuracy in %",
        f"{'':<6}{'published':>10}  {'95 % interval':<16}{'measured':>9}{'difference':>12}{'n':>7}  within",
    ]
    for column, row in comparison["columns"].items():
        low, high = row["interval"]
        lines.append(
            f"{column:<6}{row['published']:>10.2f}  {f'[{low:.2f}, {high:.2f}]':<16}{row['measured']:>9.2f}"
            f"{row['difference']:>+12.2f}{row['n']:>7,}  {'yes' if row['agrees'] else 'NO'}"
        )
    if "rougeL" in comparison:
        rouge = comparison["rougeL"]
        lines.append(
            f"ROUGE-L of the rationales: published {rouge['published']:.2f}, measured {rouge['measured']:.2f}"
        )
    average = comparison["columns"]["Avg"]
    if not comparison["whole_test_split"]:
        whole = TEST_QUESTIONS["Avg"]
        lines.append(f"measured on {average['n']:,} questions, not on ScienceQA's {whole:,}: the intervals fit that n")
    verdict = "agrees with" if comparison["agrees"] else "does NOT agree with"
    within = sum(row["agrees"] for row in comparison["columns"].values())
    lines.append(
        f"Avg {average['measured']:.2f} {verdict} the published {average['published']:.2f} "
        f"({within} of {len(comparison['columns'])} columns lie within their interval)"
    )
    return "\n".join(lines)
