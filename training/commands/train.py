"""Train a recipe: the rationale stage, the answer stage, or both one after the other.

  mmcot train embedded output_dir=runs/embedded
  accelerate launch -m mmcot.training.train base-v5 data=data/scienceqa output_dir=runs/base
  mmcot train my-recipe.yaml learning_rate=1e-4 answer.num_train_epochs=10

RECIPE is a YAML file, or the name of one that comes with the package. Its keys are those of transformers'
Seq2SeqTrainingArguments and of mmcot.training.stages.recipe.Recipe. The run leaves in output_dir: rationale/ and
answer/ (the trained stages), their predictions, results_val.json and results_test.json, and hub/, the repository to
use and to publish. Run again, it skips what is done and goes on with what was cut off.
"""


def add_arguments(parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of a recipe of the package")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="values that go before the recipe's")


def run(args) -> int:
    from accelerate import PartialState

    from mmcot.training.evaluation.tables import format_table
    from mmcot.training.stages.recipe import load_recipe
    from mmcot.training.train import run_recipe

    results = run_recipe(load_recipe(args.recipe, args.overrides))
    if PartialState().is_main_process and results:
        print(format_table(results))
    return 0
