"""What a data source really is: ScienceQA whole, a part of it, generated questions, or someone's own.

Cards say it, and carry its licence. A name proves nothing (any folder may hold a problems.json), so the content does:
the ids of the official splits, and ScienceQA's own lectures.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmcot.training.data.batched import read_records
from mmcot.training.data.files import download, hub_name, locate, read_metadata


class _Split(NamedTuple):
    size: int
    with_image: int
    ids: str  # hash of the sorted ids


# Of pid_splits.json and captions.json of https://github.com/lupantech/ScienceQA.
SCIENCEQA = {
    "train": _Split(12726, 6218, "f789459da851920e5796d718d3311543"),
    "val": _Split(4241, 2097, "f3920e6229caf0f457618d4f6e515c75"),
    "test": _Split(4241, 2017, "d8c0f869a41f4547d789734fcd02c752"),
}
SCIENCEQA_LICENSE = "cc-by-nc-sa-4.0"
_HUB_NAMES = {"derek-thomas/ScienceQA", "lmms-lab/ScienceQA"}
# Hashes (8 digits each) of lectures of ScienceQA; most of its 255 recur in every split and every larger part.
_LECTURES = (
    "00063c970539e5240b5f1dcf0d8b4c180d9558b311482f4713976cf8143afaaa1561f89915c43b43195c5aa71973d3fd19ca27d7"
    "1a1c425a1ac9bdf81e1074d121ba5f392296d35722ae6e382332bb6223bb5bcc23e9e5e3255573d82754d0a52791ee88294384df"
    "2a3285bd2a79c9b42bf0e1482d621a1a2f700bc730752e5b3361a12535871c47367e0d7337a8929837fe855e38ae964138d40645"
    "394627c53be5fe3f3e87dffc3fdae78440f8692241ab9491436b8c194469054645c5cae24641bdb6465cc1f9477515a747e5a028"
    "47f324fc4b78441c4bdfcec84db085044eb6292c4fc63c5b52bef79b5793312e59704ad75bc171a45de01aea608606a260ecbcb3"
    "60f1789761587daa616c7d50647f02ff6678220267d1ff6f67e52c41681fc3df68864b1368d1a5db6942addf69ad94606a060daf"
    "6a0b67606c41bfa46c4910d36db1fc2a7228e2fb7272799b73ad39447723f78e79a656557a62cfeb7e459ccc8185b7ed83d3279d"
    "8537d77c8675aa7c876983398819da0a8be092988d9adbc5922c8aac95c5bd1397ffbb0a9875aad09f82a2e6a26da0e8a31d43ec"
    "a41d8d0ca46a1614a48b56a3a5a69306a7ccd5efa924258baa3a8b29aa71f761aa8b2292ab0d5389aeb55fceb05207d4b19823b7"
    "b2c890dcb3526350b5cae73cb847725cb904af9abbc64a02bbeb2ab0bdcd4adac0147dafc0de5a30c1ac30a4c3cfe9d5c7d4ecc3"
    "c8420c4bceb4c606d08e42f7d13ff7bcd2378de3d3439018d3bb0121d42afacdd4702dead80e5c0fd910ba1bd925ed4cda1d2a77"
    "daf2fd49dc0e050ddd752f7dddbccf61ddc7e559de44a3f2df4c84e3e069ed48e1b35b14e47e288ce49ebd9ce49ed768e67fc553"
    "e76559e0e8af5986e9fa83cdea134886eccc5e36ecdee0e1ed4603faee8579e9ef02d82defb7cd6df03b9896f0db60c5f3a5eab6"
    "f40e8ad5f559011bf96c7f44fab08c90fea4d709fea833c8"
)


def describe_source(
    source: str | os.PathLike, problems: Any, *, license: str | None = None, name: str | None = None
) -> dict[str, Any]:
    """What these problems are, to be said in a card or beside a figure.

    ScienceQA is only what holds all problems of the splits it has: by their ids; or, for the Hub's copies, which have
    none, by their numbers and ScienceQA's lectures. Everything else is a part of it, or own data.

    Args:
        source: what was loaded (see `load_problems`); nothing of its path but the last part is given out.
        problems: the records in use: a `datasets.Dataset` or iterable of records, or {split: such}.
        license: of the data, as the user says it; wins over what is known of the source.
        name: likewise.

    Returns:
        A dict of

        - kind: "scienceqa", "embedded" (generated questions) or "own";
        - name: "ScienceQA", "a subset of ScienceQA (851 of 16,967 questions)", "generated questions (toy data set of
          mmcot)", the name on the Hub, or that of the file or folder;
        - id: name on the Hub, else None;
        - benchmark: whether these are whole official splits of ScienceQA;
        - complete: False where they are a part of ScienceQA; True otherwise;
        - license: as the Hub writes it ("cc-by-nc-sa-4.0"), or None where nobody says it;
        - sizes: {split: number of problems}.
    """
    text, hub = str(source), hub_name(source)
    seen = _Seen(problems)
    found: dict[str, Any] = {"id": hub, "benchmark": False, "complete": True, "license": None, "sizes": seen.sizes}
    if text.partition(":")[0] == "embedded":
        found |= {"kind": "embedded", "license": "apache-2.0"}
        found["name"] = "generated questions (toy data set of mmcot)"
    elif hub in _HUB_NAMES or seen.lectures_are_scienceqas():
        found |= {"kind": "scienceqa", "license": SCIENCEQA_LICENSE, "benchmark": seen.is_benchmark()}
        found["id"] = hub or "derek-thomas/ScienceQA"
        found["complete"] = found["benchmark"]
        total = sum(SCIENCEQA[split].size for split in seen.sizes if split in SCIENCEQA)
        number = sum(seen.sizes.values())
        share = f"{number:,} of {total:,} questions" if number < total else f"{number:,} questions, not its own splits"
        found["name"] = "ScienceQA" if found["benchmark"] else f"a subset of ScienceQA ({share})"
    else:
        found |= {"kind": "own", "name": hub or Path(text).name or text}
        found["license"] = _license_of(source, hub)
    return found | ({"license": license} if license else {}) | ({"name": name} if name else {})


class _Seen:
    """What tells one data set from another, gathered in one pass over the problems."""

    def __init__(self, problems: Any):
        self.sizes: dict[str, int] = {}
        self.images: dict[str, int] = {}
        self.ids: dict[str, list[str]] = {}
        self.lectures: dict[str, int] = {}
        for split, record in _records(problems):
            split = record.get("split") or split or "problems"
            self.sizes[split] = self.sizes.get(split, 0) + 1
            self.images[split] = self.images.get(split, 0) + bool(record.get("has_image"))
            self.ids.setdefault(split, []).append(str(record.get("id")))
            lecture = record.get("lecture")
            if lecture:
                self.lectures[lecture] = self.lectures.get(lecture, 0) + 1

    def lectures_are_scienceqas(self) -> bool:
        """Whether most of the problems that have a lecture have one of ScienceQA's."""
        known = {_LECTURES[start : start + 8] for start in range(0, len(_LECTURES), 8)}
        own = sum(number for lecture, number in self.lectures.items() if lecture_hash(lecture) in known)
        return 0 < sum(self.lectures.values()) <= 2 * own

    def is_benchmark(self) -> bool:
        return bool(self.sizes) and all(self._is_whole(split) for split in self.sizes)

    def _is_whole(self, split: str) -> bool:
        official = SCIENCEQA.get(split)
        if official is None or self.sizes[split] != official.size or not self.lectures_are_scienceqas():
            return False
        ids = self.ids[split]
        if ids_hash(ids) == official.ids:
            return True
        # the Hub's copies have no ids: load_problems numbers them
        return all(id_.startswith(f"{split}-") for id_ in ids) and self.images[split] == official.with_image


def ids_hash(ids: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:32]


def lecture_hash(lecture: str) -> str:
    return hashlib.sha256(" ".join(lecture.split()).encode()).hexdigest()[:8]


def _records(problems: Any):
    """(split, record) of a Dataset or iterable, or of a mapping of splits to such."""
    parts = problems.items() if isinstance(problems, Mapping) else [(None, problems)]
    for split, part in parts:
        names = getattr(part, "column_names", None)
        if names is not None:  # the few columns that are looked at, and no images
            part = part.select_columns([n for n in ("id", "split", "has_image", "lecture") if n in names])
        for record in read_records(part):
            yield split, record


def _license_of(source: str | os.PathLike, hub: str | None) -> str | None:
    """The licence that the source's own README states."""
    try:
        folder = download(hub, None, local_files_only=True) if hub else locate(source)[0]
    except FileNotFoundError:
        return None
    folder = folder if os.path.isdir(folder) else os.path.dirname(folder)
    stated = read_metadata(folder).get("license")
    if isinstance(stated, list):
        stated = stated[0] if stated else None
    return stated if isinstance(stated, str) else None
