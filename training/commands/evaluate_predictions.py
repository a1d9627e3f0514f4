"""Accuracy in the paper's columns and rationale scores of predictions, or a paired comparison of two files.

  mmcot evaluate --predictions predictions.jsonl --problems data/scienceqa --split test --json result.json
  mmcot evaluate --compare without_images.json with_images.json --problems data/scienceqa --split test

Predictions are files of `mmcot predict`, or one of
{"4": 1, ...}                                    the index of the choice, from 0
{"4": "The answer is (B).", ...}                 a letter or an answer text
{"4": {"answer": "B", "rationale": "..."}, ...}  with the rationale
{"id": "4", "answer": "B", "rationale": "..."}   one a line (JSON Lines)
or the predictions_ans_test.json of the original project's answer stage.
"""

import argparse
from pathlib import Path
from typing import Any

from mmcot.training.commands.options import add_partial, refuse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `mmcot evaluate`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--predictions", metavar="FILE", help="predictions to score")
    what.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="two predictions files: paired difference, McNemar's exact test"
    )
    parser.add_argument(
        "--problems",
        required=True,
        metavar="FILE_OR_DIR",
        help="ScienceQA folder or problems.json, a JSON object {id: problem}, JSON Lines, or any other problem source",
    )
    parser.add_argument("--split", help="split that was predicted (default: the one whose ids the predictions have)")
    add_partial(parser)
    parser.add_argument(
        "--risk-coverage", action="store_true", help="also: accuracy of the answers that the model is surest about"
    )
    parser.add_argument(
        "--abstain-below",
        type=float,
        metavar="P",
        help="give no answer whose probability is smaller (choose P on validation data); implies --risk-coverage",
    )
    parser.add_argument("--json", metavar="OUT", help="write the result here")
    parser.add_argument(
        "--protocol",
        choices=("generated", "teacher_forced"),
        help="how the rationales came about, for files that don't say it; a label on every number",
    )
    parser.add_argument(
        "--rationale-format",
        metavar="FORMAT",
        help="prompt format whose target is the reference rationale (default: the file's, else QCM-E)",
    )
    parser.add_argument(
        "--unparsable",
        choices=("wrong", "random"),
        default="wrong",
        help="what an answer that names no choice counts as: wrong, or a draw over the problem's own choices",
    )
    parser.add_argument("--seed", type=int, default=0, help="of those draws (default: 0)")
    parser.add_argument(
        "--similarity-model",
        metavar="FOLDER",
        help="a sentence-transformers model, such as all-MiniLM-L6-v2: adds the rationales' sentence similarity",
    )


def run(args: argparse.Namespace) -> int:
    """Score or compare, print the table, write the JSON file."""
    from mmcot.training.common import write_json
    from mmcot.training.evaluation.reading import read_problems

    if args.compare:
        names = ("risk_coverage", "abstain_below", "similarity_model", "rationale_format", "unparsable", "seed")
        refuse(args, "with --compare, which tells answers apart: give --predictions", *names)
    elif args.unparsable != "random":
        refuse(args, "without --unparsable random", "seed")
    problems, splits = read_problems(args.problems, args.split)
    result = (_compare if args.compare else _score)(args, problems, splits)
    if args.json:
        write_json(args.json, result)
    return 0


def _compare(args: argparse.Namespace, problems, splits) -> dict[str, Any]:
    from mmcot.training.common import UserError
    from mmcot.training.evaluation.comparison import compare
    from mmcot.training.evaluation.protocol import protocol_of
    from mmcot.training.evaluation.reading import check_same_questions, match_file
    from mmcot.training.evaluation.tables import format_comparison

    (first, answers_a), (other, answers_b) = (
        match_file(file, problems, splits, args.split, args.partial) for file in args.compare
    )
    check_same_questions(*args.compare, first, other)
    protocols = {file: protocol_of(file, args.protocol, required=False) for file in args.compare}
    if len(set(protocols.values())) > 1:
        said = ", ".join(f"{file}: {protocol}" for file, protocol in protocols.items())
        raise UserError(f"numbers of two protocols are not compared ({said}); see docs/protocols.md")
    result = compare(first, answers_a, answers_b, protocol=protocols[args.compare[0]])
    print(format_comparison(result, *args.compare))
    return result


def _score(args: argparse.Namespace, problems, splits) -> dict[str, Any]:
    from mmcot.training.data.mixture import is_mixture
    from mmcot.training.evaluation.protocol import protocol_of, rationale_format_of, told, told_line
    from mmcot.training.evaluation.reading import match_file
    from mmcot.training.evaluation.scoring import evaluate_predictions, evaluate_sources
    from mmcot.training.evaluation.tables import format_table

    chosen, predictions = match_file(args.predictions, problems, splits, args.split, args.partial)
    options = {
        "protocol": protocol_of(args.predictions, args.protocol),
        "rationale_format": rationale_format_of(args.predictions, args.rationale_format),
        "unparsable": args.unparsable,
        "seed": args.seed,
        "similarity_model": args.similarity_model,
    }
    result = evaluate_predictions(chosen, predictions, **options)
    result.update(told(args.predictions))
    if is_mixture(args.problems):  # a row for each of its sources
        result["sources"] = evaluate_sources(chosen, predictions, **options)
    line = told_line(result)
    print(*([line] if line else []), format_table({Path(args.predictions).stem: result}), sep="\n")
    if args.risk_coverage or args.abstain_below is not None:
        from mmcot.training.evaluation.selective import format_risk_coverage, risk_coverage

        result["selective"] = risk_coverage(chosen, predictions, abstain_below=args.abstain_below)
        print(format_risk_coverage(result["selective"]))
    if args.partial:
        everything = len(splits.get(args.split, problems)) if args.split else len(problems)
        print(f"partial: {len(chosen)} of {everything} questions")
    return result
