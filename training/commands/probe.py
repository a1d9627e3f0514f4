"""Does the answer follow from the rationale, and the rationale from the picture? Ask again, changed.

  mmcot probe runs/base/hub data/scienceqa --split test --output probes/base
  mmcot probe mmcot-demo/hub embedded:n=200 --split test --probes edited truncated --output probes/demo

blank: without the picture. other-picture: with another question's. shuffled: options in another order. edited: the
rationale names another option. truncated: the first 0, 25, 50 and 75 % of the rationale's words. OUTPUT receives a
predictions file a probe and probes.json. Cut off, the same command goes on where it stopped.
"""

from mmcot.training.commands.source import SOURCE, add_source_arguments, problems_of


def add_arguments(parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="two-stage repository: folder or Hub id")
    parser.add_argument("problems", metavar="SOURCE", help=SOURCE)
    parser.add_argument("--split", default=None, help="split of the source (default: all)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--probes", nargs="+", metavar="PROBE", help="only these (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--batch-size", type=int, default=64, help="questions at a time")
    parser.add_argument("--max-new-tokens", type=int, default=None, help="limit of a rationale")
    parser.add_argument("--device", default=None, help="default: the first accelerator, else the CPU")
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="only the first N problems")
    add_source_arguments(parser)


def run(args) -> int:
    from mmcot.training.inference.probe import PROBES, format_probes, probe

    result = probe(
        args.model,
        problems_of(args, args.split, require_answer=True),
        args.output,
        probes=args.probes or PROBES,
        seed=args.seed,
        batch_size=args.batch_size,
        device=args.device,
        source=args.problems,
        **({} if args.max_new_tokens is None else {"max_new_tokens": args.max_new_tokens}),
    )
    print(format_probes(result))
    print(f"all of it: {args.output}/probes.json")
    return 0
