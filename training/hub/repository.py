"""The repository that a run leaves in `hub/`: what `AutoModel`, `AutoProcessor` and `pipeline` load."""

from pathlib import Path

from mmcot.training.hub.cards import config_facts, model_card
from mmcot.training.stages.recipe import Recipe

# hyper-parameters that a card tells, beside those that a recipe sets itself
TOLD = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")


def write_repository(run, rationale, answer, results: dict[str, dict]) -> Path:
    """Writes `hub/`: both stages (or the one), backbone, processor, code and card.

    Args:
        run: the `Run`.
        rationale, answer: trained stages; `rationale` is None in a one-stage run.
        results: split → scores, for the card.
    """
    from mmcot import MMCoTModel
    from mmcot.training.stages.build import vision_of

    folder, recipe = run.folder / "hub", run.recipe
    if recipe.one_stage:
        model = answer
    else:
        model = MMCoTModel.from_stages(rationale, None if recipe.share_stages else answer, run.processor)
        if model.vision is None and recipe.vision is not None:  # trained on cached features: pictures need it
            model.config.vision_config, model.vision, model.config.vision_feature = vision_of(recipe)
        model.generation_config.max_new_tokens = recipe.max_new_tokens
        model.generation_config.num_beams = recipe.num_beams
    split = "test" if "test" in results else "val"
    facts = {**config_facts(model.config.to_dict()), **run_facts(recipe, model), "split": split}
    model.save_pretrained(folder, processor=run.processor, model_card=model_card(results.get(split), facts))
    return folder


def run_facts(recipe: Recipe, model) -> dict:
    """What a card tells of the run: data and licence, starting point, size, hyper-parameters."""
    from mmcot.training.stages.recipe import TRAINING_DEFAULTS

    def hyperparameters(stage: str) -> dict:
        values = {**TRAINING_DEFAULTS, **recipe.for_stage(stage).training}
        names = [name for name in values if name in TOLD or name in recipe.training]
        return {name: values[name] for name in names}

    stages = ["answer"] if recipe.one_stage else ["rationale", "answer"]
    return {
        "dataset": dataset_of(recipe),
        "base_model": recipe.model if isinstance(recipe.model, str) else None,
        "num_parameters": model.num_parameters(),
        "hyperparameters": {stage: hyperparameters(stage) for stage in stages},
    }


def dataset_of(recipe: Recipe):
    """The data of a recipe as `model_card` wants it; a user's own data carries the licence that the recipe names."""
    source = str(recipe.data)
    if source.startswith("embedded"):
        return "embedded"
    if (Path(source) / "problems.json").is_file() or "scienceqa" in source.lower():
        return "scienceqa"
    return {
        "name": Path(source).stem,
        "id": None,
        "license": recipe.data_license or "other",
        "limitation": f"Trained on {Path(source).stem}; other questions are outside of what was tested.",
    }
