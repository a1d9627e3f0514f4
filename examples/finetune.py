# /// script
# requires-python = ">=3.10"
# dependencies = ["mmcot", "trackio"]
# [tool.uv.sources]
# mmcot = { path = ".." }  # a checkout; elsewhere: { git = "https://…" }
# ///
"""Fine-tune Multimodal-CoT on a data set of the Hub or a file, on one GPU, and publish it. Nothing to install:

    uv run examples/finetune.py my-questions.jsonl --repo your-name/my-model
    hf jobs uv run --flavor t4-small --secrets HF_TOKEN examples/finetune.py DATASET --repo your-name/a-model

The defaults fit into a free GPU's 16 GB (a T4 of Colab or Kaggle): FLAN-T5 base, frozen ViT, small
batches. Interrupted, the same command goes on where it was. Further `key=value` go to the recipe, as
`model=google/flan-t5-small` or `report_to=trackio`.
"""

import argparse

from mmcot.training import load_recipe, push, run_recipe
from mmcot.training.evaluation.tables import format_table

FITS = ["per_device_train_batch_size=4", "gradient_accumulation_steps=2", "per_device_eval_batch_size=8"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a data set's name on the Hub, a file, or a folder")
    parser.add_argument("--repo", help="user/name to publish to; without it nothing leaves the machine")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--output", default="runs/finetune")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    recipe = load_recipe("own-data", [f"data={args.data}", f"output_dir={args.output}", *FITS, *args.overrides])
    results = run_recipe(recipe)
    print(format_table(results))
    if args.repo:
        print(push(f"{args.output}/hub", args.repo, private=args.private))
    else:
        print(f"{args.output}/hub holds the model: `mmcot app {args.output}/hub` asks it")


if __name__ == "__main__":
    main()
