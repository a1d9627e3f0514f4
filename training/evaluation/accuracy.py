"""Accuracy in the paper's nine columns, with intervals, and the paired test of two runs."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from mmcot.training.common import UserError

# The columns of the paper's tables 3 and 4, in their order.
COLUMNS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg")
SUBJECTS = {"NAT": "natural science", "SOC": "social science", "LAN": "language science"}
Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def has_text(problem: Mapping) -> bool | None:
    """Whether a problem has a text context; None if the record does not say."""
    for key in ("has_hint", "context", "hint"):
        if problem.get(key) is not None:
            return bool(problem[key])
    return False if "context" in problem or "hint" in problem else None


def has_image(problem: Mapping) -> bool | None:
    """Whether a problem has an image; None if the record does not say.

    As in the original, ScienceQA's `image` field decides: a question whose choices are images has none by this count.
    """
    for key in ("has_image", "image", "images"):
        if key in problem:
            return bool(problem[key])
    return None


def grade_number(problem: Mapping) -> int | None:
    """The school grade, 1 to 12, of `grade7`, `"7"` or 7; None if the record does not say."""
    match = re.fullmatch(r"(?:grade)?\s*(\d{1,2})", str(problem.get("grade") or "").strip().lower())
    return int(match[1]) if match else None


def column_members(problems: Iterable[Mapping]) -> dict[str, list[bool]]:
    """Which problems belong to which column of the paper's table.

    NAT, SOC and LAN go by `subject`, TXT by a non-empty context, IMG by an image, NO by neither (TXT and IMG overlap),
    G1-6 and G7-12 by `grade`. A column is left out where the field it needs is missing (subject and grade: in any
    problem; context and image: in all problems, since a record may leave out what it has not), or where it is empty.

    Returns:
        `{column: one flag a problem}`, columns in the paper's order, `Avg` always last and all True.
    """
    problems = list(problems)
    members: dict[str, list[bool]] = {}
    subjects = [problem.get("subject") for problem in problems]
    if all(subjects):
        members |= {column: [subject == name for subject in subjects] for column, name in SUBJECTS.items()}
    text, image = ([known(problem) for problem in problems] for known in (has_text, has_image))
    text_known, image_known = (any(flag is not None for flag in flags) for flags in (text, image))
    if text_known:
        members["TXT"] = [bool(flag) for flag in text]
    if image_known:
        members["IMG"] = [bool(flag) for flag in image]
    if text_known and image_known:
        members["NO"] = [not (t or i) for t, i in zip(text, image, strict=True)]
    grades = [grade_number(problem) for problem in problems]
    if None not in grades:
        members["G1-6"] = [1 <= grade <= 6 for grade in grades]
        members["G7-12"] = [7 <= grade <= 12 for grade in grades]
    return {column: flags for column, flags in members.items() if any(flags)} | {"Avg": [True] * len(problems)}


def accuracy_table(problems: Iterable[Mapping], correct: Sequence[bool]) -> dict[str, dict]:
    """Accuracy in the paper's columns.

    Args:
        problems: one record a question (see `column_members` for the fields that are read).
        correct: whether each question was answered correctly, in the same order.

    Returns:
        `{"accuracy": {column: percent}, "n": {column: questions}, "ci95": {column: [low, high] percent}}`, the
        intervals being Wilson's.
    """
    problems = list(problems)
    if len(problems) != len(correct):
        raise UserError(f"{len(problems)} problems but {len(correct)} judged answers")
    if not problems:
        raise UserError("accuracy of no problems is not defined")
    table: dict[str, dict] = {"accuracy": {}, "n": {}, "ci95": {}}
    for column, flags in column_members(problems).items():
        judged = [bool(right) for right, member in zip(correct, flags, strict=True) if member]
        table["accuracy"][column] = 100 * sum(judged) / len(judged)
        table["n"][column] = len(judged)
        table["ci95"][column] = [100 * bound for bound in wilson_interval(sum(judged), len(judged))]
    return table


def wilson_interval(successes: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (JASA 22, 1927), 95 % by default; it never leaves [0, 1].

    Own code: published accuracies are rounded and give a fraction of a success, which scipy refuses.
    """
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p-value of McNemar's exact test.

    Args:
        only_a, only_b: the discordant pairs: questions that only A, or only B, answered correctly. Under the null
            hypothesis either kind is equally likely, so the smaller count is binomial(only_a + only_b, 1/2).
    """
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def paired_difference_interval(only_a: int, only_b: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Interval of the difference B - A of two paired proportions: Wald's with half a pair added to each of the four
    cells (Agresti and Min, Statistics in Medicine 24, 2005), which holds its level for few discordant pairs too, and
    which neither scipy nor statsmodels has."""
    a, b, total = only_a + 0.5, only_b + 0.5, n + 2
    difference = (b - a) / total
    half = z * math.sqrt(a + b - (b - a) ** 2 / total) / total
    return max(-1.0, difference - half), min(1.0, difference + half)
