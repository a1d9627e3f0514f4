"""Write rationales and answers of a trained model for a set of problems.

  mmcot predict runs/base/hub data/scienceqa --split test --output predictions.jsonl
  mmcot evaluate --predictions predictions.jsonl --problems data/scienceqa --split test --json scores.json
  torchrun --nproc_per_node 2 -m mmcot.training.cli predict runs/base/hub …   # two processes, each with half of them

MODEL is a repository (folder or Hub id). One JSON line a problem: id, answer (index), rationale, scores, generated.
Cut off, the same command goes on where it stopped.
"""

from mmcot.training.commands.options import refuse
from mmcot.training.commands.source import SOURCE, add_source_arguments, problems_of

SEED = (
    "of sampled rationales (default: 0). They are drawn batch by batch: the same ones come again with the same "
    "--batch-size and number of processes, and if nothing cuts the command off"
)


def add_arguments(parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="two-stage or one-stage repository: folder or Hub id")
    parser.add_argument("problems", metavar="SOURCE", help=SOURCE)
    parser.add_argument("--split", default=None, help="split of the source (default: all)")
    parser.add_argument("--output", required=True, metavar="FILE", help="predictions, JSON Lines")
    parser.add_argument("--batch-size", type=int, default=64, help="questions at a time; on a GPU rather 512")
    parser.add_argument("--mode", choices=("score", "generate"), default="score", help="score the choices, or decode")
    parser.add_argument("--blank-images", action="store_true", help="what would it say without the pictures?")
    parser.add_argument("--features", metavar="DIR", help="cache of `mmcot features`, instead of the model's backbone")
    parser.add_argument(
        "--num-beams",
        type=int,
        default=None,
        metavar="N",
        help="beams of the rationale's search (default: the model's)",
    )
    parser.add_argument(
        "--rationales",
        type=int,
        default=1,
        metavar="K",
        help="sample K rationales a question (self-consistency); with --num-beams its K best beams",
    )
    parser.add_argument(
        "--choose",
        choices=("votes", "scores", "confidence"),
        default=None,
        help="what makes one answer of several rationales: votes (default), the sum of the choices' probabilities, or "
        "the answer stage's confidence",
    )
    parser.add_argument("--temperature", type=float, default=None, help="of sampled rationales")
    parser.add_argument("--seed", type=int, default=0, help=SEED)
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

    from mmcot.training.common import UserError
    from mmcot.training.inference.predict import predict

    if args.rationales == 1 or (args.num_beams or 1) > 1:
        refuse(args, "where nothing is sampled: give --rationales K without --num-beams", "seed")
    options = {"num_beams": args.num_beams, "max_new_tokens": args.max_new_tokens, **_several(args)}
    if args.blank_images and args.features:
        raise UserError("--features has no effect with --blank-images: leave one of them out")
    if args.save_gate and Path(args.save_gate).absolute() == Path(args.output).absolute():
        raise UserError(f"--save-gate {args.save_gate}: is --output too: name another file")
    if args.save_gate and Path(args.save_gate).is_dir():
        raise UserError(f"--save-gate {args.save_gate}: is a folder: name a file")
    problems = problems_of(args, args.split)
    if args.save_gate and Path(args.output).exists() and not Path(args.save_gate).exists():
        _check_same(args, options)
        return _save_gate(args, problems)  # it was cut off behind the predictions
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
        seed=args.seed,
        **{name: value for name, value in options.items() if value is not None},
    )
    print(f"{len(problems)} predictions in {path}")
    return _save_gate(args, problems) if args.save_gate else 0


def _check_same(args, options: dict) -> None:
    """Refuses predictions that are there already, of other options than these."""
    from mmcot.training.common import ExistingFileError
    from mmcot.training.evaluation.predictions import read_header

    facts = read_header(args.output)
    decoding = facts.get("decoding") or {}
    asked = {"mode": args.mode, "images": "blank" if args.blank_images else "given"}
    if args.dtype != "auto":
        asked["dtype"] = args.dtype
    other = [name for name, value in asked.items() if facts.get(name) != value]
    other += [name for name, value in options.items() if value is not None and decoding.get(name) != value]
    if other:
        raise ExistingFileError(
            f"{args.output} is there already, with another {', '.join(other)}: choose another name, or remove it"
        )


def _save_gate(args, problems) -> int:
    from mmcot.training.inference.gate import format_gate, save_gate

    options = {name: getattr(args, name) for name in ("batch_size", "device", "features", "blank_images")}
    print(format_gate(save_gate(args.model, problems, args.output, args.save_gate, **options)))
    print(f"all of it: {args.save_gate}")
    return 0


def _several(args) -> dict:
    """The pipeline's options for several rationales a question."""
    from mmcot.training.common import UserError

    count, beams = args.rationales, args.num_beams or 1
    if count < 1:
        raise UserError(f"--rationales {count}: give a whole number of at least 1")
    if count == 1:
        given = {"--choose": args.choose, "--temperature": args.temperature}
        for option, value in given.items():
            if value is not None:
                raise UserError(f"{option} has no effect on one rationale a question: give --rationales too")
        return {}
    if args.mode == "generate" and args.choose in ("scores", "confidence"):
        raise UserError(f"--choose {args.choose} needs the options' scores: leave out --mode generate")
    if beams > 1:
        if count > beams:
            raise UserError(f"--rationales {count}: a search with --num-beams {beams} has {beams} at most")
        if args.temperature is not None:
            raise UserError("--temperature has no effect on a beam search: leave out it or --num-beams")
        return {"num_return_sequences": count, "choose": args.choose}
    if args.temperature is not None and not 1e-3 <= args.temperature <= 1e3:
        raise UserError(f"--temperature {args.temperature}: give a number above 0, such as 0.7")
    return {"self_consistency": count, "choose": args.choose, "temperature": args.temperature}
