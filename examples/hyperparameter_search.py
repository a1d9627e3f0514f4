"""Look for a stage's learning rate and batch size with the Trainer's own search.

    python examples/hyperparameter_search.py my-questions.jsonl --stage answer --trials 10

`pip install optuna` (transformers takes Ray Tune and W&B as well: `backend=`). What it finds goes into a recipe, or
onto the command line: `mmcot train my-questions.jsonl answer.learning_rate=…`.
"""

import argparse
from pathlib import Path

from mmcot.training import load_recipe
from mmcot.training.stages.arguments import METRICS, training_arguments
from mmcot.training.stages.build import build_stage_model
from mmcot.training.stages.metrics import metrics_of
from mmcot.training.stages.run import Run
from mmcot.training.stages.samples import StageCollator
from mmcot.training.stages.trainer import StageTrainer


def space(trial) -> dict:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True),
        "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [4, 8, 16]),
    }


def search(recipe, stage: str, trials: int):
    """The best of `trials` trainings of a stage, by ROUGE-L or accuracy on the validation split."""
    run, of_stage = Run(recipe), recipe.for_stage(stage)

    def fresh(trial=None):
        model = build_stage_model(of_stage, stage, len(run.processor.tokenizer))
        model.processor = run.processor
        return model

    trainer = StageTrainer(
        model_init=fresh,
        args=training_arguments(of_stage, Path(recipe.output_dir) / "search", has_eval=True),
        train_dataset=run.training_samples(stage),
        eval_dataset=run.samples("val", stage),
        processing_class=run.processor,
        data_collator=StageCollator(run.processor, with_images=fresh().config.has_fusion),
        compute_metrics=metrics_of(stage, run.processor),
    )
    metric = f"eval_{METRICS[stage]}"
    return trainer.hyperparameter_search(
        hp_space=space, n_trials=trials, direction="maximize", backend="optuna", compute_objective=lambda m: m[metric]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe's name or file, or questions")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--stage", choices=("rationale", "answer"), default="answer")
    parser.add_argument("--trials", type=int, default=10)
    args = parser.parse_intermixed_args()
    unsaved = ["save_strategy=no", "load_best_model_at_end=false"]
    best = search(load_recipe(args.recipe, [*args.overrides, *unsaved]), args.stage, args.trials)
    print(f"best: {best.objective:.2f} with {best.hyperparameters}")


if __name__ == "__main__":
    main()
