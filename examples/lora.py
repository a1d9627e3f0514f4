"""Fine-tune one stage of a trained repository with LoRA (PEFT), and merge it into a new repository.

    python examples/lora.py runs/quiz/hub more-questions.jsonl --stage answer --output runs/quiz-lora

`pip install peft`. Only the adapters are trained, about a percent of the weights. The fusion's layers are adapted too,
as they are ordinary linear layers.
"""

import argparse

from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoProcessor, Seq2SeqTrainer, Seq2SeqTrainingArguments

from mmcot.training import load_problems
from mmcot.training.stages.samples import StageCollator, stage_dataset

TARGETS = ["q", "v", "q_proj", "v_proj"]  # attention of T5, and of the fusion


def finetune(model, processor, problems, stage: str, folder: str, rank: int = 8, **arguments):
    """Trains adapters on a stage of an `MMCoTModel`, in place, and merges them into its weights."""
    network = model.stage_alone(stage)
    adapted = get_peft_model(network, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS))
    adapted.print_trainable_parameters()
    trainer = Seq2SeqTrainer(
        model=adapted,
        args=Seq2SeqTrainingArguments(
            folder, remove_unused_columns=False, label_names=["labels"], save_strategy="no", **arguments
        ),
        train_dataset=stage_dataset(problems, processor, stage),
        data_collator=StageCollator(processor, with_images=network.config.has_fusion),
    )
    trainer.train()
    adapted.save_pretrained(f"{folder}/adapter")  # some MB, to keep or to share alone
    adapted.merge_and_unload()  # the layers that `model` holds too
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository")
    parser.add_argument("questions", help="what `load_problems` reads")
    parser.add_argument("--stage", choices=("rationale", "answer"), default="answer")
    parser.add_argument("--output", default="runs/lora")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    model = AutoModel.from_pretrained(args.repository, trust_remote_code=True)
    if not hasattr(model, "rationale"):
        parser.error(f"{args.repository} has one stage, and this adapts one of two")
    processor = AutoProcessor.from_pretrained(args.repository, trust_remote_code=True)
    problems = load_problems(args.questions, "train")
    settings = {"num_train_epochs": args.epochs, "learning_rate": args.learning_rate}
    finetune(model, processor, problems, args.stage, args.output, args.rank, **settings)
    model.save_pretrained(f"{args.output}/hub", processor=processor)
    print(f"{args.output}/hub holds the merged model; ask it with `mmcot app {args.output}/hub`")


if __name__ == "__main__":
    main()
