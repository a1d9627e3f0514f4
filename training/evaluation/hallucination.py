"""An automatic indicator of hallucinated rationales: statements that contradict the gold lecture and solution.

Words alone, no network: each sentence of a rationale is laid beside the gold sentence that it is most like. The two
contradict each other where they say the same of something else: one part replaced by other words, other numbers, a
negation more or less, or the same words in another order. A sentence that is like none is not supported, which is
another thing. Synonyms count as other words. `validate_indicator` tells how far all this can be trusted, on questions
whose truth is known.
"""

import re
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

from mmcot.training.evaluation.accuracy import wilson_interval

LIKENESS = 0.5  # share of common words from which two sentences are about the same
_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)?")
# a new line is "\\n" in targets, of which T5 writes the "n" alone
_SENTENCE_END = re.compile(r"(?<=[.!?])(?:\s+|n(?=[A-Z]))|\\n|\n")
_NEGATIONS = frozenset(
    ("not", "no", "never", "neither", "nor", "none", "cannot", "can't", "don't", "doesn't", "isn't")
)
# words that say nothing by themselves; those of place and size (above, left, more) do
_LITTLE = """
a an the is are was were be been being am has have had do does did will would can could may might must
shall should of to in on at by for with and or so as that this these those it its they their them he she
his her which who what there here then than thus therefore also because since if but from into about
between both each other another picture image shows show shown see seen solution you we i your our
"""
_FUNCTION_WORDS = frozenset(re.findall(r"\w+", _LITTLE))


def sentences(text: str) -> list[str]:
    """The sentences of a rationale, without its leading "Solution:"."""
    text = text.strip().removeprefix("Solution:")
    return [part.strip() for part in _SENTENCE_END.split(text) if _WORD.search(part)]


def contradictions(rationale: str, gold: str) -> list[dict[str, str]]:
    """The statements of a rationale that contradict the gold text.

    Args:
        rationale: what a model wrote.
        gold: lecture and solution, or the solution.

    Returns:
        `{"statement", "gold": the sentence that it contradicts, "difference": "words → words"}` of each.
    """
    references = [(sentence, _words(sentence)) for sentence in sentences(gold)]
    found = []
    for statement in sentences(rationale):
        words = _words(statement)
        likeness, best = max(((_ratio(words, other), i) for i, (_, other) in enumerate(references)), default=(0, 0))
        if likeness < LIKENESS or likeness == 1:
            continue
        difference = _difference(references[best][1], words)
        if difference is not None:
            found.append({"statement": statement, "gold": references[best][0], "difference": difference})
    return found


def is_hallucinated(rationale: str, gold: str) -> bool:
    """Whether the indicator finds a contradiction."""
    return bool(contradictions(rationale, gold))


def _words(sentence: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(sentence))


@lru_cache(maxsize=65536)  # sentences of lectures repeat
def _ratio(words: tuple[str, ...], other: tuple[str, ...]) -> float:
    return SequenceMatcher(None, other, words, autojunk=False).ratio()


@lru_cache(maxsize=1)
def _stem():
    from nltk.stem.porter import PorterStemmer

    return lru_cache(maxsize=None)(PorterStemmer().stem)


def _difference(gold: tuple[str, ...], words: tuple[str, ...]) -> str | None:
    """What makes two sentences of like words contradict each other, or None."""
    replaced, moved = [], [[], []]
    for kind, i, j, k, m in SequenceMatcher(None, gold, words, autojunk=False).get_opcodes():
        was, now = _content(gold[i:j]), _content(words[k:m])
        if kind == "equal":
            continue
        if {*gold[i:j]} & _NEGATIONS ^ {*words[k:m]} & _NEGATIONS:
            return f"{' '.join(gold[i:j]) or '-'} → {' '.join(words[k:m]) or '-'}"
        if kind == "replace" and was and now and not _same(was, now):
            replaced.append((was, now))
        else:
            moved[0] += was
            moved[1] += now
    if replaced:
        numbers = all(word[0].isdigit() for was, now in replaced for word in (*was, *now))
        # several other parts: a statement about something else, unless only the numbers differ
        if len(replaced) == 1 or numbers or _is_exchange(replaced):
            return ", ".join(f"{' '.join(was)} → {' '.join(now)}" for was, now in replaced)
        return None
    if moved[0] and sorted(map(_stem(), moved[0])) == sorted(map(_stem(), moved[1])):
        return f"another order: {' '.join(moved[0])}"
    return None


