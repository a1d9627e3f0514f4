"""Time training, inference and the data path against the published project's way and other programs.

  mmcot benchmark train --shape small --json train.json
  mmcot benchmark all --device cuda --json gpu.json
  mmcot benchmark dtypes --model mmcot-demo/hub --json docs/results/dtypes.json
  mmcot benchmark --write-readme README.md --from gpu.json cpu.json

`peers` runs a plain T5 in CTranslate2, onnxruntime (extra [peers]) and transformers; `dtypes` compares a model's
answers in float32, bfloat16 and int8. Arms take turns in one process, so that a busy machine slows both; ratios are
pair by pair. Networks have random weights; questions are as long as ScienceQA's. Without --shape: small on a CPU,
base and large on a GPU.
"""

import argparse
import json
from pathlib import Path

from mmcot.training.benchmark.run import PARTS
from mmcot.training.commands.options import refuse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def number(name: str, default, text: str) -> None:
        parser.add_argument(name, type=int, default=default, metavar="N", help=text)

    parser.add_argument("part", nargs="?", choices=(*PARTS, "all", "dtypes"), help="what to time")
    parser.add_argument(
        "--shape",
        choices=("tiny", "small", "base", "large"),
        nargs="+",
        help="T5's (default small, or base and large)",
    )
    parser.add_argument(
        "--features", choices=("vit", "detr", "clip", "resnet"), default="vit", help="train, generate: of pictures"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--json", metavar="OUT", help="write the figures here")
    number("--threads", None, "threads on a CPU (default: PyTorch's)")
    number("--repeats", 3, "pairs of runs (default 3)")
    number("--seconds", None, "repeat no more after this time (default on a GPU: 420)")
    number("--batch-size", None, "train: the recipe's batch (default 4 on a CPU, 8 on a GPU)")
    parser.add_argument("--tokens-per-batch", type=int, nargs="+", metavar="N", help="train: larger batches to try")
    number("--samples", None, "train: samples in one of our runs (default 48, or 1,024 on a GPU)")
    number("--original-steps", None, "train: steps in one run of the original (default 1, or 5)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="train: also compiled (default: GPU)")
    number(
        "--questions", None, "generate, peers: questions in one of our runs (default 128, or 4,241; peers at most 64)"
    )
    number("--original-questions", 8, "generate: questions in one run of the original (default 8)")
    number("--max-new-tokens", None, "generate, peers: limit of a rationale (default 32, or 512)")
    number("--slots", None, "generate, peers: rows written at a time (default 64, or 512)")
    number("--pictures", None, "train, generate: different pictures (default 64, or 1,024)")
    number("--cached-pictures", 11208, "data: pictures in the cache")
    number("--problems", 12726, "data: problems of the run that is started")
    parser.add_argument("--model", metavar="REPO", help="dtypes: a repository, such as mmcot-demo/hub")
    parser.add_argument("--source", help="dtypes: questions (default: the demo's)")
    parser.add_argument("--split", default="test", help="dtypes: of the source (default test)")
    number("--limit", None, "dtypes: only the first N questions")
    parser.add_argument("--predictions", metavar="DIR", help="dtypes: keep the predictions files here")
    parser.add_argument("--write-readme", metavar="FILE", help="write the speed table between the file's markers")
    parser.add_argument("--from", dest="results", nargs="+", metavar="JSON", help="results for --write-readme")


def run(args) -> int:
    from mmcot.training.benchmark.run import benchmark
    from mmcot.training.benchmark.table import describe, write_table
    from mmcot.training.common import UserError

    _refuse_ignored(args)
    if args.write_readme:
        if not args.results:
            raise UserError("--write-readme needs --from RESULTS.json …")
        write_table(args.write_readme, [json.loads(Path(path).read_text(encoding="utf-8")) for path in args.results])
        return 0
    if args.part is None:
        raise UserError(f"what to time? One of {', '.join((*PARTS, 'all'))}")
    if args.part == "dtypes":
        return _dtypes(args)
    for name in COUNTS:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: give a whole number of at least 1")
    print(describe(benchmark(args)))
    return 0


# options that each part reads, beside --json and --threads
READ = {
    "train": {"features", "pictures", "batch_size", "tokens_per_batch", "samples", "original_steps", "compile"},
    "generate": {"features", "pictures", "questions", "original_questions", "max_new_tokens", "slots"},
    "peers": {"questions", "max_new_tokens", "slots"},
    "data": {"cached_pictures", "problems"},
    "processes": {"pictures"},
}
READ = {part: {*names, "shape", "device", "repeats", "seconds"} for part, names in READ.items()}
READ |= {"all": set().union(*READ.values()), "dtypes": {"model", "source", "split", "limit", "predictions"}}


def _refuse_ignored(args) -> None:
    everything = set().union(*READ.values())
    if args.write_readme:
        refuse(args, "with --write-readme, which times nothing", *sorted({*everything, "json", "threads"}))
    elif args.part is not None:
        refuse(args, "without --write-readme", "results")
        refuse(args, f"on the part {args.part}", *sorted(everything - READ[args.part]))


def _dtypes(args) -> int:
    import torch

    from mmcot.training.benchmark.dtypes import DEMO_QUESTIONS, compare_dtypes
    from mmcot.training.benchmark.measure import environment
    from mmcot.training.benchmark.table import describe
    from mmcot.training.common import UserError, write_json

    if args.model is None:
        raise UserError("benchmark dtypes needs --model, a repository such as mmcot-demo/hub")
    if args.threads:
        torch.set_num_threads(args.threads)
    found = compare_dtypes(args.model, args.source or DEMO_QUESTIONS, args.split, args.limit, args.predictions)
    result = {"environment": environment(torch.device("cpu")), "shapes": {"demo": {"dtypes": found}}}
    if args.json:
        write_json(args.json, result)
    print(describe(result))
    return 0


COUNTS = ("threads", "repeats", "batch_size", "samples", "original_steps", "questions", "original_questions")
COUNTS += ("max_new_tokens", "slots", "pictures", "cached_pictures", "problems")
