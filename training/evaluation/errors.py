"""Wrong answers looked at by a person: drawn by a seed, labelled one by one, counted; what two labellers agree on, and
what another run corrected. The paper did so with 50 (section 6 of arXiv 2302.00923v5)."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcot.training.common import MissingFileError, UserError, drop_cut_line, full_disk_told, read_jsonl
from mmcot.training.evaluation.answers import judged_answer
from mmcot.training.evaluation.hallucination import gold_text, is_hallucinated, share, written_rationale

LABELS = {
    "hallucination": "says what the picture or the text doesn't show",
    "common sense": "lacks or breaks common knowledge: maps, counting, the alphabet",
    "logic": "draws a conclusion that doesn't follow",
    "answer": "the rationale is right, the answer isn't",
    "other": "none of these",
}


def wrong_answers(problems: Mapping[str, Mapping], predictions: Mapping[str, Any]) -> list[str]:
    """The ids of the problems that were answered wrongly, or not at all, in the problems' order."""
    return [i for i, problem in problems.items() if judged_answer(i, problem, predictions[i]) != problem["answer"]]


def draw_errors(
    problems: Mapping[str, Mapping], predictions: Mapping[str, Any], n: int = 50, seed: int = 0
) -> list[str]:
    """The ids of `n` wrong answers, drawn without replacement; all of them where there are fewer.

    The draw depends on the seed and on which answers are wrong, not on their order: a larger `n` begins with a smaller
    one's.

    Raises:
        UserError: nothing is wrong, or `n` is below 1.
    """
    if n < 1:
        raise UserError(f"n={n}: give a whole number of at least 1")
    wrong = sorted(wrong_answers(problems, predictions))
    if not wrong:
        raise UserError("no answer is wrong: there is nothing to draw")
    random.Random(seed).shuffle(wrong)
    return wrong[:n]


def sample_fingerprint(predictions: Mapping[str, Any]) -> str:
    """A hash of a run's predictions, so that labels are never joined to another run's."""
    content = json.dumps(predictions, sort_keys=True, ensure_ascii=False).encode()
    return hashlib.sha256(content).hexdigest()[:16]


