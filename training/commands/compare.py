"""Put several runs on the same questions in one table, with paired tests against the first.

  mmcot compare data/scienceqa --split test --run mmcot=predictions.jsonl --run few-shot=few.jsonl --json compare.json

The runs are predictions files of `mmcot predict` and `mmcot reason`.
"""

import argparse
from pathlib import Path

from mmcot.training.commands.options import add_partial


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("problems", metavar="SOURCE", help="the problems that were asked")
    parser.add_argument("--split", help="split that was predicted (default: the one whose ids the files have)")
    parser.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a run; others are tested against the first",
    )
    add_partial(parser)
    parser.add_argument("--json", metavar="OUT", help="write the result here")


def run(args: argparse.Namespace) -> int:
    from mmcot.training.common import UserError, write_json
    from mmcot.training.evaluation.runs import compare_runs, format_runs

    runs: dict[str, Path] = {}
    for given in args.run:
        name, equals, file = given.partition("=")
        if not equals or not name or not file:
            raise UserError(f"--run {given}: give a name and a file, as --run baseline=predictions.jsonl")
        if name in runs:
            raise UserError(f"--run {given}: there is a run of that name already")
        runs[name] = Path(file)
    result = compare_runs(args.problems, runs, args.split, args.partial)
    print(format_runs(result))
    if args.json:
        write_json(args.json, result)
    return 0
