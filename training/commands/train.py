"""Train a recipe: the rationale stage, the answer stage, or both one after the other.

  mmcot train embedded output_dir=runs/embedded
  mmcot train my-questions.jsonl output_dir=runs/mine
  accelerate launch -m mmcot.training.train base-v5 data=data/scienceqa output_dir=runs/base
  mmcot train my-recipe.yaml learning_rate=1e-4 answer.num_train_epochs=10

RECIPE is a YAML file, the name of one that comes with the package, or a file of questions, which means the recipe
`own-data` with data=FILE. The run leaves in output_dir: rationale/ and answer/ (the trained stages), their
predictions, results_val.json and results_test.json, and hub/, the repository to use and to publish. Run again, it
skips what is done and goes on with what was cut off.
"""

import argparse
import sys
import textwrap


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE", nargs="?", help="YAML file, name of a recipe of the package, or questions"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="values that go before the recipe's")
    short = parser.format_help
    parser.format_help = lambda: f"{short()}\n{_keys()}\n"  # type: ignore[method-assign] # only --help reads it


def _keys() -> str:
    """The recipes of the package, and every key of a recipe with its default and meaning."""
    from mmcot.training.stages.recipe_file import recipe_files
    from mmcot.training.stages.recipe_help import recipe_help

    kinds: dict[str, list[str]] = {}
    for name, path in recipe_files().items():
        kinds.setdefault(path.parent.name, []).append(name)
    lines = ["recipes of the package (`mmcot train` alone says what each is):"]
    for kind, names in kinds.items():
        lines += textwrap.wrap(
            f"{kind}: {', '.join(names)}", 100, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False
        )
    return "\n".join([*lines, "", recipe_help()])


def recipe_list() -> str:
    """The recipes of the package, a line each."""
    from mmcot.training.stages.recipe_file import recipe_summaries

    lines = ["mmcot train needs a recipe, or a file of questions: `mmcot train my-questions.jsonl`. Recipes:"]
    for kind, recipes in recipe_summaries().items():
        lines += ["", f"{kind}:"]
        width = max(map(len, recipes))
        lines += [f"  {name:<{width}}  {summary}" for name, summary in recipes.items()]
    return "\n".join([*lines, "", "`mmcot train --help` lists every key of a recipe."])


def run(args: argparse.Namespace) -> int:
    if args.recipe is None:
        print(recipe_list(), file=sys.stderr)
        return 2
    from accelerate import PartialState

    from mmcot.training.evaluation.tables import format_table
    from mmcot.training.stages.recipe import load_recipe
    from mmcot.training.train import next_commands, run_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    results = run_recipe(recipe)
    if PartialState().is_main_process:
        if results:
            print(format_table(results))
        print(next_commands(recipe))
    return 0
