"""Answer with weights of sixteen, eight or four bits, in less memory, and save them.

    python examples/quantised.py runs/quiz/hub questions.jsonl --with bitsandbytes-8bit
    python examples/quantised.py runs/quiz/hub questions.jsonl --with torchao-int8
    python examples/quantised.py runs/quiz/hub questions.jsonl --with bfloat16 --save smaller

`pip install bitsandbytes` or `pip install torchao`; bfloat16 needs neither. The backbone and the gates are quantised
along; compare accuracies before you rely on four bits. --save writes a repository of these weights, which loads,
answers and is published as any other.
"""

import argparse
import logging

import torch
from transformers import AutoModel, AutoProcessor

from mmcot.training import load_problems

WAYS = ("bitsandbytes-8bit", "bitsandbytes-4bit", "torchao-int8", "bfloat16", "none")


def load(repository: str, how: str):
    """The model, its weights quantised while they are loaded."""
    options = {}
    if how.startswith("bitsandbytes"):
        from transformers import BitsAndBytesConfig

        four = how.endswith("4bit")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=not four, load_in_4bit=four, bnb_4bit_compute_dtype=torch.bfloat16
        )
    elif how.startswith("torchao"):
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        options["quantization_config"] = TorchAoConfig(Int8WeightOnlyConfig())
    elif how == "bfloat16":
        options["dtype"] = torch.bfloat16
    return AutoModel.from_pretrained(repository, trust_remote_code=True, **options).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository")
    parser.add_argument("questions", help="what `load_problems` reads")
    parser.add_argument("--with", dest="how", choices=WAYS, default="bitsandbytes-8bit")
    parser.add_argument("--split")
    parser.add_argument("--save", metavar="DIR", help="write a repository of these weights")
    parser.add_argument("--limit", type=int, default=100)
    args = parser.parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # else a line a layer, that inputs are cast
    model = load(args.repository, args.how)
    processor = AutoProcessor.from_pretrained(args.repository, trust_remote_code=True)
    problems = load_problems(args.questions, args.split)
    problems = [dict(problem) for problem in problems.select(range(min(args.limit, len(problems))))]
    right = 0
    for start in range(0, len(problems), 16):
        batch = problems[start : start + 16]
        with torch.no_grad():
            output = model.generate(**processor(batch).to(model.device))
        results = processor.post_process(output, batch)
        right += sum(
            result["answer_index"] == problem["answer"] for result, problem in zip(results, batch, strict=True)
        )
    if args.save:
        model.save_pretrained(args.save)
    megabytes = model.get_memory_footprint() / 1e6
    print(f"{args.how}: {right} of {len(problems)} right, {megabytes:.1f} MB of weights")


if __name__ == "__main__":
    main()
