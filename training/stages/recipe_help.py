"""What `mmcot train --help` says of the keys: defaults and meanings, from the docstring and from transformers' source.

Nothing heavy is imported: transformers' fields are read from its file as it lies there.
"""

import ast
import dataclasses
import importlib.util
import inspect
import re
import textwrap
from pathlib import Path

from mmcot.training.stages.recipe import TRAINING_DEFAULTS, Recipe, own_keys

WIDTH = 100
OWN = """keys of a recipe (default). A section `rationale:` or `answer:` holds keys for that stage alone;
`extends: NAME` takes all keys of another recipe:"""
TRANSFORMERS = "keys of transformers' Seq2SeqTrainingArguments (default, some of them ours):"
OUR_DEFAULTS = {**TRAINING_DEFAULTS, "bf16": "auto, where processor or GPU multiply it themselves"}


def recipe_help() -> str:
    """All keys of a recipe, one after the other: default, and meaning."""
    parts = []
    for heading, entries in recipe_entries():
        parts.append("\n".join([heading, *(_entry(*entry) for entry in entries)]))
    return "\n\n".join(parts)


def recipe_entries() -> list[tuple[str, list[tuple[str, str, str]]]]:
    """A heading and its keys (name, default, meaning): the recipe's own, then transformers'."""
    meanings, fields = own_meanings(), {f.name: f.default for f in dataclasses.fields(Recipe)}
    own = [(key, _shown(fields[key]), meanings[key]) for key in own_keys()]
    others = [
        (key, _shown(OUR_DEFAULTS.get(key, default)), meaning)
        for key, (default, meaning) in transformers_meanings().items()
        if key not in fields
    ]
    return [(OWN, own), (TRANSFORMERS, others)]


def own_meanings() -> dict[str, str]:
    """Key → meaning, of `Recipe`'s docstring."""
    text = inspect.cleandoc(Recipe.__doc__ or "").partition("Args:\n")[2]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {key: " ".join(meaning.split()) for key, meaning in found}


def transformers_meanings() -> dict[str, tuple[object, str]]:
    """Key → (default, meaning) of `Seq2SeqTrainingArguments`; empty where transformers isn't installed."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return {}
    folder = Path(spec.submodule_search_locations[0])
    found: dict[str, tuple[object, str]] = {}
    for file in ("training_args.py", "training_args_seq2seq.py"):
        for node in ast.walk(ast.parse((folder / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("TrainingArguments"):
                found |= _fields_of(node)
    return found


def _fields_of(node: ast.ClassDef) -> dict[str, tuple[object, str]]:
    """Fields of a dataclass's source: name → (default, `help` of its metadata)."""
    found: dict[str, tuple[object, str]] = {}
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if "ClassVar" in ast.unparse(statement.annotation) or statement.target.id.startswith("_"):
            continue
        default, meaning = statement.value, ""
        if isinstance(default, ast.Call):
            given = {keyword.arg: keyword.value for keyword in default.keywords}
            default, metadata = given.get("default"), given.get("metadata")
            for key, value in zip(*_items(metadata), strict=True):
                if _literal(key) == "help":
                    meaning = str(_literal(value) or "").replace("%%", "%")  # written for argparse
        found[statement.target.id] = (_literal(default), " ".join(meaning.split()))
    return found


def _items(node: ast.expr | None) -> tuple[list, list]:
    return (node.keys, node.values) if isinstance(node, ast.Dict) else ([], [])


def _literal(node: ast.expr | None) -> object:
    """The value of a literal; the source text of anything else."""
    if node is None:
        return None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _shown(default: object) -> str:
    return "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def _entry(key: str, default: str, meaning: str) -> str:
    text = textwrap.fill(meaning, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return f"  {key} ({default})\n{text}".rstrip()
