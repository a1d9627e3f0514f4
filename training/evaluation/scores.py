"""Scores as plain functions: accuracy in the paper's nine columns, ROUGE-L, BLEU, intervals and a paired test.

Everything here is plain Python on lists and dicts, so that it runs anywhere and can be called from a notebook. Text
scores lie in [0, 1]; `mmcot.training.evaluation.results` turns them into percentages.

The `_original` variants and BLEU agree with what the paper's code computes (amazon-science/mm-cot, `evaluations.py`);
where that code raises, a value is defined here and the docstring says which.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

# The columns of the paper's tables 3 and 4, in their order.
COLUMNS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg")
SUBJECTS = {"NAT": "natural science", "SOC": "social science", "LAN": "language science"}
Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


# ---- accuracy ----------------------------------------------------------------------------------------------------


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
        raise ValueError(f"{len(problems)} problems but {len(correct)} judged answers")
    if not problems:
        raise ValueError("accuracy of no problems is not defined")
    table: dict[str, dict] = {"accuracy": {}, "n": {}, "ci95": {}}
    for column, flags in column_members(problems).items():
        judged = [bool(right) for right, member in zip(correct, flags, strict=True) if member]
        table["accuracy"][column] = 100 * sum(judged) / len(judged)
        table["n"][column] = len(judged)
        table["ci95"][column] = [100 * bound for bound in wilson_interval(sum(judged), len(judged))]
    return table


def wilson_interval(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (JASA 22, 1927), 95 % by default; it never leaves [0, 1]."""
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
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**n)


