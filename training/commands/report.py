"""Write a report of runs: one page that holds everything, and the same in Markdown.

  mmcot report runs/base                                    report.html and report.md
  mmcot report runs/base runs/text --output compare.html    paired test, and what they differ on
  mmcot report runs/base --probe blank=blank.jsonl          how much it looks (file of `mmcot predict --blank-images`)
  mmcot report runs/base --evidence probes.json gate.json   faithfulness and gate too
  mmcot report ours=predictions.jsonl --problems data/scienceqa --split test
  mmcot report runs/base/hub data/scienceqa --split test --output answers.png    only a picture of some answers

The page holds everything in one file: accuracy with intervals and protocol, by skill, grade and context; learning
curves; rationales; whether the scores mean what they say; letters; right and wrong answers with the model's attention.
A RUN is a folder that `mmcot train` left (its output_dir), or a predictions file; NAME=RUN names it. All runs answer
the same questions; the others are tested against the first. Every number comes from the predictions files. An --output
that ends in .png or .jpg draws the answers that a repository gives to questions of a source, with its attention; one
that ends in .svg draws the first alone.
"""

import argparse
from pathlib import Path

from mmcot.training.commands.options import add_partial, refuse
from mmcot.training.commands.source import add_source_arguments, problems_of, source_options
from mmcot.training.common import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output_dir of a training, or a predictions file")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="page, .md alone, or picture")
    parser.add_argument("--problems", metavar="SOURCE", help="the questions (default: what the predictions file says)")
    parser.add_argument("--split", default=None, help="split that was predicted (default: what the file says)")
    parser.add_argument(
        "--probe",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="predictions of the first run's model with other pictures, as blank=FILE or shuffled=FILE",
    )
    parser.add_argument(
        "--evidence",
        nargs="+",
        default=[],
        metavar="FILE",
        help="also show what mmcot probe (probes.json), predict --save-gate or errors --json measured",
    )
    parser.add_argument("--protocol", choices=("generated", "teacher_forced"), help="of files that don't say it")
    parser.add_argument(
        "--model", metavar="MODEL", help="repository whose attention is shown (default: the first run's; none: no)"
    )
    parser.add_argument("--limit", type=int, default=6, metavar="N", help="right and wrong answers in the gallery")
    add_partial(parser)
    parser.add_argument("--json", metavar="OUT", help="write all figures here")
    parser.add_argument("--device", default=None, help="default: the first accelerator, else the CPU")
    add_source_arguments(parser)


def run(args: argparse.Namespace) -> int:
    ending = Path(args.output).suffix.lower()
    if args.limit < (1 if ending in PICTURES else 0):
        raise UserError(f"--limit {args.limit}: give a whole number of at least {1 if ending in PICTURES else 0}")
    if ending in PICTURES:
        names = ("problems", "probe", "evidence", "protocol", "partial", "model", "json")
        refuse(args, f"on a picture ({args.output}): give MODEL and SOURCE alone", *names)
        if ending == ".svg":
            refuse(args, "on an .svg file, which holds one answer", "limit")
        return _picture(args)
    gallery = ("model", "device", "columns", "allow_urls", "allow_outside")
    if ending == ".md":
        refuse(args, "on a Markdown file, which has no gallery", "limit", *gallery)
    if args.limit == 0:
        refuse(args, "with --limit 0, which leaves the gallery out", *gallery)
    if args.model == "none":
        refuse(args, "with --model none", "device")
    from mmcot.training.report.build import write_report

    probes = {}
    for given in args.probe:
        name, equals, file = given.partition("=")
        if not (name and equals and file):
            raise UserError(f"--probe {given}: give a name and a file, as --probe blank=predictions-blank.jsonl")
        if name in probes:
            raise UserError(f"--probe {given}: there is a probe of that name already")
        probes[name] = file
    written = write_report(
        args.runs,
        args.output,
        source=args.problems,
        split=args.split,
        probes=probes,
        protocol=args.protocol,
        partial=args.partial,
        model=args.model,
        examples=args.limit,
        device=args.device,
        source_options=source_options(args),
        evidence=args.evidence,
        json=args.json,
    )
    print("written: " + ", ".join(map(str, written)))
    return 0


def _picture(args: argparse.Namespace) -> int:
    """Answers of a repository to the first questions with a picture, drawn."""
    from mmcot.training.data.batched import read_column
    from mmcot.training.inference.predict import load_pipeline
    from mmcot.training.report.drawing import draw_report, has_patch_grid

    if len(args.runs) != 2:
        raise UserError(f"--output {args.output}: a picture is drawn of a repository and a source: MODEL SOURCE")
    model, args.problems = args.runs
    limit, args.limit = args.limit, None  # of problems with a picture
    problems = problems_of(args, args.split)
    chosen = [i for i, images in enumerate(read_column(problems, "images")) if images][:limit]
    if not chosen:
        raise UserError(f"{args.problems}: no problem has a picture")
    problems = [dict(problems[i]) for i in chosen]
    pipeline = load_pipeline(model, args.device)
    results = pipeline(problems, return_attention=True)
    if Path(args.output).suffix.lower() == ".svg":
        from mmcot.training.report.answer_picture import draw_answer

        draw_answer(problems[0], results[0], args.output)
        print(f"one answer drawn in {args.output}")
        return 0
    draw_report(problems, results, args.output, title=str(model), patch_grid=has_patch_grid(pipeline.model))
    print(f"{len(problems)} answers drawn in {args.output}")
    return 0
