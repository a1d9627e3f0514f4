"""Make any model reason about the questions, by one of the published ways; predictions as `mmcot predict` writes them.

  mmcot reason zero-shot-cot --model google/flan-t5-large data/scienceqa --split test --output zero-shot.jsonl
  mmcot reason few-shot-cot --model HuggingFaceTB/SmolVLM2-2.2B-Instruct data/scienceqa --split test --output few.jsonl
  mmcot reason few-shot-cot --endpoint http://localhost:8000/v1 --model NAME data/scienceqa --split test \\
      --prompt-format QCM-ALE --shots 2 --output gpt.jsonl
  mmcot evaluate --predictions few.jsonl --problems data/scienceqa --split test

METHOD: direct, few-shot-cot (Wei 2022), zero-shot-cot (Kojima 2022), auto-cot (Zhang 2022), complexity (Fu 2022),
promptpg (Lu 2022), least-to-most (Zhou 2022). MODEL is whatever transformers loads (causal, sequence-to-sequence, or
image-text-to-text, which sees the pictures), or a model behind an OpenAI-compatible endpoint. Every raw completion
is kept in OUTPUT.calls.jsonl. Cut off, the same command goes on and asks nothing twice.
"""

import argparse

from mmcot.training.commands.options import refuse
from mmcot.training.commands.source import SOURCE, add_source_arguments, problems_of
from mmcot.training.reasoning import METHODS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", choices=tuple(METHODS), metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("problems", metavar="SOURCE", help=SOURCE)
    add_source_arguments(parser)
    add_model_arguments(parser)
    parser.add_argument("--split", default="test", help="split that is asked (default: test)")
    parser.add_argument("--output", required=True, metavar="FILE", help="predictions, JSON Lines")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions")
    add_method_arguments(parser)
    parser.add_argument("--score-options", action="store_true", help="compare the letters' log-probabilities")
    parser.add_argument("--samples", type=int, default=1, metavar="K", help="rationales a question, which vote")


def add_model_arguments(parser: argparse.ArgumentParser, name: str = "--model") -> None:
    """Options that say which model answers."""
    model = parser.add_argument_group("model")
    model.add_argument(
        name, dest="model", metavar="MODEL", required=True, help="folder, Hub id, or the name at the endpoint"
    )
    model.add_argument(
        "--endpoint", metavar="URL", help="OpenAI-compatible endpoint, such as http://localhost:8000/v1"
    )
    model.add_argument(
        "--key-variable", default="OPENAI_API_KEY", metavar="NAME", help="environment variable with the endpoint's key"
    )
    model.add_argument("--concurrency", type=int, default=8, metavar="N", help="calls of an endpoint at a time")
    model.add_argument("--text-only", action="store_true", help="send no pictures; captions join the context")
    model.add_argument("--device", help="cpu, cuda, auto (several devices); default: an accelerator if there is one")
    model.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="auto: bfloat16 on a GPU that has it, else float32 (default)",
    )
    model.add_argument("--batch-size", type=int, default=8, metavar="N", help="prompts at a time (default: 8)")
    model.add_argument(
        "--max-tokens-total", type=int, metavar="N", help="stop before more tokens are used, all calls together"
    )


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say how a method asks."""
    method = parser.add_argument_group("method")
    method.add_argument("--demonstrations", metavar="FILE", help="solved problems, JSON Lines, instead of chosen ones")
    method.add_argument("--save-demonstrations", metavar="FILE", help="write the chosen ones, to read and reuse")
    method.add_argument("--train-split", default="train", help="where demonstrations come from (default: train)")
    method.add_argument("--shots", type=int, default=2, metavar="N", help="demonstrations (default: 2; 0: none)")
    method.add_argument(
        "--prompt-format", default="QCM-LEA", help="of few-shot prompts (default: QCM-LEA; GPT-3.5's: QCM-ALE)"
    )
    method.add_argument("--embedding-model", metavar="MODEL", help="sentence-transformers model (auto-cot, promptpg)")
    method.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="of a rationale (default: 256)")
    method.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default; 0.7 for samples)")
    method.add_argument("--seed", type=int, default=0, help="of sampling and of choosing demonstrations")


def run(args: argparse.Namespace) -> int:
    from mmcot.training.evaluation.predictions import read_header
    from mmcot.training.reasoning.reason import reason

    _refuse_ignored(args)
    settings = settings_of(args, samples=args.samples, score_options=args.score_options)
    problems = problems_of(args, args.split)
    path = reason(
        args.method,
        model_of(args),
        problems,
        args.output,
        train=training_problems(args),
        settings=settings,
        source=args.problems,
        split=args.split,
        max_tokens_total=args.max_tokens_total,
        save_demonstrations=args.save_demonstrations,
    )
    tokens = read_header(path)["tokens"]
    print(f"{len(problems)} predictions in {path}; {tokens['prompt']:,} + {tokens['completion']:,} tokens")
    return 0


def _refuse_ignored(args: argparse.Namespace) -> None:
    """Options that the chosen method doesn't read."""
    from mmcot.training.reasoning.methods import NEED_DEMONSTRATIONS

    why = f"with {args.method}"
    if args.method not in (*NEED_DEMONSTRATIONS, "direct"):
        names = ("demonstrations", "save_demonstrations", "train_split", "shots")
        refuse(args, f"{why}, which shows no demonstrations", *names)
    if args.method not in ("few-shot-cot", "complexity", "promptpg"):
        refuse(args, f"{why}, whose prompt is its own", "prompt_format")
    if args.demonstrations:
        refuse(args, "with --demonstrations, all of which are shown", "train_split", "shots")
    if args.method not in ("auto-cot", "promptpg"):
        refuse(args, f"{why}, which compares no questions", "embedding_model")


