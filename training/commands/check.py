"""Look a data set over before training on it.

  mmcot check my-questions.jsonl
  mmcot check data/scienceqa --html check.html
  mmcot check my-questions.csv columns.image=photo vision=null max_source_length=256
  mmcot check my-recipe.yaml

It takes what `mmcot train` takes, and looks with that recipe's eyes: columns found and what they were taken for,
splits, pictures, rationales, lengths against the limits, options, what guessing gives, questions that occur twice,
characters that the tokenizer doesn't know, and questions as the model will see them. The exit status is 2 if nothing
can be trained before something is mended, else 0.
"""

import argparse

from mmcot.training.common import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="questions (file, folder, Hub id), a recipe's name or YAML file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="values of the recipe, as for `mmcot train`")
    parser.add_argument("--html", metavar="FILE", help="write all of it as a page, with pictures")
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="questions to show in full (default: 1)")


def run(args: argparse.Namespace) -> int:
    from mmcot.training.data.check.html_page import write_check_page
    from mmcot.training.data.check.text import format_check
    from mmcot.training.stages.data_check import check_recipe_data
    from mmcot.training.stages.recipe_file import load_recipe

    if args.samples < 0:
        raise UserError(f"--samples {args.samples}: give a whole number that is not negative")
    found = check_recipe_data(load_recipe(args.data, args.overrides), samples=max(8, args.samples))
    print(format_check(found, samples=args.samples))
    if args.html:
        print(f"\nthe page is {write_check_page(found, args.html)}")
    return 2 if found["faults"] else 0
