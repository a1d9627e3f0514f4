"""See Multimodal-CoT work from nothing on a laptop: generated questions with drawn pictures, networks from scratch.

  mmcot demo --quick      one skill, one model: does the picture decide? A minute or two on two cores
  mmcot demo              four skills, three models compared: minutes
  mmcot app               then: ask it in the browser

Three models learn the same questions (four skills of the toy data set, over all three subjects): (a) one stage with
pictures, which answers at once; (b) two stages without pictures; (c) two stages with pictures, the paper's method. All
start from one small text network, as the paper's start from one T5. Then (c) is asked with its pictures blanked. The
folder holds runs/, hub/ (the repository of (c)), results.json, report.png. Started again, it goes on where it stopped.
"""

from pathlib import Path

from mmcot.training.commands.options import refuse


def add_arguments(parser) -> None:
    parser.add_argument("--output", default="mmcot-demo", metavar="DIR", help="folder to fill (default: mmcot-demo)")
    parser.add_argument(
        "--quick", action="store_true", help="one skill, the method alone: a minute or two on two cores"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the networks' weights")
    parser.add_argument("--write-readme", metavar="FILE", help="only put a finished demo's table into this README")


def run(args) -> int:
    from mmcot.training.demo import demo, write_readme

    if args.write_readme:
        refuse(args, "with --write-readme, which runs nothing", "quick", "seed")
        write_readme(args.write_readme, Path(args.output) / "results.json")
        return 0
    demo(args.output, quick=args.quick, seed=args.seed)
    return 0