class LabelsFile:
    """Labels as JSON Lines: a header (seed, n, labeller, which predictions), then `id` and `label` of each; the last
    one of an id counts. It is written label by label, and gone on with.

    Attributes:
        labels: id → label, of those that are there.

    Raises:
        UserError: the file has labels of another sample, or something else.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any]):
        self.path = Path(path)
        self.labels: dict[str, str] = {}
        begin = self.path.read_bytes()[:9] if self.path.is_file() else b""
        if begin and begin != b'{"header"':  # before its last line is taken for one that was cut off
            raise UserError(f"{self.path}: is no file of labels: name a new file")
        drop_cut_line(self.path)
        if self.path.exists() and self.path.stat().st_size:
            found, self.labels = read_labels(self.path)
            other = [key for key in ("predictions", "seed") if found.get(key) != header[key]]
            if other:
                raise UserError(
                    f"{self.path}: has labels of another sample ({', '.join(other)} differs): name a new file"
                )
            if found.get("labeller") != header.get("labeller"):
                raise UserError(
                    f"{self.path}: is by labeller {found.get('labeller')!r}, not {header.get('labeller')!r}: name a "
                    "file for each labeller"
                )
        else:
            self._append({"header": dict(header)})

    def add(self, id_: str, label: str) -> None:
        """Keeps one label, on disk at once."""
        if label not in LABELS:
            raise UserError(f"there is no label {label!r}: give one of {', '.join(LABELS)}")
        self.labels[id_] = label
        self._append({"id": id_, "label": label})

    def _append(self, record: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with full_disk_told(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_labels(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Header, and id → label.

    Raises:
        MissingFileError, UserError: no such file, or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"there is no file of labels {path}")
    header: dict[str, Any] = {}
    labels: dict[str, str] = {}
    try:
        records = list(read_jsonl(path))
    except ValueError as error:
        raise UserError(f"{path}: is no file of labels ({error})") from None
    for number, record in enumerate(records, start=1):
        if number == 1 and isinstance(record, Mapping) and isinstance(record.get("header"), Mapping):
            header = dict(record["header"])
        elif isinstance(record, Mapping) and isinstance(record.get("id"), str) and record.get("label") in LABELS:
            labels[record["id"]] = record["label"]
        else:
            raise UserError(f"{path}, line {number}: expected an object with 'id' and 'label' ({', '.join(LABELS)})")
    return header, labels


def label_shares(labels: Mapping[str, str]) -> dict[str, Any]:
    """`{"n", "shares": {label: {"n": all, "count", "share": %, "ci95"}}}`."""
    counts = Counter(labels.values())
    shares = {}
    for label in LABELS:
        flags = [True] * counts[label] + [False] * (len(labels) - counts[label])
        shares[label] = {"count": counts[label], **(share(flags, "share") if flags else {})}
    return {"n": len(labels), "shares": shares}


def agreement(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, Any]:
    """What two labellers agree on, of the questions that both labelled.

    Returns:
        `{"n", "agree": %, "kappa": Cohen's (Educational and Psychological Measurement 20, 1960), "table": {first's
        label: {second's: count}}, "only_one": questions that only one labelled, "differ": ids}`. kappa is None where
        chance alone agrees on everything, for then it isn't defined.

    Raises:
        UserError: no question was labelled by both.
    """
    ids = [id_ for id_ in first if id_ in second]
    if not ids:
        raise UserError("the two files have no question in common: both labellers must label the same sample")
    pairs = Counter((first[id_], second[id_]) for id_ in ids)
    table = {a: {b: pairs[a, b] for b in LABELS if pairs[a, b]} for a in LABELS if any(pairs[a, b] for b in LABELS)}
    return {
        "n": len(ids),
        "agree": 100 * sum(count for (a, b), count in pairs.items() if a == b) / len(ids),
        "kappa": cohens_kappa([first[id_] for id_ in ids], [second[id_] for id_ in ids]),
        "table": table,
        "only_one": len(set(first) ^ set(second)),
        "differ": [id_ for id_ in ids if first[id_] != second[id_]],
    }


def cohens_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """(observed - expected agreement) / (1 - expected); None where the expected is 1. scikit-learn has it too, but
    isn't needed for anything else."""
    total = len(first)
    counts = Counter(first), Counter(second)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / total
    expected = sum(counts[0][label] * counts[1][label] for label in counts[0]) / total**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def corrected(
    ids: Iterable[str],
    problems: Mapping[str, Mapping],
    other: Mapping[str, Any],
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Which of a run's errors another run answers rightly, such as one with vision.

    Args:
        ids: the errors.
        other: the other run's predictions.
        labels: id → label; without, the errors are counted as one group.

    Returns:
        `{"all" and each label: {"n", "corrected": %, "ci95"}}`.
    """
    groups: dict[str, list[bool]] = {"all": []}
    for id_ in ids:
        if id_ not in other:
            raise UserError(f"the other run has no prediction of {id_}: both must answer the same questions")
        right = judged_answer(id_, problems[id_], other[id_]) == problems[id_]["answer"]
        groups["all"].append(right)
        if labels and id_ in labels:
            groups.setdefault(labels[id_], []).append(right)
    return {group: share(flags, "corrected") for group, flags in groups.items() if flags}


def automatic_labels(
    ids: Iterable[str], problems: Mapping[str, Mapping], predictions: Mapping[str, Any]
) -> dict[str, bool]:
    """id → whether the indicator finds a hallucination; of problems with a gold solution and a written rationale."""
    found = {}
    for id_ in ids:
        text = written_rationale(predictions[id_])
        if text is not None and problems[id_].get("solution"):
            found[id_] = is_hallucinated(text, gold_text(problems[id_]))
    return found
