"""Training of one stage, which leaves a folder that is complete, or is gone on with."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.stages.arguments import training_arguments
from mmcot.training.stages.checkpoints import last_whole_checkpoint, put_damaged_aside
from mmcot.training.stages.manifest import mark_step, read_manifest
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
    identity: dict[str, Any] | None = None,
    position: tuple[int, int] = (1, 1),
):
    """Trains `model` and saves it to `folder`; goes on from the last whole checkpoint there.

    Args:
        identity: what the training depends on, for the manifest (see `identity.py`).
        position: which stage it is, of how many; for the screen.

    Returns:
        the trained `MMCoTForConditionalGeneration`.

    Raises:
        UserError: the loss or the weights aren't finite.
    """
    from transformers import PrinterCallback, ProgressCallback

    from mmcot.training.stages.progress import StageProgress, quiet_libraries, show_bars
    from mmcot.training.stages.samples import StageCollator
    from mmcot.training.stages.trackers import group_metrics
    from mmcot.training.stages.trainer import StageTrainer

    folder, identity = Path(folder), identity or {"stage": stage, **recipe.identity()}
    args = training_arguments(recipe, folder, eval_dataset is not None)
    if "logging_steps" not in recipe.training:  # short runs have a training loss too
        batch = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
        epoch = args.max_steps if recipe.streaming else len(train_dataset) // batch
        args.logging_steps = max(1, min(args.logging_steps, epoch))
    checkpoint = _where_to_go_on(folder, args)
    if args.should_save:
        mark_step(folder, identity, finished=False, processes=args.world_size)
    model.processor = processor
    model.train()  # freezes a backbone
    parameters = sum(weight.numel() for weight in model.parameters())
    trained_parameters = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
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
        dropout_passes=recipe.dropout_passes,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    counts = (parameters, trained_parameters)
    trainer.add_callback(
        StageProgress(
            stage,
            position,
            None if recipe.streaming else train_dataset,
            counts,
            one_stage=recipe.one_stage,
            bars=show_bars(args),
            tokens_per_batch=recipe.tokens_per_batch,
            answer_mode=recipe.answer_mode,
        )
    )
    group_metrics(trainer, stage, Path(recipe.output_dir))
    with quiet_libraries():
        with _worker_errors():
            result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        trained = trainer.unwrap()
        _check_finite(trained, stage)
        # evaluation leaves transformers' default of 20 there, which every later call would have to overrule
        trained.generation_config.max_length = None
        # training goes without, and transformers writes that into the configuration: who generates with a network that
        # has no generation_config.json would compute all keys anew for each token
        trained.config.use_cache = True
        _save(trainer, folder)
    if args.should_save:
        history = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
        facts = {"steps": result.global_step, "seconds": result.metrics["train_runtime"], "history": history}
        facts["machine"] = machine_facts(args)
        mark_step(folder, identity, finished=True, processes=args.world_size, **facts)
    trainer.accelerator.wait_for_everyone()
    return trained


@contextlib.contextmanager
def _worker_errors() -> Iterator[None]:
    """Errors of a loader's worker as they were raised there, without the traceback that PyTorch puts into them."""
    try:
        yield
    except Exception as error:
        if getattr(error, "user_error", False) and "Original Traceback" in str(error):
            raise UserError(str(error).strip().splitlines()[-1].partition(": ")[2]) from None
        raise


def machine_facts(args) -> dict[str, Any]:
    """On what a stage was trained, for its model card: device, processes and versions."""
    import platform

    import torch
    import transformers

    from mmcot import __version__

    if args.device.type == "cuda":
        device = torch.cuda.get_device_name(args.device)
    else:
        threads = torch.get_num_threads()
        device = f"{args.device.type.upper()} ({platform.machine()}, {threads} thread{'s' if threads > 1 else ''})"
    versions = {"mmcot": __version__, "transformers": transformers.__version__, "torch": str(torch.__version__)}
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    return {"device": device, "processes": args.world_size, "precision": precision, "versions": versions}


def _where_to_go_on(folder: Path, args) -> Path | None:
    """The checkpoint to go on from; what is damaged is put aside, by one process."""
    from accelerate import PartialState

    state = PartialState()
    begun = read_manifest(folder) if folder.is_dir() else None
    processes = tuple(dict.fromkeys((args.world_size, (begun or {}).get("processes", args.world_size))))
    sharded = bool(args.deepspeed) or bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP") == "true"
    sharded = sharded or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if state.is_main_process:
        put_damaged_aside(folder, processes, sharded)
    state.wait_for_everyone()
    checkpoint = last_whole_checkpoint(folder, processes, sharded)
    state.wait_for_everyone()
    return checkpoint


def _check_finite(model, stage: str) -> None:
    """The last step may have spoilt what no loss was taken from any more."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and not weight.isfinite().all():
            raise UserError(
                f"the {stage} stage's training ended with weights that aren't finite ({name}): lower learning_rate, "
                "or give bf16=false fp16=false"
            )


def _save(trainer, folder: Path) -> None:
    """`Trainer.save_model`, whole: files get their names when all are written, the weights last."""
    partial = folder / "model.partial"
    if trainer.args.should_save:
        shutil.rmtree(partial, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(partial))
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        for path in sorted(partial.iterdir(), key=lambda path: "safetensors" in path.name):
            os.replace(path, folder / path.name)
        partial.rmdir()
