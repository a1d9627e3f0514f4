"""Repeat a published result of the paper and compare.

  mmcot reproduce base-v5 --dry-run           what would be downloaded, how large, and which numbers are expected
  mmcot reproduce base-v5                     the released weights on ScienceQA's test split
  mmcot reproduce base-v1 --features extract  with features that are computed here, from the pictures
  mmcot reproduce base-v5 --train             the paper's training instead (the recipe of that name)

Released weights are read with the paper's features, prompts and protocol: features → rationales → answers → the nine
columns, each compared with the published one. OUTPUT receives the converted repository (hub/), both stages'
predictions and result.json. Cut off, the same command goes on where it stopped.

What is assumed about where things are: weights and features of v5 and the feature files are the authors' on the Hub
(cooelf/mm-cot, cooelf/vision_features), captions are in their code repository on GitHub. The released features are
keyed by question ids, which derek-thomas/ScienceQA lacks; so problems with their ids, name_map.json and the weights of
base-v1 come from a copy of the authors' Google Drive files on the Hub (acheong08/mm-cot), which has no pictures.
With --features extract the problems are derek-thomas/ScienceQA's, with pictures but without captions. No weights of
large-v1 are on the Hub. Each place can be replaced by an option: a path, https://…, or
hf://[datasets/]owner/name[@revision][/path].
"""

import argparse
from pathlib import Path

from mmcot.training.commands.options import refuse
from mmcot.training.common import UserError
from mmcot.training.paper.reproduce import PLACES, choose_places, format_plan, make_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=tuple(PLACES), help="published model")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="with --train: values before the recipe's")
    parser.add_argument("--train", action="store_true", help="train by the paper's recipe instead")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--output", metavar="DIR", help="default: runs/reproduce/NAME, with --train NAME-trained")
    parser.add_argument(
        "--rationale-weights", metavar="PLACE", help="checkpoint (folder or .zip) of the rationale stage"
    )
    parser.add_argument("--answer-weights", metavar="PLACE", help="checkpoint of the answer stage")
    parser.add_argument("--tokenizer", metavar="PLACE", help="default: the checkpoints' own, else the base model's")
    parser.add_argument("--data", metavar="PLACE", help="problems: an original ScienceQA folder, parquet, JSON Lines")
    parser.add_argument("--captions", metavar="PLACE", help="captions by question id, as the original's JSON file")
    parser.add_argument(
        "--features", metavar="PLACE", help="released feature file, a feature cache, or the word extract"
    )
    parser.add_argument("--name-map", metavar="PLACE", help="name_map.json of the released feature file")
    parser.add_argument("--max-samples", type=int, metavar="N", help="only the first N test questions")
    parser.add_argument("--batch-size", type=int, default=16, help="questions at a time (default: 16)")


def run(args: argparse.Namespace) -> int:
    from mmcot.training.paper.published import format_comparison_with_published
    from mmcot.training.paper.released import evaluate_released, train_as_published

    if args.overrides and not args.train:
        raise UserError(f"{args.overrides[0]}: values of the recipe are for --train")
    if args.train:
        names = ("rationale_weights", "answer_weights", "tokenizer", "batch_size")
        refuse(args, "with --train, which reads no released weights: give key=value of the recipe", *names)
    if args.features == "extract":
        refuse(args, "with --features extract, which reads no feature file", "name_map")
    if args.train and args.max_samples is not None:
        raise UserError("--max-samples is for released weights; with --train say max_train_samples=N and the like")
    places = choose_places(args)
    plan = make_plan(args.name, places, args.train, args.overrides)
    print(format_plan(args.name, plan, args.train), flush=True)
    if args.dry_run:
        return 0
    output = args.output or f"runs/reproduce/{args.name}{'-trained' if args.train else ''}"
    if args.train:
        result = train_as_published(args.name, plan, output, args.overrides)
    else:
        result = evaluate_released(args.name, plan, output, max_samples=args.max_samples, batch_size=args.batch_size)
    print(format_comparison_with_published(args.name, result["comparison"]))
    for note in result["notes"]:
        print(f"note: {note}")
    print(f"all of it: {Path(output) / 'result.json'}")
    return 0
