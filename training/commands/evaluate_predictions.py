"""`mmcot evaluate`: accuracy in the paper's columns and rationale scores of predictions, or a paired comparison."""

import argparse
from pathlib import Path

EXAMPLES = """\
examples:
  mmcot evaluate --predictions predictions.jsonl --problems data/scienceqa --split test --json result.json
  mmcot evaluate --compare without_images.json with_images.json --problems data/scienceqa --split test

predictions are one of
  {"4": 1, ...}                                    the index of the choice, from 0
  {"4": "The answer is (B).", ...}                 a letter or an answer text
  {"4": {"answer": "B", "rationale": "..."}, ...}  with the rationale
  {"id": "4", "answer": "B", "rationale": "..."}   one a line (JSON Lines)
or the predictions_ans_test.json of the original project's answer stage.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `mmcot evaluate`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
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
    parser.add_argument("--json", metavar="OUT", help="write the result here")
    parser.add_argument(
        "--protocol",
        choices=("generated", "teacher_forced"),
        default="generated",
        help="how the rationales came about; a label on every number (default: generated)",
    )
    parser.add_argument(
        "--rationale-format",
        default="QCM-E",
        metavar="FORMAT",
        help="prompt format whose target is the reference of problems without a `rationale` (default: QCM-E)",
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
    from mmcot.training.evaluation.comparison import compare
    from mmcot.training.evaluation.reading import match, read_predictions, read_problems
    from mmcot.training.evaluation.scoring import evaluate_predictions
    from mmcot.training.evaluation.tables import format_comparison, format_table

    problems, splits = read_problems(args.problems, args.split)
    if args.compare:
        answers = []
        for file in args.compare:
            chosen, predictions = match(problems, splits, read_predictions(file), args.split)
            answers.append(predictions)
        result = compare(chosen, *answers, protocol=args.protocol)
        print(format_comparison(result, *args.compare))
    else:
        chosen, predictions = match(problems, splits, read_predictions(args.predictions), args.split)
        result = evaluate_predictions(
            chosen,
            predictions,
            protocol=args.protocol,
            rationale_format=args.rationale_format,
            unparsable=args.unparsable,
            seed=args.seed,
            similarity_model=args.similarity_model,
        )
        print(format_table({Path(args.predictions).stem: result}))
    if args.json:
        write_json(args.json, result)
    return 0
