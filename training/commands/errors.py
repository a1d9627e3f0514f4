"""Look at wrong answers: draw some by a seed, label them in the terminal, count what was wrong.

  mmcot errors data/scienceqa --predictions predictions.jsonl --n 50 --seed 0 --labels labels-ada.jsonl
  mmcot errors data/scienceqa --predictions text-only.jsonl --labels labels-ada.jsonl --other with-vision.jsonl
  mmcot errors data/scienceqa --predictions text-only.jsonl --labels labels-ada.jsonl --agreement labels-ben.jsonl
  mmcot errors embedded:n=1000 --validate

Labels are hallucination, common sense, logic, answer (wrong despite a right rationale) and other. They are on disk at
once; the same command goes on with those that are missing. Without --labels nothing is asked: the automatic indicator
counts statements that contradict the gold solution. --validate tells how far it can be trusted, on generated questions
whose truth is known; with --predictions of such a source, also on what the model wrote.
"""

import argparse
from typing import Any

from mmcot.training.commands.options import add_partial, refuse
from mmcot.training.commands.source import SOURCE, add_source_arguments, source_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("problems", metavar="SOURCE", help=SOURCE)
    parser.add_argument("--predictions", metavar="FILE", help="whose wrong answers")
    parser.add_argument("--split", help="split that was predicted (default: the one whose ids the file has)")
    parser.add_argument("--n", type=int, default=50, help="wrong answers to draw (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--labels", metavar="FILE", help="labels, JSON Lines; asks for those that are missing")
    parser.add_argument("--labeller", metavar="NAME", help="who labels; kept in the file")
    parser.add_argument("--count-only", action="store_true", help="with --labels: don't ask, count what is there")
    parser.add_argument("--hints", action="store_true", help="show what the indicator found; it may bias a labeller")
    parser.add_argument("--pictures", metavar="DIR", help="where pictures are put (default: beside the labels)")
    parser.add_argument("--agreement", metavar="LABELS", help="a second labeller's file: Cohen's kappa")
    parser.add_argument("--other", metavar="FILE", help="another run's predictions: which errors did it correct?")
    parser.add_argument("--validate", action="store_true", help="precision and recall of the indicator (embedded:…)")
    add_partial(parser)
    parser.add_argument("--json", metavar="OUT", help="write the result here")
    add_source_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from mmcot.training.common import UserError, write_json
    from mmcot.training.paper.published import PUBLISHED_HALLUCINATION
    from mmcot.training.report.errors import error_study, format_study, validate_on_embedded

    if not args.predictions and not args.validate:
        raise UserError("give --predictions FILE, whose wrong answers are looked at; or --validate")
    asking = ("hints", "pictures", "columns", "allow_urls", "allow_outside")  # of the pictures that a labeller sees
    if not args.predictions:
        labelling = ("n", "seed", "labels", "labeller", "count_only", "agreement", "other", "partial")
        refuse(args, "without --predictions", *labelling, *asking)
    if args.labels is None:
        refuse(args, "without --labels FILE", "agreement", "count_only", "labeller", *asking)
    if args.count_only:
        refuse(args, "with --count-only, which asks nothing", *asking)
    if args.n < 1:
        raise UserError(f"--n {args.n}: give a whole number of at least 1")
    result: dict[str, Any] = {}
    if args.validate:
        result["validation"] = validate_on_embedded(args.problems, args.predictions, args.split)
    if args.predictions:
        result |= error_study(
            args.problems,
            args.predictions,
            split=args.split,
            n=args.n,
            seed=args.seed,
            labels=args.labels,
            labeller=args.labeller,
            ask=None if args.count_only else input,
            hints=args.hints,
            pictures=args.pictures,
            second_labels=args.agreement,
            other=args.other,
            partial=args.partial,
            **source_options(args),
        )
    print(format_study(result))
    if "labels" in result:
        result["published"] = PUBLISHED_HALLUCINATION
        for version, found in PUBLISHED_HALLUCINATION.items():
            print(
                f"published [{version}]: {found['hallucinated']:.0f} % of {found['n']} errors of the text-only model "
                f"hallucinated, {found['corrected_by_vision']:.1f} % of those corrected by vision"
            )
    if args.json:
        write_json(args.json, result)
    return 0
