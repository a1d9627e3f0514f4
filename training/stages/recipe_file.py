"""Recipes are read here: a YAML file, by path or by the name of one that comes with the package, and `key=value`.

A recipe may hold the sections `rationale:` and `answer:`, whose keys hold for that stage alone. `extends: NAME` takes
another recipe's keys where the file itself has none. A data file in a recipe's place means the recipe `own-data`.
"""

import copy
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mmcot.training.common import MissingFileError, UserError, read_yaml
from mmcot.training.data.mixture import is_mixture, names_sources
from mmcot.training.stages.recipe import STAGES, Recipe
from mmcot.training.stages.recipe_values import from_dict

RECIPES = Path(__file__).parents[1] / "recipes"  # a folder a kind; names are unique among all
OWN_DATA = "own-data"
LISTED = "give a YAML file, a file of questions, or a name that `mmcot train` lists"
_ORDER = {"own-data": 0, "demo": 1, "paper": 2, "ablations": 3}
DATA_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".tar")


def recipe_files() -> dict[str, Path]:
    """Name → file of the recipes that come with the package."""
    return {path.stem: path for path in sorted(RECIPES.glob("*/*.yaml"))}


def recipe_summaries() -> dict[str, dict[str, str]]:
    """Kind → name → the first sentence of the recipe's head."""
    found: dict[str, dict[str, str]] = {}
    for name, path in sorted(recipe_files().items(), key=lambda item: _ORDER.get(item[1].parent.name, 9)):
        head = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            head.append(line.lstrip("# "))
        sentence = re.match(r"(.*?[a-z)0-9A→%][.:])(?=\s|$)(?![^(]*\))", " ".join(head))
        text = (sentence[1] if sentence else " ".join(head)).rstrip(".:")
        found.setdefault(path.parent.name, {})[name] = text
    return found


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, said_by: str = "command line") -> Recipe:
    """Reads a recipe.

    Args:
        path: a YAML file, or the name of one that comes with the package; or a file or folder of problems, for the
            recipe `own-data` with `data=path`.
        overrides: `key=value` and `stage.key=value`, values in YAML.
        said_by: what messages call the one who gave the overrides.

    Raises:
        MissingFileError: there is no such recipe.
        UserError: naming the file and the key, or the override.
    """
    if _is_data(path):
        file, values = _read(OWN_DATA)
        values["data"] = str(path)
    else:
        file, values = _read(path)
    own = copy.deepcopy(values)
    for override in overrides:
        _apply(values, str(override))
    try:
        return from_dict(values)
    except UserError as error:
        raise UserError(f"{file if not overrides or _fault(own) == str(error) else said_by}: {error}") from None


def _fault(values: dict[str, Any]) -> str | None:
    """What is wrong with the keys of a file, without overrides."""
    try:
        from_dict(values)
    except UserError as error:
        return str(error)
    return None


def _is_data(path: str | Path) -> bool:
    """Whether a path names problems rather than a recipe."""
    file, name = Path(path), str(path)
    if file.suffix.lower() in DATA_FILES or name.startswith("embedded:"):
        return True
    if is_mixture(file) and file.is_file() and names_sources(file):
        return True
    is_recipe = name in recipe_files() or file.suffix.lower() in (".yaml", ".yml")
    return not is_recipe and (file.is_dir() or (name.count("/") == 1 and not file.exists()))  # a Hub data set


def _apply(values: dict[str, Any], override: str) -> None:
    """Puts `key=value`, `stage.key=value` or `model.d_model=8` into the keys of a file."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r} is not of the form key=value")
    try:
        value = _numbers(read_yaml(text))
    except yaml.YAMLError as error:
        raise UserError(f"{override!r}: the value is not YAML: {_one_line(error)}") from None
    first, dot, name = key.partition(".")
    target = values
    if dot and first in STAGES:
        if not isinstance(values.get(first) or {}, dict):
            raise UserError(f"{first}: a section is a mapping of keys, not {values[first]!r:.80}")
        target = values[first] = dict(values.get(first) or {})
        key = name
        first, dot, name = key.partition(".")
    if dot and (isinstance(target.get(first), dict) or first == "columns"):  # sizes of a fresh model or backbone
        target[first] = dict(target.get(first) or {})
        target, key = target[first], name
    target[key] = value


def _read(path: str | Path, below: tuple[Path, ...] = ()) -> tuple[Path, dict[str, Any]]:
    """The keys of a file, on top of those of the recipe that it extends."""
    file, shipped = Path(path), recipe_files()
    if not file.is_file() and str(path) in shipped:
        file = shipped[str(path)]
    if not file.is_file():
        close = difflib.get_close_matches(str(path), shipped, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else LISTED
        raise MissingFileError(f"there is no recipe {path}: {hint}")
    if file in below:
        raise UserError(f"{file}: extends itself")
    try:
        values = _numbers(read_yaml(file.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if file.suffix.lower() not in (".yaml", ".yml"):
            raise UserError(_no_known_ending(file)) from None
        raise UserError(f"{file} is not YAML: {_one_line(error)}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        if file.suffix.lower() not in (".yaml", ".yml"):
            raise UserError(_no_known_ending(file))
        raise UserError(f"{file} holds no keys: a recipe is a YAML mapping")
    base = values.pop("extends", None)
    if base is not None:
        beside = file.parent / f"{base}.yaml"
        _, inherited = _read(beside if beside.exists() else str(base), (*below, file))
        for stage in STAGES:
            if isinstance(values.get(stage), dict) and isinstance(inherited.get(stage), dict):
                values[stage] = {**inherited[stage], **values[stage]}
        values = {**inherited, **values}
    return file, values


def _no_known_ending(file: Path) -> str:
    return f"{file}: is no recipe (YAML), and by its ending no questions: they lie in {', '.join(DATA_FILES)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads 5e-5 as text because it has no dot; people leave it out."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value