def check_model_options(args: argparse.Namespace) -> None:
    """Refuses options of a local model with an endpoint, and the other way round."""
    if args.endpoint:
        refuse(args, "with --endpoint, whose model runs elsewhere", "device", "dtype", "batch_size")
    else:
        refuse(args, "without --endpoint", "key_variable", "concurrency")


def settings_of(args: argparse.Namespace, **more):
    """The `Settings` of the options."""
    from mmcot.training.common import UserError
    from mmcot.training.reasoning.demonstrations import read_demonstrations
    from mmcot.training.reasoning.methods import Settings

    check_model_options(args)
    for name in ("limit", "samples", "batch_size", "max_new_tokens", "concurrency", "max_tokens_total"):
        option = f"--{name.replace('_', '-')}"
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise UserError(f"{option} {value}: give a whole number of at least 1")
    if args.shots < 0 or not 0 <= args.temperature <= 1e3:
        raise UserError("--shots and --temperature are numbers that are not negative")
    return Settings(
        demonstrations=tuple(read_demonstrations(args.demonstrations)) if args.demonstrations else (),
        shots=args.shots,
        prompt_format=args.prompt_format,
        images=not args.text_only,
        use_caption=args.text_only,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
        embedding_model=args.embedding_model,
        **more,
    )


def model_of(args: argparse.Namespace):
    """The model that the options name."""
    if args.endpoint:
        from mmcot.training.reasoning.endpoint import Endpoint

        return Endpoint(
            args.endpoint,
            args.model,
            key_variable=args.key_variable,
            concurrency=args.concurrency,
            takes_images=not args.text_only,
        )
    from mmcot.training.reasoning.local_model import is_multimodal_cot, load_model

    if getattr(args, "teacher", False) and is_multimodal_cot(args.model):
        from mmcot.training.reasoning.multimodal_teacher import MultimodalTeacher

        return MultimodalTeacher(args.model, device=args.device, batch_size=args.batch_size)
    return load_model(args.model, device=args.device, dtype=args.dtype, batch_size=args.batch_size)


def training_problems(args: argparse.Namespace):
    """The training split of the source, if demonstrations are to be chosen from it."""
    from mmcot.training.reasoning.methods import NEED_DEMONSTRATIONS

    direct = args.method == "direct" and args.shots > 0
    if args.demonstrations or not (direct or args.method in NEED_DEMONSTRATIONS):
        return None
    return problems_of(argparse.Namespace(**{**vars(args), "limit": None}), args.train_split, require_answer=True)
