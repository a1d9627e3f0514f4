"""What each step of a run depends on: settings, and hashes of what they name. A step is done again, or refused, only
when one of these changes.

Training a stage depends on its data, base model, formats and training arguments; not on how its predictions are
decoded, on the other stage's settings, or on the machine. Predictions depend on the trained stage, the split and the
decoding.
"""

import json
from typing import Any

from mmcot.training.stages.fingerprints import UNKNOWN, checkpoint_fingerprint, digest, file_fingerprint
from mmcot.training.stages.manifest import read_manifest
from mmcot.training.stages.recipe import TRAINING_DEFAULTS, Recipe

# transformers' keys that leave the trained weights as they are: what is logged, saved and evaluated, and how the work
# is laid out on the machine
WITHOUT_EFFECT = {"per_device_eval_batch_size", "prediction_loss_only", "predict_with_generate", "use_cpu", "debug"}
WITHOUT_EFFECT |= {"disable_tqdm", "report_to", "run_name", "project", "log_level", "log_level_replica", "use_cache"}
WITHOUT_EFFECT |= {
    "log_on_each_node",
    "include_num_input_tokens_seen",
    "skip_memory_metrics",
    "torch_empty_cache_steps",
}
WITHOUT_EFFECT |= {"activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"}
WITHOUT_EFFECT |= {"gradient_checkpointing_kwargs", "restore_callback_states_from_checkpoint", "enable_jit_checkpoint"}
WITHOUT_EFFECT |= {"push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "hub_revision", "hub_strategy"}
WITHOUT_EFFECT_BEGIN = ("logging_", "dataloader_", "ddp_", "trackio_", "torch_compile", "generation_", "save_", "do_")
# … unless evaluation chooses the checkpoint that is kept, or its metric the learning rate
OF_CHOICE = ("eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps", "metric_for_best_model")
OF_CHOICE += ("greater_is_better", "predict_with_generate")
OF_EVALUATION = ("eval_", "load_best_model_at_end", "metric_for_best_model", "greater_is_better")


def chooses_checkpoint(recipe: Recipe, stage: str) -> bool:
    """Whether a stage's validation decides on its weights: it keeps the best checkpoint, or lowers the rate on it."""
    values = {**TRAINING_DEFAULTS, **recipe.for_stage(stage).training}
    if recipe.eval_split is None or values["eval_strategy"] == "no":
        return False
    return bool(values["load_best_model_at_end"]) or values["lr_scheduler_type"] in ("reduce_lr_on_plateau", "greedy")


def training_identity(run, stage: str) -> dict[str, Any]:
    """What the trained weights of a stage depend on.

    Args:
        run: the `Run`, whose data, and features if there are any, are read for their hashes.
    """
    recipe: Recipe = run.recipe.for_stage(stage)
    found: dict[str, Any] = {"stage": stage, "data": run.data_fingerprint("train")}
    found |= {"model": _content(recipe.model), "tokenizer": _content(recipe.tokenizer)}
    names = ["answer_format"] if stage == "answer" else ["rationale_format"]
    names += ["use_caption", "max_source_length", "max_target_length", "source_truncation", "loss_on_padding"]
    names += ["tokens_per_batch", "position_bias_lr", "share_stages", "dropout_passes"]
    if stage == "answer" or recipe.share_stages:
        names += ["answer_format", "rationale_format", "gold_rationales"]
        if recipe.cross_fit is not None:
            found["cross_fit"] = [recipe.cross_fit, training_identity(run, "rationale")]
    if recipe.vision is not None or recipe.features is not None:
        names += ["vision_feature", "image_size", "freeze_vision", "image_rule", "fusion_num_heads", "fusion_gate"]
        found |= {"vision": _content(recipe.vision), "features": run.features_fingerprint}
    if recipe.streaming:
        names += ["streaming", "shuffle_buffer_size", "train_split", "max_train_samples", "columns", "image_rule"]
    found |= {name: getattr(recipe, name) for name in names}
    chooses = chooses_checkpoint(run.recipe, stage)
    if chooses:
        found["evaluation data"] = run.data_fingerprint("val")
    if stage == "answer" and (run.takes_backbone or (chooses and not recipe.one_stage)):
        found["rationale stage"] = trained_digest(run, "rationale")
    for key, value in {**TRAINING_DEFAULTS, **recipe.training}.items():
        ruled_out = key in WITHOUT_EFFECT or key.startswith((*WITHOUT_EFFECT_BEGIN, *OF_EVALUATION))
        if (chooses and key in OF_CHOICE) or not ruled_out:
            found[key] = value
    return json.loads(json.dumps(found))


def predictions_identity(run, stage: str, split: str) -> dict[str, Any]:
    """What a stage's predictions of a split depend on."""
    recipe: Recipe = run.recipe.for_stage(stage)
    names = ["protocol", "answer_mode", "max_new_tokens", "num_beams", "max_target_length", "loss_on_padding"]
    found: dict[str, Any] = {name: getattr(recipe, name) for name in names}
    if recipe.dtype != "auto":  # what it means is the machine's affair: a finished run may be moved
        found["dtype"] = recipe.dtype
    found["trained"] = trained_digest(run, "rationale" if recipe.share_stages else stage)
    found["data"] = run.data_fingerprint(split)
    if recipe.training.get("generation_config") is not None:
        found["generation_config"] = recipe.training["generation_config"]
    if stage == "answer" and not recipe.one_stage:
        found["rationales"] = file_fingerprint(run.predictions_file("rationale", split))
    return json.loads(json.dumps(found))


def trained_digest(run, stage: str) -> str:
    """Which training left a stage's folder: what it was made from, and when it ended."""
    found = read_manifest(run.folder / stage)
    if found is None or not found["finished"]:
        return UNKNOWN
    return digest({"settings": found["settings"], "time": found["time"]})


def _content(place: str | dict | list | None) -> Any:
    """The hash of what a key names, or of each in a list; sizes, `train` and null as they are."""
    from mmcot.training.features.presets import VISION_PRESETS

    if isinstance(place, list):
        return [_content(one) for one in place]
    if not isinstance(place, str) or place == "train":
        return place
    return checkpoint_fingerprint(VISION_PRESETS[place].identifier if place in VISION_PRESETS else place)
