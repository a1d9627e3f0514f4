"""Draw a model's answers: picture, where it looked, question, rationale, answer.

mmcot report runs/base/hub data/scienceqa --split test --limit 6 --output report.png
"""

from mmcot.training.commands.source import SOURCE, add_source_arguments, problems_of
from mmcot.training.common import UserError


def add_arguments(parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="repository: folder or Hub id")
    parser.add_argument("problems", metavar="SOURCE", help=SOURCE)
    parser.add_argument("--split", default=None)
    parser.add_argument("--output", default="report.png", metavar="FILE")
    parser.add_argument("--limit", type=int, default=6, metavar="N", help="draw the first N problems with a picture")
    parser.add_argument("--device", default=None)
    add_source_arguments(parser)


def run(args) -> int:
    from mmcot.training.inference.predict import load_pipeline
    from mmcot.training.report.drawing import draw_report, has_patch_grid

    limit, args.limit = args.limit, None  # of problems with a picture
    problems = problems_of(args, args.split)
    chosen = [i for i, images in enumerate(problems["images"]) if images][:limit]
    if not chosen:
        raise UserError(f"{args.problems}: no problem has a picture")
    problems = [dict(problems[i]) for i in chosen]
    pipeline = load_pipeline(args.model, args.device)
    results = pipeline(problems, return_attention=True)
    draw_report(problems, results, args.output, title=str(args.model), patch_grid=has_patch_grid(pipeline.model))
    print(f"{len(problems)} answers drawn in {args.output}")
    return 0
