"""The paper's tables from runs on any source: `make_tables` trains each row once, `write_tables` puts them together.

What rows have in common is made once: image features of a backbone, tokenised samples (the cache of `datasets` knows
them by content), the network that small rows begin with, and rows that stand in several tables.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError, write_json, written_whole
from mmcot.training.paper.networks import EMBEDDED, NETWORKS, make_tokenizer, small_settings, start_recipe
from mmcot.training.paper.rows import check_tested, recipe_name, rows_of, tables_of
from mmcot.training.stages.recipe import Recipe, load_recipe

logger = logging.getLogger("mmcot")


@dataclass(frozen=True)
class Plan:
    """What `mmcot paper` runs: row → recipe, in the folder `runs/ROW` of `output`."""

    tables: tuple[str, ...]
    version: str
    network: str
    source: str
    output: Path
    recipes: dict[str, Recipe]
    overrides: tuple[str, ...]


def make_tables(
    name: str,
    source: str,
    output: str | Path,
    *,
    version: str = "v5",
    network: str | None = None,
    rows: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Runs the rows of the paper's tables on a source, and writes `results.json` and `results.md` after each row.

    Cut off, the same call goes on: what was finished is read, and a row that was begun goes on from its checkpoint.

    Args:
        name: "table2", "table3", "ablations" or "all".
        source: problems, as `load_problems` takes them. A bare "embedded" means the skills that small networks learn.
        output: folder of the runs and the tables.
        version: "v1" (UnifiedQA, DETR, QCM-LE) or "v5" (FLAN-Alpaca, ViT, QCM-E) of the paper.
        network: "paper", the recipes' own, or "small", fresh ones for a CPU; by default small for embedded data.
        rows: only these of the tables.
        overrides: `key=value` for every row's recipe, as `mmcot train` takes them; `start.key=value` for that of the
            network that small rows begin with.

    Returns:
        What `results.json` holds; see `tables_of_results`.

    Raises:
        UserError: what the user has to mend, before the first training step.
    """
    from mmcot.training.paper.results import collect_row, tables_of_results

    plan = make_plan(name, source, output, version=version, network=network, rows=rows, overrides=overrides)
    if plan.network == "paper":
        check_rows(plan)
    begin_rows(plan)
    check_rows(plan)
    from mmcot.training.train import run_recipe

    measured: dict[str, dict[str, Any]] = {}
    before = _seconds_before(plan.output)
    content: dict[str, Any] = {}
    for number, (row, recipe) in enumerate(plan.recipes.items(), start=1):
        logger.info(f"row {number} of {len(plan.recipes)}: {row}")
        started = time.perf_counter()
        results = run_recipe(recipe)
        seconds = before.get(row, time.perf_counter() - started)
        measured[row] = collect_row(recipe, results["test"], seconds)
        content = tables_of_results(plan, measured)
        write_tables(content, plan.output)
    return content


def _seconds_before(output: Path) -> dict[str, float]:
    """Row → seconds of rows that an earlier call finished."""
    file = output / "results.json"
    if not file.is_file():
        return {}
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return {row: result["seconds"] for row, result in rows.items()}


