"""Write rationales and answers of a trained model for a set of problems.

  mmcot predict runs/base/hub data/scienceqa --split test --output predictions.jsonl
  mmcot evaluate --predictions predictions.jsonl --problems data/scienceqa --split test --json scores.json

MODEL is a repository (folder or Hub id). One JSON line a problem: id, answer (index), rationale, scores, generated.
Cut off, the same command goes on where it stopped.
"""

from mmcot.training.commands.source import SOURCE, add_source_arguments, problems_of


def add_arguments(parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="two-stage or one-stage repository: folder or Hub id")
    parser.add_argument("problems", metavar="SOURCE", help=SOURCE)
    parser.add_argument("--split", default=None, help="split of the source (default: all)")
    parser.add_argument("--output", required=True, metavar="FILE", help="predictions, JSON Lines")
    parser.add_argument("--batch-size", type=int, default=64, help="questions at a time; on a GPU rather 512")
    parser.add_argument("--mode", choices=("score", "generate"), default="score", help="score the choices, or decode")
    parser.add_argument("--blank-images", action="store_true", help="what would it say without the pictures?")
    parser.add_argument("--features", metavar="DIR", help="cache of `mmcot features`, instead of the model's backbone")
    parser.add_argument("--num-beams", type=int, default=None)
    parser.add_argument("--max-new-tokens", type=int, default=None, help="limit of a rationale")
    parser.add_argument(
        "--save-gate", metavar="FILE", help="also write how much of each token the picture makes up, by skill (JSON)"
    )
    parser.add_argument("--device", default=None, help="default: the first accelerator, else the CPU")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "int8"),
        default="auto",
        help="auto: bfloat16 where processor or GPU multiply it themselves, else float32; int8: on CPUs",
    )
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="only the first N problems")
    add_source_arguments(parser)


def run(args) -> int:
    from pathlib import Path

    from mmcot.training.inference.predict import predict

    problems = problems_of(args, args.split)
    if args.save_gate and Path(args.output).exists() and not Path(args.save_gate).exists():
        return _save_gate(args, problems)  # it was cut off behind the predictions
    options = {"num_beams": args.num_beams, "max_new_tokens": args.max_new_tokens}
    path = predict(
        args.model,
        problems,
        args.output,
        batch_size=args.batch_size,
        mode=args.mode,
        blank_images=args.blank_images,
        device=args.device,
        dtype=args.dtype,
        features=args.features,
        source=args.problems,
        **{name: value for name, value in options.items() if value is not None},
    )
    print(f"{len(problems)} predictions in {path}")
    return _save_gate(args, problems) if args.save_gate else 0


def _save_gate(args, problems) -> int:
    from mmcot.training.inference.gate import format_gate, save_gate

    options = {name: getattr(args, name) for name in ("batch_size", "device", "features", "blank_images")}
    print(format_gate(save_gate(args.model, problems, args.output, args.save_gate, **options)))
    print(f"all of it: {args.save_gate}")
    return 0
