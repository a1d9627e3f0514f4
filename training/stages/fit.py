"""Training of one stage, which leaves a folder that is complete, or is gone on with."""

from pathlib import Path

from mmcot.training.stages.arguments import training_arguments
from mmcot.training.stages.manifest import mark_step, step_is_done
from mmcot.training.stages.metrics import metrics_of, most_probable
from mmcot.training.stages.recipe import Recipe


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
        compute_metrics=metrics_of(stage, processor),
        preprocess_logits_for_metrics=None if args.predict_with_generate else most_probable,
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