def make_plan(
    name: str,
    source: str,
    output: str | Path,
    *,
    version: str = "v5",
    network: str | None = None,
    rows: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Plan:
    """The recipes that `make_tables` would run; nothing is trained, nothing is written. Arguments are its own."""
    if network is None:
        network = "small" if source.startswith("embedded") else "paper"
    if network not in NETWORKS:
        raise UserError(f"there is no network {network!r}: give one of {', '.join(NETWORKS)}")
    if source.rstrip(":") == "embedded":
        source = EMBEDDED
    tables = tables_of(name)
    own = [override for override in overrides if override.partition("=")[0] in ("output_dir", "data", "stages")]
    if own:
        raise UserError(f"{own[0]}: `mmcot paper` says this itself (SOURCE, --output)")
    folder = Path(output)
    if network != "small" and any(override.startswith("start.") for override in overrides):
        raise UserError("start.…: is of the network that small rows begin with; say --network small")
    of_rows = [override for override in overrides if not override.startswith("start.")]
    recipes = {}
    for row in rows_of(tables, version, tuple(rows)):
        recipes[row] = _recipe(row, version, network, source, folder, of_rows)
        check_tested(recipes[row])
    return Plan(tables, version, network, source, folder, recipes, tuple(overrides))


def _size(row: str) -> str:
    return "large" if row.startswith("large") else "base"


def _recipe(row: str, version: str, network: str, source: str, folder: Path, overrides: Sequence[str]) -> Recipe:
    name = recipe_name(row, version)
    recipe = load_recipe(name)
    settings: dict[str, Any] = {"data": source, "output_dir": str(folder / "runs" / row)}
    if network == "small":
        start = folder / "runs" / f"start-{_size(row)}" / "answer"
        settings |= small_settings(recipe, start)
    elif recipe.features is not None:
        settings["features"] = str(folder / "features" / str(recipe.vision))
    return load_recipe(name, [*(f"{key}={json.dumps(value)}" for key, value in settings.items()), *overrides])


def check_rows(plan: Plan) -> None:
    """What the recipes and the machine tell, of all rows at once.

    Raises:
        UserError: everything that is to be mended.
    """
    from mmcot.training.stages.checks import Faults, check_recipe

    faults = Faults()
    for recipe in plan.recipes.values():
        check_recipe(recipe, faults)
    faults.tell()


def begin_rows(plan: Plan) -> None:
    """Makes what rows have in common: image features, or the networks that small rows begin with."""
    plan.output.mkdir(parents=True, exist_ok=True)
    recipes = list(plan.recipes.values())
    if plan.network == "small":
        _begin_small(plan, recipes)
    cached = {recipe.features: recipe for recipe in recipes if recipe.features}
    for features, recipe in cached.items():
        if Path(features).parent == plan.output / "features":
            _extract(recipe, Path(features))


def _begin_small(plan: Plan, recipes: list[Recipe]) -> None:
    from mmcot.training.train import run_recipe

    sizes = starts(plan)
    if not sizes:
        return  # key=value names another model
    tokenizer = make_tokenizer(recipes, plan.output / "tokenizer")
    for size, folder in sizes.items():
        logger.info(start_line(size, folder))
        run_recipe(start_recipe(size, folder, tokenizer, _of_start(plan.overrides)))


def starts(plan: Plan) -> dict[str, Path]:
    """Size → folder of the networks that small rows begin with; none where key=value names another model."""
    if plan.network != "small":
        return {}
    return {
        _size(row): Path(recipe.model).parent
        for row, recipe in plan.recipes.items()
        if isinstance(recipe.model, str) and (Path(recipe.model).parent).parent == plan.output / "runs"
    }


def start_line(size: str, folder: Path) -> str:
    """What a starting network is, for who sees it trained."""
    rows = "every large row" if size == "large" else "every row that isn't large"
    return f"first {folder}: a small text network in place of a pretrained T5, trained once; {rows} starts from it"


# of key=value, what the starting network takes over: how it is trained belongs to its own recipe
_OF_START = ("seed=", "use_cpu=", "bf16=", "disable_tqdm=")


def _of_start(overrides: Sequence[str]) -> list[str]:
    return [text.removeprefix("start.") for text in overrides if text.startswith((*_OF_START, "start."))]


def _extract(recipe: Recipe, features: Path) -> None:
    """Image features of the splits that the recipe reads; pictures that the cache has are left out."""
    from datasets import concatenate_datasets

    from mmcot.training.data.problems import load_problems
    from mmcot.training.features.extract import extract_features

    options = {key: getattr(recipe, key) for key in ("image_rule", "columns", "allow_urls", "allow_outside")}
    splits = [split for split in (recipe.train_split, recipe.eval_split, recipe.test_split) if split]
    problems = concatenate_datasets([load_problems(recipe.data, split, **options) for split in splits])
    extract_features(problems, recipe.vision, features, vision_feature=recipe.vision_feature)


def write_tables(content: Mapping[str, Any], output: Path) -> None:
    """Writes `results.json` and `results.md`; of several processes the first one."""
    from accelerate import PartialState

    from mmcot.training.paper.markdown import format_tables

    if PartialState().is_main_process:
        write_json(output / "results.json", content)
        with written_whole(output / "results.md") as file:
            file.write(format_tables(content))