def paired_difference_interval(only_a: int, only_b: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Interval of the difference B - A of two paired proportions: Wald's with half a pair added to each of the four
    cells (Agresti and Min, Statistics in Medicine 24, 2005), which holds its level for few discordant pairs too."""
    a, b, total = only_a + 0.5, only_b + 0.5, n + 2
    difference = (b - a) / total
    half = z * math.sqrt(a + b - (b - a) ** 2 / total) / total
    return max(-1.0, difference - half), min(1.0, difference + half)


# ---- longest common subsequence ------------------------------------------------------------------------------------


def _lcs_rows(x: Sequence[str], y: Sequence[str]) -> list[int]:
    """The rows of the LCS table as bit vectors (Hyyrö, 2004): one addition a row instead of len(y) comparisons.

    Bit j of row i is 0 where LCS(x[:i], y[:j + 1]) is one more than LCS(x[:i], y[:j]).
    """
    positions: dict[str, int] = {}
    for j, word in enumerate(y):
        positions[word] = positions.get(word, 0) | 1 << j
    full = (1 << len(y)) - 1
    rows = [full]
    for word in x:
        row, hits = rows[-1], positions.get(word, 0)
        rows.append(((row + (row & hits)) | (row & ~hits)) & full)
    return rows


def lcs_length(x: Sequence[str], y: Sequence[str]) -> int:
    """Length of the longest common subsequence of two word lists."""
    return len(y) - _lcs_rows(x, y)[-1].bit_count()


@lru_cache(maxsize=65536)  # lectures repeat: whole sentence pairs come back thousands of times
def _lcs_words(x: tuple[str, ...], y: tuple[str, ...]) -> frozenset[str]:
    """The distinct words of one longest common subsequence; where several exist, the one that walking back from the
    end finds when it shortens y unless only shortening x loses nothing (the choice of the `rouge` package)."""
    rows = _lcs_rows(x, y)

    def length(i: int, j: int) -> int:
        return j - (rows[i] & ((1 << j) - 1)).bit_count()

    words, i, j = set(), len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            words.add(x[i - 1])
            i, j = i - 1, j - 1
        elif length(i - 1, j) > length(i, j - 1):
            i -= 1
        else:
            j -= 1
    return frozenset(words)


# ---- rationales ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _stemming_tokenizer():
    """rouge_score's tokenizer with a Porter stemmer that remembers the words it has seen (10 times faster)."""
    from nltk.stem.porter import PorterStemmer
    from rouge_score import tokenize

    class Stemmer:
        stem = staticmethod(lru_cache(maxsize=None)(PorterStemmer().stem))

    return lambda text: tokenize.tokenize(text, Stemmer)


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L F1 as `rouge_score` computes it with stemming: lower case, letters and digits only, one sequence.

    This is the metric that the original reports while training its rationale stage, and the standard one.
    """
    tokenize = _stemming_tokenizer()
    predicted, expected = tokenize(prediction), tokenize(reference)
    if not predicted or not expected:
        return 0.0
    precision, recall = (lcs_length(expected, predicted) / len(words) for words in (predicted, expected))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def rouge_l_original(prediction: str, reference: str) -> float:
    """ROUGE-L F as the paper's evaluation gets it from PyPI's `rouge` 1.0.1, whose arguments it swaps.

    Sentences end at every full stop, words at white space, case counts. The words of the longest common subsequences
    of all pairs of sentences form one *set*, which is compared with the sets of words of either text. Which common
    subsequence is taken depends on the order of the arguments, hence F does too.

    The package raises where a text has nothing between its full stops: 0 here; and it exceeds Python's recursion limit
    at about 1,000 words: here the value that a higher limit gives.
    """
    first, second = (
        [tuple(" ".join(sentence.split()).split(" ")) for sentence in text.split(".") if sentence]
        for text in (reference.strip(), prediction)  # swapped: the reference stands where a hypothesis belongs
    )
    if not first or not second:
        return 0.0
    common = set().union(*(_lcs_words(ours, theirs) for ours in second for theirs in first))
    precision, recall = (len(common) / len(set().union(*sentences)) for sentences in (first, second))
    return 2 * precision * recall / (precision + recall + 1e-8)


def bleu_tokens(text: str) -> list[str]:
    """Words between white space and full stops: the original's tokenisation for BLEU."""
    return [token for token in re.split(r"\s|\.", text) if token]


def bleu(prediction: str, reference: str, max_order: int) -> float:
    """Unsmoothed BLEU (Papineni et al., 2002) of one pair, uniform over orders 1 to `max_order`, by the original's
    tokenisation. Equals NLTK's `sentence_bleu`, save that an order without a match gives 0 rather than 1e-77."""
    hypothesis, expected = bleu_tokens(prediction), bleu_tokens(reference.strip())
    logs = 0.0
    for order in range(1, max_order + 1):
        found, wanted = (
            Counter(zip(*(tokens[k:] for k in range(order)), strict=False)) for tokens in (hypothesis, expected)
        )
        matches = (found & wanted).total()
        if not matches:
            return 0.0
        logs += math.log(matches / found.total()) / max_order
    return math.exp(min(0.0, 1 - len(expected) / len(hypothesis)) + logs)


def rationale_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Means over the pairs, in [0, 1].

    Returns:
        `rougeL` (`rouge_l`) and, as in the original, `rougeL_original`, `bleu1` and `bleu4`. Pairs whose reference is
        empty are left out of all four, as in the original; pairs whose prediction is empty are left out of
        `rougeL_original` only, as in the original (which then divides by zero if none is left: 0 here), and count 0 in
        the others. An empty dict if no reference has text.
    """
    pairs = [(p, r) for p, r in zip(predictions, references, strict=True) if r.strip()]
    if not pairs:
        return {}
    written = [(p, r) for p, r in pairs if p != ""]
    return {
        "rougeL": sum(rouge_l(p, r) for p, r in pairs) / len(pairs),
        "rougeL_original": sum(rouge_l_original(p, r) for p, r in written) / max(1, len(written)),
        "bleu1": sum(bleu(p, r, 1) for p, r in pairs) / len(pairs),
        "bleu4": sum(bleu(p, r, 4) for p, r in pairs) / len(pairs),
    }
