"""The values of a recipe: each of its key's type and within bounds, or refused by name before anything runs."""

import dataclasses
import difflib
import functools
import math
import types
import typing
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.stages.recipe import STAGES, Recipe, own_keys

CHOICES = {
    "stages": ("both", *STAGES),
    "image_rule": ("all", "original", "none"),
    "protocol": ("generated", "teacher_forced"),
    "answer_mode": ("score", "generate"),
    "gold_rationales": ("target", "lecture_and_solution"),
    "source_truncation": ("keep_ends", "end"),
    "dtype": ("auto", "float32", "bfloat16", "int8"),
    "fusion_gate": ("sigmoid", "tanh", "none"),
}
# Ours that a stage's section may hold; the others hold for the run.
STAGE_KEYS = {"model", "vision", "freeze_vision", "keep_images", "max_target_length", "loss_on_padding"}
STAGE_KEYS |= {"fusion_num_heads", "fusion_gate", "dropout_passes"}
STAGE_KEYS |= {"tokens_per_batch", "position_bias_lr", "protocol", "answer_mode", "max_new_tokens", "num_beams"}
STAGE_KEYS |= {"dtype"}
# transformers' that hold for the run, so not for one of its stages
RUN_KEYS = {"use_cpu", "push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "hub_revision"}
RUN_KEYS |= {"ddp_backend", "ddp_timeout"}
# Bounds of whole numbers and fractions: smallest and largest value that has a meaning
LEAST_ONE = {"max_train_samples", "max_eval_samples", "max_test_samples", "image_size", "tokens_per_batch"}
LEAST_ONE |= {"max_source_length", "max_target_length", "max_new_tokens", "num_beams", "gradient_accumulation_steps"}
LEAST_ONE |= {"per_device_train_batch_size", "per_device_eval_batch_size", "eval_accumulation_steps", "ddp_timeout"}
LEAST_ONE |= {"save_total_limit", "generation_max_length", "generation_num_beams", "ddp_bucket_cap_mb"}
LEAST_ONE |= {"dataloader_prefetch_factor", "torch_empty_cache_steps"}
LEAST_ZERO = {"learning_rate", "weight_decay", "warmup_steps", "max_grad_norm", "adam_epsilon", "adam_beta1"}
LEAST_ZERO |= {"adam_beta2", "label_smoothing_factor", "neftune_noise_alpha", "dataloader_num_workers", "eval_delay"}
LEAST_ZERO |= {"seed", "data_seed"}
LEAST_ONE |= {"fusion_num_heads", "dropout_passes", "shuffle_buffer_size"}
LEAST = {"cross_fit": 2} | dict.fromkeys(LEAST_ONE, 1) | dict.fromkeys(LEAST_ZERO, 0)
ABOVE_ZERO = {"position_bias_lr", "num_train_epochs", "save_steps", "eval_steps", "logging_steps"}
MOST = {"label_smoothing_factor": 1, "adam_beta1": 1, "adam_beta2": 1, "seed": 2**32 - 1, "data_seed": 2**32 - 1}


def from_dict(values: dict[str, Any]) -> Recipe:
    """A recipe from flat keys.

    Raises:
        UserError: a key that neither we nor `Seq2SeqTrainingArguments` know; a value of another type than its key's,
            or out of its bounds; keys that don't go together.
    """
    values = dict(values)
    sections = {stage: values.pop(stage) for stage in STAGES if stage in values}
    for stage, section in sections.items():
        if section is not None and not isinstance(section, dict):
            raise UserError(f"{stage}: a section is a mapping of keys, not {section!r:.80}")
    overrides = {
        stage: {key: _checked(f"{stage}.{key}", key, value) for key, value in section.items()}
        for stage, section in sections.items()
        if section
    }
    for stage, section in overrides.items():
        wrong = [key for key in section if key in RUN_KEYS or (key in own_keys() and key not in STAGE_KEYS)]
        if wrong:
            raise UserError(f"{stage}.{wrong[0]}: holds for the whole run; give {wrong[0]} without a stage")
    values = {key: _checked(key, key, value) for key, value in values.items()}
    own = {key: values.pop(key) for key in own_keys() if key in values}
    recipe = Recipe(**own, training=values, stage_overrides=overrides)
    _check_together(recipe)
    return recipe


def _check_together(recipe: Recipe) -> None:
    from mmcot.processing.prompts_mmcot import OUTPUT_FORMATS, ProblemError, reads_rationale, split_format

    if recipe.streaming:
        from mmcot.training.stages.streaming import check_streaming

        check_streaming(recipe)

    for stage in STAGES:
        _check_backbones(recipe.for_stage(stage))
    if recipe.image_size is not None and recipe.vision is not None and not recipe.fresh_vision:
        raise UserError(
            "image_size: is for a fresh backbone (vision as a mapping of sizes); a pretrained one has its own"
        )
    outputs = {}
    for key in ("rationale_format", "answer_format"):
        try:
            outputs[key] = getattr(recipe, key) and split_format(getattr(recipe, key))[1]
        except ProblemError as error:
            raise UserError(f"{key}: {error}") from None
    if recipe.one_stage:
        if recipe.cross_fit is not None:
            raise UserError("cross_fit: a one-stage run (rationale_format: null) reads no rationales")
        if recipe.share_stages:
            raise UserError("share_stages: a one-stage run (rationale_format: null) has nothing to share")
        if recipe.stages == "rationale":
            raise UserError("stages: there is no rationale stage without a rationale_format")
        if reads_rationale(recipe.answer_format):
            raise UserError(
                f"answer_format: {recipe.answer_format} reads a rationale, which a one-stage run (rationale_format: "
                "null) doesn't have; give QCM-A, QCM-LEA or QCM-ALE"
            )
    else:
        if recipe.cross_fit is not None and recipe.share_stages:
            raise UserError("cross_fit: shared stages train on both targets at once; leave out it or share_stages")
        if "{answer}" in OUTPUT_FORMATS[outputs["rationale_format"]]:
            raise UserError(
                f"rationale_format: {recipe.rationale_format} gives the answer away; give QCM-E or QCM-LE, or null "
                "for one stage"
            )
        if not reads_rationale(recipe.answer_format):
            raise UserError(f"answer_format: {recipe.answer_format} reads no rationale; give QCMG-A, or one with a G")
    if "{answer}" not in OUTPUT_FORMATS[outputs["answer_format"]]:
        raise UserError(f"answer_format: {recipe.answer_format} has no answer; its output has an A")


def _check_backbones(recipe: Recipe) -> None:
    """A list of backbones: all by name, or all fresh."""
    if not isinstance(recipe.vision, list):
        return
    kinds = {type(backbone) for backbone in recipe.vision}
    if len(recipe.vision) < 2 or kinds not in ({str}, {dict}):
        raise UserError(
            f"vision: a list is of two or more names, or of two or more configurations, not {recipe.vision!r:.80}"
        )
    if recipe.vision_feature is not None:
        raise UserError("vision_feature: each of several backbones keeps its own; leave it out")


# ---- one value ------------------------------------------------------------------------------------------------------


def _checked(name: str, key: str, value: Any) -> Any:
    """The value as its key's type has it.

    Args:
        name: how messages call the key (`answer.num_beams`).
    """
    hints, ours = _hints(), own_keys()
    if key not in hints:
        close = difflib.get_close_matches(str(key), list(hints), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"unknown key in the recipe: {name}{hint}")
    if key in ("bf16", "fp16") and value in (None, "auto"):
        return None  # as the hardware has it: see `training_arguments`
    if key not in ours and value is False and key.endswith("_strategy"):
        value = "no"  # what YAML reads for no
    value = _typed(name, key, value, hints[key])
    if key in CHOICES and value is not None and value not in CHOICES[key]:
        raise UserError(f"{name}: {value!r} is not one of {', '.join(CHOICES[key])}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}: {value} is no number to work with")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value < LEAST.get(key, value) or (key in ABOVE_ZERO and value <= 0):
            bound = f"at least {LEAST[key]}" if key in LEAST else "above 0"
            raise UserError(f"{name}: {value!r} is too small; it must be {bound}")
        if value > MOST.get(key, value):
            raise UserError(f"{name}: {value!r} is too large; it must be at most {MOST[key]}")
    return value


def _typed(name: str, key: str, value: Any, hint: Any) -> Any:
    """The value if it is of the type that the key is annotated with, or what `HfArgumentParser` reads it as."""
    kinds, has_choices = _plain_types(hint), _has_choices(hint)
    if type(value) in kinds and not has_choices:
        return value
    problem = f"{name}: {value!r:.80} is not of type {_type_name(hint)}"
    if value is None or isinstance(value, bool | dict | list) and not (isinstance(value, bool) and bool in kinds):
        raise UserError(problem)
    whole = isinstance(value, float) and value.is_integer() and float not in kinds
    text = str(int(value)) if whole else str(value)
    if str in kinds and not has_choices:
        return text
    if dict in kinds:
        raise UserError(problem)
    parser = _parser()
    try:
        read = getattr(parser.parse_known_args([f"--{key}={text}"])[0], key)
    except _Refused as refused:
        choices = next((action.choices for action in parser._actions if action.dest == key and action.choices), None)
        if choices is not None:
            raise UserError(f"{name}: {value!r} is not one of {', '.join(map(str, choices))}") from None
        raise UserError(problem) from refused
    return read[0] if isinstance(read, list) and list not in kinds else read


class _Refused(Exception):
    """What argparse finds wrong, which else ends the process."""


@functools.lru_cache(maxsize=1)
def _parser():
    """transformers' parser of dataclasses, which knows types, choices and defaults of all keys."""
    from transformers import HfArgumentParser, Seq2SeqTrainingArguments

    class Parser(HfArgumentParser):
        def error(self, message: str):
            raise _Refused(message)

    hints = typing.get_type_hints(Recipe)
    ours = dataclasses.make_dataclass(
        "Ours",
        [
            (f.name, hints[f.name], f.default)
            for f in dataclasses.fields(Recipe)
            # `output_dir` is transformers' too, and a dictionary isn't read from text
            if f.name != "output_dir" and dict not in _plain_types(hints[f.name])
        ],
    )
    return Parser([ours, Seq2SeqTrainingArguments], allow_abbrev=False, add_help=False)


@functools.lru_cache(maxsize=1)
def _hints() -> dict[str, Any]:
    """Key → type, of all keys."""
    from transformers import Seq2SeqTrainingArguments

    theirs = typing.get_type_hints(Seq2SeqTrainingArguments)
    ours = typing.get_type_hints(Recipe)
    fields = [f.name for f in dataclasses.fields(Seq2SeqTrainingArguments) if f.init]
    return {name: theirs[name] for name in fields} | {name: ours[name] for name in own_keys()}


def _plain_types(hint: Any) -> set[type]:
    """The classes that a value of an annotation may have: of `dict[str, int] | None`, dict and None's."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return set().union(*map(_plain_types, typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return {type(value) for value in typing.get_args(hint)}
    return {typing.get_origin(hint) or hint}


def _has_choices(hint: Any) -> bool:
    """Whether an annotation names an enumeration, whose members stand for all there is."""
    import enum

    return any(isinstance(kind, type) and issubclass(kind, enum.Enum) for kind in _plain_types(hint))


def _type_name(hint: Any) -> str:
    names = sorted("null" if kind is types.NoneType else kind.__name__ for kind in _plain_types(hint))
    return " or ".join(names)
