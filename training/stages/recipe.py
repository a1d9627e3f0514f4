"""Recipes: one YAML file with the keys of `Seq2SeqTrainingArguments` plus the few below.

A recipe may hold the sections `rationale:` and `answer:`, whose keys hold for that stage alone. Any key can be given
on the command line as `key=value` or `answer.key=value`, the value read as YAML. `extends: NAME` takes another
recipe's keys where the file itself has none.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

RECIPES = Path(__file__).parents[1] / "recipes"
STAGES = ("rationale", "answer")

# Our defaults where they differ from transformers'.
TRAINING_DEFAULTS = {
    "learning_rate": 5e-5,
    "num_train_epochs": 20,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "weight_decay": 0.01,
    "lr_scheduler_type": "linear",
    "train_sampling_strategy": "group_by_length",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "predict_with_generate": True,
    "remove_unused_columns": False,
    "logging_steps": 50,
    "report_to": "none",
    "seed": 42,
}
# What may differ between the start of a run and its resumption.
VOLATILE = (
    "output_dir",
    "report_to",
    "run_name",
    "dataloader_num_workers",
    "disable_tqdm",
    "use_cpu",
    "logging_steps",
)


@dataclass
class Recipe:
    """What a run does, beside the training arguments.

    Args:
        output_dir: folder of the run.
        data: source of problems, as `load_problems` takes it.
        data_license: licence of own data, and so of the weights, for the model card; known for ScienceQA.
        train_split, eval_split, test_split: names of the splits; evaluation and test may be null.
        max_train_samples, max_eval_samples, max_test_samples: take only the first so many.
        image_rule: "all" pictures of a problem, the "original" project's choice, or "none" (see `load_problems`).
        stages: "both", "rationale" or "answer".
        model: a checkpoint (T5, FLAN-T5, UnifiedQA, or one of ours), or the sizes of a fresh network as `T5Config` has
            them.
        tokenizer: checkpoint folder, Hub id or tokenizer.json; "train" makes one from the training texts; default: the
            model's.
        vision: preset (detr, vit, clip, resnet), checkpoint, or configuration of a fresh backbone; null: text only.
        features: cache of image features (`mmcot features`), read instead of running the backbone.
        freeze_vision: leave the backbone as it is.
        keep_images: hold preprocessed pictures in memory; for small sets and many epochs.
        share_stages: train one set of weights for both stages, on the samples of both.
        rationale_format, answer_format: prompt formats; a null rationale_format makes a one-stage run.
        gold_rationales: what the answer stage trains on: the rationale stage's "target", or "lecture_and_solution" as
            the original does in every format.
        use_caption: captions join the context.
        max_source_length, max_target_length: in tokens; sources are shortened by `source_truncation`.
        loss_on_padding: pad targets to max_target_length and count padding in the loss, as the original does.
        tokens_per_batch: source plus target tokens of a process's batch, on average, in place of
            `per_device_train_batch_size` samples: long samples come in small batches, short ones in large.
        position_bias_lr: learning rate of the relative position biases, as a multiple; for networks from scratch.
        protocol: how test rationales come about: "generated", or the original v1's "teacher_forced".
        answer_mode: "score" the choices' letters, or "generate" and parse the answer as the paper does.
        max_new_tokens: limit of a generated rationale; num_beams: of its beam search.
        training: all other keys: `Seq2SeqTrainingArguments`.
    """

    output_dir: str = "runs/mmcot"
    data: str = "embedded"
    data_license: str | None = None
    train_split: str = "train"
    eval_split: str | None = "val"
    test_split: str | None = "test"
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    max_test_samples: int | None = None
    image_rule: str = "all"
    stages: str = "both"
    model: str | dict = "google/flan-t5-base"
    tokenizer: str | None = None
    vision: str | dict | None = None
    vision_feature: str | None = None
    image_size: int | None = None
    features: str | None = None
    freeze_vision: bool = True
    keep_images: bool = False
    share_stages: bool = False
    rationale_format: str | None = "QCM-E"
    answer_format: str = "QCMG-A"
    gold_rationales: str = "target"
    use_caption: bool = False
    max_source_length: int = 512
    max_target_length: int = 512
    source_truncation: str = "keep_ends"
    loss_on_padding: bool = False
    tokens_per_batch: int | None = None
    position_bias_lr: float = 1.0
    protocol: str = "generated"
    answer_mode: str = "score"
    max_new_tokens: int = 512
    num_beams: int = 1
    training: dict[str, Any] = field(default_factory=dict)
    stage_overrides: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def one_stage(self) -> bool:
        return self.rationale_format is None

    def for_stage(self, stage: str) -> "Recipe":
        """The recipe with a stage's own section applied."""
        merged = {**self.to_dict(), **self.stage_overrides.get(stage, {})}
        return from_dict(merged)

    def to_dict(self) -> dict[str, Any]:
        """Flat, as it stands in a YAML file."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        training, overrides = values.pop("training"), values.pop("stage_overrides")
        return {**values, **training, **overrides}

    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one it resumes."""
        return json.loads(json.dumps({k: v for k, v in self.to_dict().items() if k not in VOLATILE}))


