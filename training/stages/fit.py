"""Training of one stage, which leaves a folder that is complete, or is gone on with."""

from pathlib import Path

from mmcot.training.stages.manifest import mark_step, step_is_done
from mmcot.training.stages.recipe import TRAINING_DEFAULTS, Recipe


def training_arguments(recipe: Recipe, folder: Path, has_eval: bool):
    """`Seq2SeqTrainingArguments` of a stage: our defaults, then the recipe's."""
    import torch
    from transformers import Seq2SeqTrainingArguments

    values = {**TRAINING_DEFAULTS, **recipe.training, "output_dir": str(folder)}
    for key in ("eval_strategy", "save_strategy", "logging_strategy"):
        if values.get(key) is False:  # YAML reads `no` so
            values[key] = "no"
    if "bf16" not in recipe.training and "fp16" not in recipe.training:
        values["bf16"] = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    values.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    if values["dataloader_pin_memory"]:  # batches are copied to the GPU while it works
        values.setdefault("accelerator_config", {"non_blocking": True})
    if recipe.freeze_vision:  # else a batch without pictures leaves the backbone without gradients
        values.setdefault("ddp_find_unused_parameters", False)
    if not has_eval:
        values.update(eval_strategy="no", load_best_model_at_end=False)
    elif values["eval_strategy"] == "no":
        values["load_best_model_at_end"] = False
    values.setdefault("generation_max_length", recipe.max_new_tokens)
    values.setdefault("generation_num_beams", recipe.num_beams)
    return Seq2SeqTrainingArguments(**values)


def train_stage(
    recipe: Recipe,
    stage: str,
    folder: Path,
    model,
    processor,
    train_dataset,
    eval_dataset=None,
    features=None,
    callbacks=None,
):
    """Trains `model`, or loads it where the folder holds the finished training; resumes a cut-off one.

    Returns:
        the trained `MMCoTForConditionalGeneration`.
    """
    from transformers.trainer_utils import get_last_checkpoint

    from mmcot.training.stages.samples import StageCollator
    from mmcot.training.stages.trainer import StageTrainer

    identity = {"stage": stage, **recipe.identity()}
    if step_is_done(folder, identity):
        from mmcot import MMCoTForConditionalGeneration

        return MMCoTForConditionalGeneration.from_pretrained(folder)
    args = training_arguments(recipe, folder, eval_dataset is not None)
    if args.should_save:
        mark_step(folder, identity, finished=False)
    model.processor = processor
    trainer = StageTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        data_collator=StageCollator(
            processor,
            features,
            with_images=model.config.has_fusion,
            keep_images=recipe.keep_images,
            label_length=recipe.max_target_length if recipe.loss_on_padding else None,
        ),
        compute_metrics=_metrics_of(stage, processor),
        callbacks=callbacks,
        position_bias_lr=recipe.position_bias_lr,
        tokens_per_batch=recipe.tokens_per_batch,
    )
    result = trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
    # evaluation leaves transformers' default of 20 there, which every later call would have to overrule
    trainer.accelerator.unwrap_model(trainer.model).generation_config.max_length = None
    trainer.save_model(str(folder))
    if args.should_save:
        history = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
        seconds = result.metrics["train_runtime"]
        mark_step(folder, identity, finished=True, steps=result.global_step, seconds=seconds, history=history)
    trainer.accelerator.wait_for_everyone()
    return trainer.accelerator.unwrap_model(trainer.model)


def _metrics_of(stage: str, processor):
    """What evaluation during training measures: ROUGE-L of rationales, accuracy of answers; both on generated text."""

    def decode(ids):
        import numpy as np

        # gathered batches are padded with -100, which no tokenizer decodes
        ids = np.where(np.asarray(ids) < 0, processor.tokenizer.pad_token_id, ids)
        return processor.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def rouge(prediction) -> dict[str, float]:
        from mmcot.training.evaluation.rationales import rouge_l

        pairs = list(zip(decode(prediction.predictions), decode(prediction.label_ids), strict=True))
        return {"rougeL": 100 * sum(rouge_l(text, label) for text, label in pairs) / len(pairs)}

    def accuracy(prediction) -> dict[str, float]:
        from mmcot.processing import parse_answer

        pairs = list(zip(decode(prediction.predictions), decode(prediction.label_ids), strict=True))
        right = [
            parse_answer(text, 26) is not None and parse_answer(text, 26) == parse_answer(label, 26)
            for text, label in pairs
        ]
        return {"accuracy": 100 * sum(right) / len(right)}

    return rouge if stage == "rationale" else accuracy
