"""Let a teacher write rationales for the training questions, and keep those whose answer is right (Fine-tune-CoT).

  mmcot distill --teacher Qwen/Qwen2.5-VL-7B-Instruct data/scienceqa --samples 4 --output rationales.jsonl
  mmcot distill --teacher runs/base/hub my-questions.jsonl --output rationales.jsonl
  mmcot train base-v5 data=my-questions.jsonl rationales=rationales.jsonl

TEACHER is whatever `mmcot reason` takes, or a Multimodal-CoT repository. Data without rationales of its own can be
trained on so. Rationales of the test split are never written. Cut off, the same command goes on and asks nothing
twice.
"""

import argparse

from mmcot.training.commands.options import refuse
from mmcot.training.commands.reason import add_model_arguments, model_of, settings_of
from mmcot.training.commands.source import SOURCE, add_source_arguments, problems_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("problems", metavar="SOURCE", help=SOURCE)
    add_source_arguments(parser)
    add_model_arguments(parser, "--teacher")
    parser.add_argument("--output", required=True, metavar="FILE", help="rationales, JSON Lines")
    parser.add_argument(
        "--splits", nargs="+", default=["train", "val"], help="splits to write for (default: train val)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions of each split")
    parser.add_argument("--samples", type=int, default=1, metavar="D", help="rationales a question (default: 1)")
    method = parser.add_argument_group("how the teacher is asked")
    method.add_argument(
        "--method", default="zero-shot-cot", choices=("zero-shot-cot", "few-shot-cot", "plan"), help="plan: T-SciQ's"
    )
    method.add_argument("--demonstrations", metavar="FILE", help="solved problems for few-shot-cot, JSON Lines")
    method.add_argument("--shots", type=int, default=2, metavar="N", help="demonstrations (default: 2)")
    method.add_argument("--prompt-format", default="QCM-LEA", help="of few-shot prompts (default: QCM-LEA)")
    method.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="of a rationale (default: 256)")
    method.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default; 0.7 for samples)")
    method.add_argument("--seed", type=int, default=0, help="of sampling and of choosing demonstrations")
    parser.set_defaults(embedding_model=None, teacher=True)


def run(args: argparse.Namespace) -> int:
    from mmcot.training.reasoning.distill import distill

    if args.method != "few-shot-cot":
        names = ("demonstrations", "shots", "prompt_format")
        refuse(args, f"with {args.method}, which shows no demonstrations", *names)
    settings = settings_of(args, samples=args.samples)
    problems = {split: problems_of(args, split, require_answer=True) for split in args.splits}
    counts = distill(
        model_of(args),
        problems,
        args.output,
        method=args.method,
        settings=settings,
        source=args.problems,
        max_tokens_total=args.max_tokens_total,
    )
    for split, count in counts.items():
        share = 100 * count["answered"] / count["asked"]
        print(
            f"{split}: {count['kept']} rationales of {count['answered']} of {count['asked']} questions ({share:.1f} %)"
        )
    print(f"{args.output}: train with rationales={args.output}")
    return 0
