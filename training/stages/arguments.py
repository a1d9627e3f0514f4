"""`Seq2SeqTrainingArguments` of a stage: our defaults, then the recipe's keys; a key without effect is refused."""

import json
import os
from pathlib import Path

from mmcot.training.common import UserError
from mmcot.training.stages.recipe import STAGES, TRAINING_DEFAULTS, Recipe

# What evaluation while training measures, beside the loss
METRICS = {"rationale": "rougeL", "answer": "accuracy"}
# `hub/` is pushed when the run is finished, not the stages' folders by the Trainer
PUSH_KEYS = ("push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "hub_revision")
_SPLITS = "train_split, eval_split, test_split and stages say what a run does"
_ONCE = "hub/ is pushed once, when the run is finished"
# Keys that would have no effect in a run, or a wrong one: key → (values that are let pass, what to do instead)
REFUSED: dict[str, tuple[tuple, str]] = {
    "do_train": ((True,), _SPLITS),
    "do_eval": ((True,), _SPLITS),
    "do_predict": ((True,), _SPLITS),
    "resume_from_checkpoint": ((None,), "a run goes on from its last whole checkpoint by itself"),
    "remove_unused_columns": ((False,), "the samples' columns are all used"),
    "sortish_sampler": ((False,), "give train_sampling_strategy"),
    "length_column_name": (("length",), "the samples have the columns length and target_length"),
    "label_names": ((None, ["labels"]), "the labels are called labels"),
    "use_liger_kernel": ((False,), "there are no such kernels for T5"),
    "liger_kernel_config": ((None,), "there are no such kernels for T5"),
    "neftune_noise_alpha": ((None, 0), "T5's stacks have embeddings of their own, which it doesn't reach"),
    "bf16_full_eval": ((False,), "evaluation while training keeps the training's precision; give bf16"),
    "fp16_full_eval": ((False,), "evaluation while training keeps the training's precision; give bf16"),
    "batch_eval_metrics": ((False,), "metrics are of the whole split"),
    "eval_do_concat_batches": ((True,), "metrics are of the whole split"),
    "include_for_metrics": (([],), "metrics need texts and labels only"),
    "hub_strategy": (("end",), _ONCE),
    "hub_always_push": ((False,), _ONCE),
    "local_rank": ((-1,), "launch with accelerate or torchrun, which say it"),
    "parallelism_config": ((None,), "an accelerate configuration says it"),
}
STREAM_CHECKPOINTS = 20  # of a training on a stream, which has no epochs, unless the recipe says how many
# … and those that our own batches of like lengths don't take
REFUSED_BY_LENGTH = {"dataloader_drop_last": (False,)}


def training_arguments(recipe: Recipe, folder: Path, has_eval: bool):
    """`Seq2SeqTrainingArguments` of a stage.

    Args:
        recipe: of the stage (`Recipe.for_stage`).
        folder: of the stage.
        has_eval: whether there is a split to evaluate on while training.

    Raises:
        UserError: a value that transformers refuses; the message is its.
    """
    import torch
    from transformers import Seq2SeqTrainingArguments

    from mmcot.training.inference.precision import has_native_bf16

    given = {key: value for key, value in recipe.training.items() if key not in PUSH_KEYS and key != "hub_strategy"}
    precision = {key: given.pop(key) for key in ("bf16", "fp16") if key in given}
    values = {**TRAINING_DEFAULTS, **given, "output_dir": str(folder)}
    use_cpu = bool(values.get("use_cpu")) or not (torch.cuda.is_available() or torch.accelerator.is_available())
    use_cuda = torch.cuda.is_available() and not use_cpu
    values |= {key: value for key, value in precision.items() if value is not None}
    if "bf16" not in values and "fp16" not in values:
        # of other accelerators transformers is asked by name
        values["bf16"] = (use_cpu or use_cuda) and has_native_bf16("cpu" if use_cpu else "cuda")
    elif "ACCELERATE_MIXED_PRECISION" in os.environ:  # what the recipe says goes before the launcher's configuration
        asked = next((key for key in ("bf16", "fp16") if values.get(key)), "no")
        os.environ["ACCELERATE_MIXED_PRECISION"] = asked
    if use_cpu and values.get("bf16"):
        values["use_cpu"] = True  # which transformers wants to be told, else it looks for a GPU that has it
    values.setdefault("dataloader_pin_memory", use_cuda)
    if values["dataloader_pin_memory"]:  # batches are copied to the GPU while it works
        values.setdefault("accelerator_config", {"non_blocking": True})
    if recipe.freeze_vision:  # else a batch without pictures leaves the backbone without gradients
        values.setdefault("ddp_find_unused_parameters", False)
    if not has_eval:
        values.update(eval_strategy="no", load_best_model_at_end=False)
    elif values["eval_strategy"] == "no" and "load_best_model_at_end" not in recipe.training:
        values["load_best_model_at_end"] = False
    if recipe.streaming:  # batches come in the stream's order, and each process takes its own from the whole of it
        values["train_sampling_strategy"] = "random"
        config = values.get("accelerator_config") or {}
        if isinstance(config, str):
            config = json.loads(Path(config).read_text(encoding="utf-8"))
        values["accelerator_config"] = {"dispatch_batches": False, **config}
        every = max(1, values["max_steps"] // STREAM_CHECKPOINTS)
        for kind in ("eval", "save"):
            if values[f"{kind}_strategy"] == "epoch":  # our default; of a recipe it was refused
                values[f"{kind}_strategy"] = "steps"
                values.setdefault(f"{kind}_steps", every)
    values.setdefault("run_name", Path(recipe.output_dir).absolute().name)
    values.setdefault("generation_max_length", recipe.max_new_tokens + 1)  # the start token counts
    values.setdefault("generation_num_beams", recipe.num_beams)
    try:
        return Seq2SeqTrainingArguments(**values)
    except (ValueError, ImportError, RuntimeError, TypeError) as error:
        raise UserError(f"the recipe's training arguments: {' '.join(str(error).split())}") from error


def check_training_keys(recipe: Recipe, stages: tuple[str, ...] = STAGES) -> list[str]:
    """What is wrong with a recipe's training arguments for these stages: a line each.

    Builds the arguments, and what they make of optimizer and learning rate schedule, of each stage.
    """
    found = []
    for stage in stages:
        of_stage = recipe.for_stage(stage)
        own = recipe.stage_overrides.get(stage, {})
        for key, value in of_stage.training.items():
            name = f"{stage}.{key}" if key in own else key
            allowed, instead = REFUSED.get(key, ((value,), ""))
            if value not in allowed:
                found.append(f"{name}: {value!r} has no use here: {instead}")
        if of_stage.dropout_passes > 1 and of_stage.training.get("label_smoothing_factor"):
            found.append("label_smoothing_factor: has no effect with dropout_passes above 1; leave one of them out")
        found += _by_length(of_stage)
        found += _metric(recipe, stage)
        try:
            args = training_arguments(of_stage, Path(recipe.output_dir) / stage, recipe.eval_split is not None)
            found += _optimizer(args) + _trackers(args)
        except UserError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def _by_length(recipe: Recipe) -> list[str]:
    """Keys that don't go together with batches of like lengths."""
    values = {**TRAINING_DEFAULTS, **recipe.training}
    if recipe.streaming:
        asked = recipe.training.get("train_sampling_strategy")
        own = "a stream has its own order; give random"
        return [] if asked in (None, "random") else [f"train_sampling_strategy: {asked}: {own}"]
    if values["train_sampling_strategy"] != "group_by_length":
        tokens = "tokens_per_batch: needs train_sampling_strategy: group_by_length"
        return [tokens] if recipe.tokens_per_batch is not None else []
    remedy = "has no effect on batches of like lengths; give train_sampling_strategy: random"
    found = [f"{key}: {remedy}" for key, allowed in REFUSED_BY_LENGTH.items() if values.get(key, False) not in allowed]
    config = values.get("accelerator_config") or {}
    names = ("split_batches", "dispatch_batches")
    if isinstance(config, dict):
        found += [f"accelerator_config.{name}: {remedy}" for name in names if config.get(name)]
    return found


def _metric(recipe: Recipe, stage: str) -> list[str]:
    """`metric_for_best_model`, where the stage isn't measured by it."""
    training = {**TRAINING_DEFAULTS, **recipe.for_stage(stage).training}
    metric = training.get("metric_for_best_model")
    if metric is None or recipe.eval_split is None or training["eval_strategy"] == "no":
        return []
    known = ["loss"] if training.get("prediction_loss_only") else ["loss", METRICS[stage]]
    if str(metric).removeprefix("eval_") in known:
        return []
    remedy = f"give {stage}.metric_for_best_model"
    return [f"metric_for_best_model: the {stage} stage is measured by {' and '.join(known)}, not {metric!r}; {remedy}"]


def _optimizer(args) -> list[str]:
    """Whether the optimizer and the schedule of these arguments can be had."""
    import torch
    from transformers import Trainer, get_scheduler

    found = []
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ValueError, ImportError, RuntimeError, NotImplementedError) as error:
        found.append(f"optim: {args.optim}: {' '.join(str(error).split())}")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 10, scheduler_specific_kwargs=args.lr_scheduler_kwargs)
    except (ValueError, TypeError, AttributeError) as error:
        found.append(f"lr_scheduler_type, lr_scheduler_kwargs: {' '.join(str(error).split())}")
    return found


def _trackers(args) -> list[str]:
    """Trackers of `report_to` that aren't installed."""
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    found = []
    available = get_available_reporting_integrations()
    for name in args.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            found.append(f"report_to: there is no {name!r}; it is one of {', '.join(sorted(INTEGRATION_TO_CALLBACK))}")
        elif name not in available:
            found.append(f"report_to: {name} isn't installed")
    return found
