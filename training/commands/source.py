"""The options that say which problems: shared by the commands that read a source."""

import argparse
from collections.abc import Mapping
from typing import Any

SOURCE = "ScienceQA folder, JSON Lines, JSON, CSV, parquet, WebDataset, a Hub id, or embedded:… (docs/data.md)"


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """`--columns`, `--allow-urls`, `--allow-outside`."""
    source = parser.add_argument_group("source")
    source.add_argument(
        "--columns", nargs="+", default=[], metavar="FIELD=NAME", help="fields that the source calls otherwise"
    )
    source.add_argument("--allow-urls", action="store_true", help="read pictures from http(s) addresses")
    source.add_argument("--allow-outside", action="store_true", help="read pictures outside of the source's folder")


def problems_of(args: argparse.Namespace, split: str | None, *, require_answer: bool = False):
    """The problems that a command's options name; `--limit` takes the first so many.

    Raises:
        UserError: see `load_problems`; a limit below 1, a column that isn't FIELD=NAME.
    """
    from mmcot.training.common import UserError
    from mmcot.training.data.problems import load_problems

    limit = getattr(args, "limit", None)
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: give a whole number of at least 1")
    problems = load_problems(args.problems, split, require_answer=require_answer, **source_options(args))
    return problems if limit is None else problems.select(range(min(limit, len(problems))))


def source_options(args: argparse.Namespace) -> dict[str, Any]:
    """The group's options as `load_problems` takes them."""
    return {
        "columns": _columns(args.columns) or None,
        "allow_urls": args.allow_urls,
        "allow_outside": args.allow_outside,
    }


def _columns(given: list[str]) -> Mapping[str, str]:
    from mmcot.training.common import UserError

    for column in given:
        field, equals, name = column.partition("=")
        if not (field and equals and name):
            raise UserError(f"--columns {column}: give a field and the source's name for it, as image=picture_file")
        if sum(other.startswith(f"{field}=") for other in given) > 1:
            raise UserError(f"--columns {column}: {field} is named twice")
    return dict(column.split("=", 1) for column in given)
