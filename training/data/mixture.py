"""Several sources as one: a YAML file that names them, with the weight that each has in training.

    sources:
      scienceqa: data/scienceqa                  # a source as it is, or with options:
      aokvqa:
        source: HuggingFaceM4/A-OKVQA
        weight: 0.5                              # half of its training questions, drawn by the seed
        rationales: all                          # options of `load_problems`
        splits: {test: val}                      # its test answers are withheld: its val stands in for test
      mine: {source: my.jsonl, weight: 3}        # each of its training questions comes three times
    seed: 0

It is itself a source, wherever one is taken. Ids begin with the source's name, `aokvqa/22MexNkB`, so that figures of
each can be told apart (`source_of`).
"""

import difflib
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError, read_yaml
from mmcot.training.data.records import shown

SUFFIXES = (".yaml", ".yml")
OPTIONS = ("image_rule", "columns", "allow_urls", "allow_outside", "rationales")
KEYS = ("source", "weight", "splits", *OPTIONS)


MOST_OFTEN = 1000  # times that a question comes


def is_mixture(source: str | os.PathLike) -> bool:
    """Whether a source is a file that names several."""
    return isinstance(source, str | os.PathLike) and str(source).lower().endswith(SUFFIXES)


def names_sources(file: Path) -> bool:
    """Whether a YAML file is one of sources, and not a recipe."""
    import yaml

    try:
        content = read_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError):
        return False  # a recipe's reader says what is wrong
    return isinstance(content, dict) and "sources" in content


def source_of(id_: str) -> str:
    """The name of the source that a mixture's question is from."""
    return id_.partition("/")[0]


def load_mixture(path: str | os.PathLike, split: str | None, **options: Any):
    """The problems of a mixture's sources, one after the other, as `load_problems` gives them.

    Weights hold for the split "train" alone: a question of weight 2 comes twice, with the ids "x" and "x*2"; of weight
    0.5 half of the questions come. A split that a source doesn't have (null in `splits`) is left out.

    Args:
        options: of `load_problems`, for sources that don't say their own.

    Raises:
        UserError, MissingFileError: the file or one of its sources can't be read; the message names which.
    """
    from datasets import concatenate_datasets

    from mmcot.training.data.problems import load_problems
    from mmcot.training.data.splits import split_name

    file = Path(path)
    sources, seed = read_mixture(file)
    parts = []
    for name, given in sources.items():
        own = {key: given[key] for key in OPTIONS if key in given}
        wanted = split_name(split)
        if wanted in given["splits"]:
            wanted = given["splits"][wanted]
            if wanted is None:
                continue
        try:
            problems = load_problems(_place(given["source"], file), wanted, **{**options, **own})
        except UserError as error:
            raise type(error)(f"{file}: {name}: {error}") from None
        if split_name(split) == "train":
            problems = _weighted(problems, given["weight"], f"{seed}:{name}")
        parts.append(_named(problems, name, split_name(split)))
    if not parts:
        raise UserError(f"{file}: none of its sources has a split {shown(split)}")
    return concatenate_datasets(parts)


def read_mixture(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Name → `source`, `weight`, `splits` and options of each source; and the seed.

    Raises:
        UserError: the file isn't one of sources; the message names the key.
    """
    import yaml

    try:
        content = read_yaml(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        from mmcot.training.common import MissingFileError

        raise MissingFileError(f"{file}: no such file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not YAML: {' '.join(str(error).split())}") from None
    listed = content.get("sources") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{file}: expected `sources:` with a name and a source each, but found {shown(content)}")
    others = [key for key in content if key not in ("sources", "seed")]
    if others:
        raise UserError(f"{file}: there is no key {shown(others[0])}; keys are sources, seed")
    seed = content.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserError(f"{file}: seed must be a whole number, but is {shown(seed)}")
    names = [str(name) for name in listed]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:  # 1 and "1", which are two keys to YAML
        raise UserError(f"{file}: key {twice!r} occurs twice")
    return {str(name): _source(f"{file}: {name}", str(name), given) for name, given in listed.items()}, seed


def _source(where: str, name: str, given: Any) -> dict[str, Any]:
    from mmcot.training.data.splits import split_name

    given = {"source": given} if isinstance(given, str) else given
    if "/" in name or not name.strip():
        raise UserError(f"{where}: a source's name begins its ids, so it has no /")
    if not isinstance(given, dict) or not isinstance(given.get("source"), str):
        raise UserError(f"{where}: expected a source, or `source:` with options, but found {shown(given)}")
    if is_mixture(given["source"]):
        raise UserError(f"{where}: a mixture isn't part of another one: name its sources")
    for key in given:
        if key not in KEYS:
            close = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(f"{where}: there is no key {shown(key)}{hint}; keys are {', '.join(KEYS)}")
    weight, splits = given.get("weight", 1), given.get("splits") or {}
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
        raise UserError(f"{where}: weight must be a number above 0, but is {shown(weight)}")
    if weight > MOST_OFTEN:
        raise UserError(f"{where}: weight is {MOST_OFTEN} at most, but is {shown(weight)}")
    for key in ("allow_urls", "allow_outside"):
        if not isinstance(given.get(key, False), bool):
            raise UserError(f"{where}: {key} must be true or false, but is {shown(given[key])}")
    if not isinstance(splits, Mapping) or not all(isinstance(s, str) or s is None for s in splits.values()):
        raise UserError(f"{where}: splits must map our splits to the source's, as {{test: val}}, not {shown(splits)}")
    ours = {key: split_name(key) if isinstance(key, str) else key for key in splits}
    if wrong := [key for key, name in ours.items() if name not in ("train", "val", "test")]:
        raise UserError(f"{where}: splits has no {shown(wrong[0])}; ours are train, val, test")
    return {**given, "weight": weight, "splits": {ours[key]: split for key, split in splits.items()}}


def _place(source: str, file: Path) -> str:
    """A path as seen from the mixture's folder where it is there, else the source as it stands."""
    beside = file.parent / source
    path, colon, config = source.partition(":")
    if source.startswith("embedded") or Path(source).is_absolute():
        return source
    if beside.exists():
        return str(beside)
    return f"{file.parent / path}{colon}{config}" if colon and (file.parent / path).is_dir() else source


def _weighted(problems, weight: float, seed: str):
    """Each question `weight` times; of a fraction as many as it says, drawn by the seed, in their order."""
    whole, part = int(weight), weight - int(weight)
    rows = [(row, time) for time in range(whole) for row in range(len(problems))]
    drawn = sorted(random.Random(seed).sample(range(len(problems)), round(part * len(problems))))
    rows += [(row, whole) for row in drawn]
    if not rows:
        raise UserError(f"weight {weight}: leaves none of its {len(problems)} training questions")
    if whole == 1 and not drawn:
        return problems
    times = [time for _, time in rows]
    chosen = problems.select([row for row, _ in rows])
    return chosen.map(_repeated, with_indices=True, fn_kwargs={"times": times})


def _repeated(record: dict[str, Any], row: int, times: list[int]) -> dict[str, Any]:
    return {"id": record["id"] if times[row] == 0 else f"{record['id']}*{times[row] + 1}"}


def _named(problems, name: str, split: str | None):
    changes = {"name": name, "split": split}
    return problems.map(_with_name, fn_kwargs=changes)


def _with_name(record: dict[str, Any], name: str, split: str | None) -> dict[str, Any]:
    """Its id in the mixture, and the mixture's name of the split that it is in."""
    return {"id": f"{name}/{record['id']}", "split": split or record["split"]}
