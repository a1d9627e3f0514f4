"""The repository that a run leaves in `hub/`: what `AutoModel`, `AutoProcessor` and `pipeline` load."""

import os
from pathlib import Path
from typing import Any

from mmcot.training.hub.cards import DATASETS, config_facts, model_card
from mmcot.training.hub.examples import write_examples
from mmcot.training.hub.extras import choose_example, guessing, requirements_of, write_extras, write_picture
from mmcot.training.stages.arguments import PUSH_KEYS
from mmcot.training.stages.recipe import Recipe

# hyper-parameters that a card tells, beside those that a recipe sets itself
TOLD = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")

# what a recipe says of the screen and the machine
UNTOLD = {"report_to", "run_name", "project", "disable_tqdm", "use_cpu", "per_device_eval_batch_size", "logging_steps"}
UNTOLD |= {*PUSH_KEYS, "hub_strategy"}  # a token among them


def write_repository(run, rationale, answer, results: dict[str, dict], folder: Path | None = None) -> Path:
    """Writes `hub/`: both stages (or the one), backbone, processor, code and card.

    Args:
        run: the `Run`.
        rationale, answer: trained stages; `rationale` is None in a one-stage run.
        results: split → scores, for the card: the test split's, where there are any.
        folder: where to; default: `hub` in the run's folder.
    """
    from mmcot import MMCoTModel

    folder, recipe = folder or run.folder / "hub", run.recipe
    if recipe.one_stage:
        model = _with_vision(answer, recipe)
    else:
        model = MMCoTModel.from_stages(rationale, None if recipe.share_stages else answer, run.processor)
        model = _with_vision(model, recipe)
    model.generation_config.max_new_tokens = recipe.max_new_tokens
    model.generation_config.num_beams = recipe.num_beams
    for config in (model.config, *(getattr(model.config, name, None) for name in model.config.sub_configs)):
        if config is not None:
            config.name_or_path = ""  # where a stage lay on this machine is nobody's business
    split = "test" if "test" in results else "val"
    dataset = dataset_of(recipe, run.problems)
    requirements = requirements_of(model.config.to_dict())
    facts = {**config_facts(model.config.to_dict()), **run_facts(recipe, model), "dataset": dataset, "split": split}
    facts |= {"requirements": requirements, **measured_facts(run, results, split)}
    facts["split"] = (recipe.test_split if split == "test" else recipe.eval_split) or split  # as the data call it
    folder.mkdir(parents=True, exist_ok=True)
    example = facts["example"]
    if example is not None:
        example |= {"image": write_picture(example.pop("problem"), folder), "split": facts["split"]}
    card = model_card(results.get(split), facts)
    model.save_pretrained(folder, processor=run.processor, model_card=card)
    if recipe.card_example and "test" in run.problems:
        write_examples(run.problems["test"], folder)
    predictions = run.predictions_file("answer", "test") if recipe.card_example else None
    write_extras(folder, requirements, results, predictions, dataset, recipe.test_split)
    _ordinary_modes(folder)
    return folder


def measured_facts(run, results: dict[str, dict], split: str) -> dict:
    """What a card tells of the run's data, machine and answers: `example`, `guessing`, `blank`, `sizes`, `machine`."""
    from mmcot.training.evaluation.reading import read_predictions
    from mmcot.training.stages.manifest import read_manifest
    from mmcot.training.stages.progress import shown_time
    from mmcot.training.stages.run import BLANK

    facts: dict[str, Any] = {"example": None, "blank": results.get(BLANK)}
    facts["sizes"] = {name: (len(some), sum(some["has_image"][:])) for name, some in run.problems.items()}
    if run.stream is not None:
        facts["sizes"]["train"] = None
    if split in run.problems:
        facts["guessing"] = guessing(run.problems[split])
        answers = run.predictions_file("answer", split)
        if run.recipe.card_example and answers.is_file():
            facts["example"] = choose_example(run.problems[split], read_predictions(answers))
    found = [read_manifest(run.folder / stage) for stage in run.stages]
    trained = [manifest for manifest in found if manifest is not None and "machine" in manifest]
    if trained:
        seconds = sum(manifest["seconds"] for manifest in trained)
        facts["machine"] = {**trained[-1]["machine"], "time": shown_time(seconds)}
    return facts


def _with_vision(model, recipe: Recipe):
    """The model with its backbone inside, also where it was trained on cached features: pictures need it."""
    from mmcot.training.stages.build import vision_of
    from mmcot.vision_mmcot import build_vision

    holder = model if hasattr(model, "rationale") else model.encoder
    if recipe.vision is None or holder.vision is not None:
        return model
    config, vision, feature = vision_of(recipe)
    holder.vision = build_vision(config) if vision is None else vision
    for own in {id(model.config): model.config, id(holder.config): holder.config}.values():
        own.vision_config, own.vision_feature = config, feature
    return model.eval()


def _ordinary_modes(folder: Path) -> None:
    """Gives every file the mode that a new file has here: some libraries write for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def run_facts(recipe: Recipe, model) -> dict:
    """What a card tells of the run: data and licence, starting point, size, hyper-parameters."""
    from mmcot.training.stages.recipe import TRAINING_DEFAULTS

    def hyperparameters(stage: str) -> dict:
        values = {**TRAINING_DEFAULTS, **recipe.for_stage(stage).training}
        names = [name for name in values if name in TOLD or (name in recipe.training and name not in UNTOLD)]
        # a path of this machine tells nobody anything
        return {name: values[name] for name in names if not (isinstance(values[name], str) and "/" in values[name])}

    stages = ["answer"] if recipe.one_stage else ["rationale", "answer"]
    return {
        "base_model": recipe.model if isinstance(recipe.model, str) else None,
        "rationales": "a teacher's" if recipe.rationales else "cross-fitted" if recipe.cross_fit else "the data's own",
        "num_parameters": model.num_parameters(),
        "hyperparameters": {stage: hyperparameters(stage) for stage in stages},
    }


def dataset_of(recipe: Recipe, problems) -> dict:
    """The data of a recipe as `model_card` wants it: what was really there, and the licence that the user names.

    Args:
        problems: split → records, as `Run.problems`.
    """
    from mmcot.training.data.description import describe_source

    splits = {split: some.remove_columns(["images"]) for split, some in problems.items()}
    found = describe_source(recipe.data, splits, license=recipe.data_license, name=recipe.data_name)
    if recipe.streaming and found["kind"] == "scienceqa" and not recipe.data_name:
        found["name"] = "questions of ScienceQA (a stream, not counted)"
    known = DATASETS.get(found["kind"], {})
    limitation = f"Trained on {found['name']}; other questions are outside of what was tested."
    return {
        "kind": found["kind"],
        "name": found["name"],
        "id": found["id"] if found["kind"] != "own" or found["id"] else None,
        "license": found["license"] or "other",
        "limitation": known.get("limitation", limitation),
    }