def from_dict(values: dict[str, Any]) -> Recipe:
    """A recipe from flat keys.

    Raises:
        ValueError: a key that neither we nor `Seq2SeqTrainingArguments` know, or a value out of its choices.
    """
    values = dict(values)
    overrides = {stage: values.pop(stage) for stage in STAGES if values.get(stage) is not None}
    own = {f.name for f in dataclasses.fields(Recipe)} - {"training", "stage_overrides"}
    training = {key: values.pop(key) for key in list(values) if key not in own}
    recipe = Recipe(**values, training=training, stage_overrides=overrides)
    _check_training_keys({**training, **{k: v for o in overrides.values() for k, v in o.items() if k not in own}})
    choices = {
        "stages": ("both", *STAGES),
        "image_rule": ("all", "original", "none"),
        "protocol": ("generated", "teacher_forced"),
        "answer_mode": ("score", "generate"),
        "gold_rationales": ("target", "lecture_and_solution"),
        "source_truncation": ("keep_ends", "end"),
    }
    for key, allowed in choices.items():
        if getattr(recipe, key) not in allowed:
            raise ValueError(f"{key}: {getattr(recipe, key)!r} is not one of {', '.join(allowed)}")
    if recipe.one_stage and recipe.share_stages:
        raise ValueError("share_stages: a one-stage run (rationale_format: null) has nothing to share")
    return recipe


def _check_training_keys(training: dict[str, Any]) -> None:
    from transformers import Seq2SeqTrainingArguments

    known = {f.name for f in dataclasses.fields(Seq2SeqTrainingArguments)}
    unknown = sorted(set(training) - known)
    if unknown:
        import difflib

        own = [f.name for f in dataclasses.fields(Recipe)]
        close = difflib.get_close_matches(unknown[0], [*known, *own], n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"unknown key in the recipe: {', '.join(unknown)}{hint}")


def load_recipe(path: str | Path, overrides: list[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path: a YAML file, or the name of one that comes with the package.
        overrides: `key=value` and `stage.key=value`, values in YAML.

    Raises:
        FileNotFoundError, ValueError: naming the file and the key.
    """
    file, values = _read(path)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"{override!r} is not of the form key=value")
        stage, dot, name = key.partition(".")
        target = values
        if dot and stage in STAGES:
            target, key = values.setdefault(stage, {}), name
        elif dot and isinstance(values.get(stage), dict):  # sizes of a fresh model or backbone
            target, key = values[stage], name
        target[key] = _yaml_value(text)
    try:
        return from_dict(values)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _read(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The keys of a file, on top of those of the recipe that it extends."""
    file = Path(path)
    if not file.exists() and (RECIPES / f"{path}.yaml").exists():
        file = RECIPES / f"{path}.yaml"
    if not file.is_file():
        names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise FileNotFoundError(f"there is no recipe {path}: give a YAML file, or one of {names}")
    try:
        values = _numbers(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no keys: a recipe is a YAML mapping")
    base = values.pop("extends", None)
    if base is not None:
        beside = file.parent / f"{base}.yaml"
        _, below = _read(beside if beside.exists() else base)
        for stage in STAGES:
            if stage in values and stage in below:
                values[stage] = {**below[stage], **values[stage]}
        values = {**below, **values}
    return file, values


def _yaml_value(text: str):
    return _numbers(yaml.safe_load(text))


def _numbers(value):
    """YAML 1.1 reads 5e-5 as text because it has no dot; people leave it out."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value
