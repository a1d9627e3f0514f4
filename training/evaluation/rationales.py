"""Scores of rationales as plain functions of two texts, in [0, 1]: ROUGE-L and BLEU.

The `_original` variant and BLEU agree with what the paper's code computes (amazon-science/mm-cot, `evaluations.py`);
where that code raises, a value is defined here and the docstring says which.
"""

import re
import warnings
from collections.abc import Sequence
from functools import lru_cache


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


@lru_cache(maxsize=1)
def _stemming_tokenizer():
    """rouge_score's tokenizer with a Porter stemmer that remembers the words it has seen (10 times faster)."""
    from nltk.stem.porter import PorterStemmer
    from rouge_score import tokenize

    class Stemmer:
        stem = staticmethod(lru_cache(maxsize=None)(PorterStemmer().stem))

    return lambda text: tokenize.tokenize(text, Stemmer)


@lru_cache(maxsize=1)
def _rouge_scorer():
    from rouge_score.rouge_scorer import RougeScorer

    class Tokenizer:
        tokenize = staticmethod(_stemming_tokenizer())

    return RougeScorer(["rougeL"], tokenizer=Tokenizer())


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L F1 of `rouge_score` with stemming: lower case, letters and digits only, one sequence.

    This is the metric that the original reports while training its rationale stage, and the standard one.
    """
    return _rouge_scorer().score(reference, prediction)["rougeL"].fmeasure


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
    """Unsmoothed BLEU (Papineni et al., 2002) of one pair by NLTK, uniform over orders 1 to `max_order`, by the
    original's tokenisation."""
    from nltk.translate.bleu_score import sentence_bleu

    hypothesis, expected = bleu_tokens(prediction), bleu_tokens(reference.strip())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an order without a match gives about 0, as wanted
        return float(sentence_bleu([expected], hypothesis, weights=(1 / max_order,) * max_order))


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
