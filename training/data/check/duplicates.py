"""Questions that occur twice: in train and in test, or with two different answers.

Equal means: the same words in question, context and options, whatever their order, case and punctuation, and the same
images. Nearly equal: four fifths of their word triples in common (found by MinHash), and the same images.
"""

import functools
import re
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from mmcot.training.data.batched import read_column

NEAR = 0.8  # share of word triples (Jaccard)
_HASHES, _ROWS = 48, 4  # 12 bands of 4: a pair of 0.8 is missed in one of 500 cases, one of 0.5 is seen in half
_CANDIDATES = 40  # looked at for one question
_MOST = 30_000  # questions of each side that are compared nearly


def find_duplicates(splits: Mapping[str, Any], near: bool = True) -> dict[str, Any]:
    """Questions of val and test that occur in train too, and questions of two answers.

    Args:
        splits: split → problems.
        near: look for nearly equal ones as well (about 0.3 ms a question).

    Returns:
        {"equal": {split → [(id, id in train), …]}, "near": {split → likewise}, "contradicting": [(id, id), …] of
        equal questions with different answers, of all splits, "compared_near": whether all of them were}.
    """
    splits = dict(sorted(splits.items(), key=lambda item: item[0] != "train"))  # train first
    train = splits.get("train")
    found: dict[str, Any] = {"equal": {}, "near": {}, "contradicting": [], "compared_near": near}
    first: dict[tuple, tuple[str, str | None, str]] = {}  # id, answer, split
    images = _Images(splits)
    by_text: dict[str, dict[tuple, list[int]]] = {}
    for split, problems in splits.items():
        keys = [_text_key(*row) for row in _texts(problems)]
        by_text[split] = defaultdict(list)
        for i, key in enumerate(keys):
            by_text[split][key].append(i)
    # images are hashed only where texts agree
    numbers: dict[tuple, int] = defaultdict(int)
    for groups in by_text.values():
        for key, members in groups.items():
            numbers[key] += len(members)
    for split, groups in by_text.items():
        problems = splits[split]
        ids, answers, choices = problems["id"][:], problems["answer"][:], problems["choices"][:]
        shared = {key: members for key, members in groups.items() if numbers[key] > 1}
        images.read(split, sorted(chain.from_iterable(shared.values())))
        for key, members in shared.items():
            for i in members:
                whole = (key, images.key(split, i))
                answer = None if answers[i] is None else choices[i][answers[i]].strip()
                place = first.get(whole)
                if place is None:
                    first[whole] = (ids[i], answer, split)
                    continue
                if answer is not None and place[1] is not None and place[1] != answer:
                    found["contradicting"].append((ids[i], place[0]))
                if place[2] == "train" and split != "train":
                    found["equal"].setdefault(split, []).append((ids[i], place[0]))
    if near and train is not None:
        _find_near(splits, images, found)
    return found


def _find_near(splits: Mapping[str, Any], images: "_Images", found: dict[str, Any]) -> None:
    train = splits["train"]
    found["compared_near"] = all(len(problems) <= _MOST for problems in splits.values())
    kept = [_triples(*row) for row in _texts(train.select(range(min(_MOST, len(train)))))]
    buckets: dict[tuple, list[int]] = defaultdict(list)
    for i, triples in enumerate(kept):
        for band in _bands(triples):
            if len(buckets[band]) < _CANDIDATES:
                buckets[band].append(i)
    ids = train["id"][:]
    for split, problems in splits.items():
        if split == "train":
            continue
        equal = {id_ for id_, _ in found["equal"].get(split, [])}
        own = problems["id"][:]
        for i, row in enumerate(_texts(problems.select(range(min(_MOST, len(problems)))))):
            if own[i] in equal:
                continue
            triples = _triples(*row)
            candidates = list(dict.fromkeys(j for band in _bands(triples) for j in buckets.get(band, ())))
            for j in candidates[:_CANDIDATES]:
                shared = len(triples & kept[j])
                if shared < NEAR * len(triples | kept[j]):
                    continue
                if images.key(split, i) == images.key("train", j):
                    found["near"].setdefault(split, []).append((own[i], ids[j]))
                    break


class _Images:
    """Hashes of questions' images, read when they are asked for."""

    def __init__(self, splits: Mapping[str, Any]):
        self.columns = {split: problems.select_columns(["images"]) for split, problems in splits.items()}
        self.known: dict[tuple[str, int], tuple] = {}

    def read(self, split: str, rows: list[int]) -> None:
        """Hashes those of many questions, which takes less time than one by one."""
        found = read_column(self.columns[split].select(rows), "images")
        self.known |= {(split, i): self._hashes(images, split, i) for i, images in zip(rows, found, strict=True)}

    def key(self, split: str, i: int) -> tuple:
        if (split, i) not in self.known:
            self.known[split, i] = self._hashes(self.columns[split][i]["images"], split, i)
        return self.known[split, i]

    @staticmethod
    def _hashes(images, split: str, i: int) -> tuple:
        from mmcot.training.common import MissingFileError
        from mmcot.training.data.fingerprint import image_hash

        try:
            return tuple(image_hash(image) for image in images)
        except MissingFileError:
            return "missing", split, i


_WORD = re.compile(r"\w+")


def _texts(problems):
    names = ("question", "context", "choices")
    return zip(*(problems[name][:] for name in names), strict=True)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold()) or [text.strip()]


def _text_key(question: str, context: str | None, choices: Sequence[str]) -> tuple:
    # options that differ in signs alone ("Is it here?" and "Is it here.") are different options
    options = tuple(sorted(" ".join(choice.casefold().split()) for choice in choices))
    return " ".join(_words(question)), " ".join(_words(context or "")), options


def _triples(question: str, context: str | None, choices: Sequence[str]) -> frozenset[int]:
    words = [word for text in (question, context or "", *sorted(choices)) for word in _words(text)]
    return frozenset(
        zlib.crc32(" ".join(words[i : i + 3]).encode("utf-8", "replace")) for i in range(max(1, len(words) - 2))
    )


def _bands(triples: frozenset[int]) -> list[tuple]:
    import numpy as np

    factors, shifts = _factors()
    values = np.fromiter(triples, dtype=np.uint64, count=len(triples))
    least = ((values[:, None] * factors + shifts) % np.uint64(4294967311)).min(0)
    return [(i, *least[i : i + _ROWS].tolist()) for i in range(0, _HASHES, _ROWS)]


@functools.cache
def _factors():
    import numpy as np

    generator = np.random.default_rng(0)
    return tuple(generator.integers(1, 2**31, (2, _HASHES), dtype=np.uint64))