def _is_exchange(replaced: list[tuple[list[str], list[str]]]) -> bool:
    """Whether the parts have changed places: from A to B, from B to A."""
    was, now = ([word for pair in replaced for word in pair[side]] for side in (0, 1))
    return sorted(was) == sorted(now)


def _content(words: Iterable[str]) -> list[str]:
    return [word for word in words if word not in _FUNCTION_WORDS]


def _same(was: list[str], now: list[str]) -> bool:
    """Whether the words differ in their endings alone, or one part says more than the other and nothing else."""
    first, second = ({_stem()(word) for word in words} for words in (was, now))
    return first <= second or second <= first


def gold_text(problem: Mapping[str, Any]) -> str:
    """Lecture and solution: what a rationale of any format may say."""
    return " ".join(text for text in (problem.get("lecture"), problem.get("solution")) if text)


def hallucination_rates(problems: Mapping[str, Mapping], predictions: Mapping[str, Any]) -> dict[str, Any]:
    """The indicator over a run's predictions, of problems that have a gold solution.

    Returns:
        `{"all" | "right" | "wrong" (by answer): {"n", "hallucinated": %, "ci95"}}`; empty groups are left out.
    """
    from mmcot.training.evaluation.answers import judged_answer

    flags: dict[str, list[bool]] = {"all": [], "right": [], "wrong": []}
    for id_, problem in problems.items():
        text = written_rationale(predictions[id_])
        if not problem.get("solution") or text is None:
            continue
        found = is_hallucinated(text, gold_text(problem))
        right = judged_answer(id_, problem, predictions[id_]) == problem["answer"]
        flags["all"].append(found)
        flags["right" if right else "wrong"].append(found)
    return {group: share(some, "hallucinated") for group, some in flags.items() if some}


def written_rationale(prediction: Any) -> str | None:
    """The rationale of a prediction, as it was written where that is kept."""
    if not isinstance(prediction, Mapping):
        return None
    generated = prediction.get("generated")
    raw = generated.get("rationale") if isinstance(generated, Mapping) else None
    return prediction.get("rationale") if raw is None else raw


def share(flags: list[bool], name: str) -> dict[str, Any]:
    """`{"n", name: % of true flags, "ci95"}`."""
    low, high = wilson_interval(sum(flags), len(flags))
    return {"n": len(flags), name: 100 * sum(flags) / len(flags), "ci95": [100 * low, 100 * high]}


def validate_indicator(cases: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How far the indicator can be trusted.

    Args:
        cases: records with `rationale`, `gold` and `hallucinated` (the truth), and `kind`, how it came about.

    Returns:
        `{"n", "hallucinated": how many are, "precision", "recall", "f1" in %, their "ci95", "kinds": {kind: {"n",
        "hallucinated": the truth, "found": %}}}`; precision None where nothing was found.
    """
    counts = {(truth, found): 0 for truth in (True, False) for found in (True, False)}
    kinds: dict[str, dict[str, Any]] = {}
    for case in cases:
        truth, found = bool(case["hallucinated"]), is_hallucinated(case["rationale"], case["gold"])
        counts[truth, found] += 1
        kind = kinds.setdefault(case.get("kind", "all"), {"n": 0, "hallucinated": truth, "found": 0})
        kind["n"] += 1
        kind["found"] += found
    true, said = counts[True, True], counts[True, True] + counts[False, True]
    there = counts[True, True] + counts[True, False]
    rates = {
        name: None if not total else 100 * true / total for name, total in (("precision", said), ("recall", there))
    }
    intervals = {
        name: None if not total else [100 * bound for bound in wilson_interval(true, total)]
        for name, total in (("precision", said), ("recall", there))
    }
    return {
        "n": sum(counts.values()),
        "hallucinated": there,
        **rates,
        "f1": 200 * true / (said + there) if said + there else None,
        "ci95": intervals,
        "kinds": {name: {**kind, "found": 100 * kind["found"] / kind["n"]} for name, kind in kinds.items()},
    }
