"""Training arguments: every key of transformers' works, or is refused by name before the run starts."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from transformers import Seq2SeqTrainingArguments

from mmcot.training.stages import training_arguments
from mmcot.training.stages.arguments import PUSH_KEYS, REFUSED, REFUSED_BY_LENGTH, check_training_keys
from mmcot.training.stages.build import image_processor_of
from mmcot.training.stages.recipe import load_recipe, own_keys
from mmcot.training.stages.recipe_help import own_meanings, transformers_meanings
from mmcot.training.stages.recipe_values import from_dict

NAMES = [f.name for f in dataclasses.fields(Seq2SeqTrainingArguments) if f.init and f.name != "output_dir"]
# keys and a value other than the default, each of which a run takes (tried on a CPU)
WORK = {
    "per_device_train_batch_size": 4, "num_train_epochs": 2.0, "max_steps": 3, "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine", "warmup_steps": 2.0,
    "optim": "adafactor", "optim_args": "a=1", "weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.99,
    "adam_epsilon": 1e-7, "gradient_accumulation_steps": 2, "average_tokens_across_devices": False,
    "max_grad_norm": 0.5, "label_smoothing_factor": 0.1, "bf16": True, "torch_empty_cache_steps": 5,
    "auto_find_batch_size": True, "logging_strategy": "epoch", "logging_steps": 7.0, "logging_first_step": True,
    "log_on_each_node": False, "logging_nan_inf_filter": True, "log_level": "warning", "log_level_replica": "error",
    "disable_tqdm": True, "run_name": "a", "project": "a", "use_cache": True,
    "eval_steps": 3.0, "eval_delay": 1.0, "per_device_eval_batch_size": 4, "prediction_loss_only": True,
    "eval_on_start": True, "eval_accumulation_steps": 2, "eval_use_gather_object": True, "save_only_model": True,
    "save_steps": 9.0, "save_on_each_node": True, "save_total_limit": 3, "metric_for_best_model": "loss",
    "greater_is_better": False, "ignore_data_skip": True, "restore_callback_states_from_checkpoint": True,
    "seed": 3, "data_seed": 3, "use_cpu": True, "accelerator_config": {"even_batches": True},
    "dataloader_num_workers": 1, "dataloader_pin_memory": False, "ddp_find_unused_parameters": True,
    "ddp_bucket_cap_mb": 10, "ddp_broadcast_buffers": True, "ddp_static_graph": True,
    "ddp_timeout": 60, "debug": "underflow_overflow", "skip_memory_metrics": False,
    "train_sampling_strategy": "random", "predict_with_generate": False, "generation_max_length": 9,
    "generation_num_beams": 2, "gradient_checkpointing": True,
}  # fmt: skip
# tied to another key, a library, a GPU or the Hub: handed on as they are
HANDED_ON = {
    "optim_target_modules", "fp16", "lr_scheduler_kwargs", "include_num_input_tokens_seen",
    "ddp_backend", "tf32", "activation_checkpointing", "activation_checkpointing_kwargs",
    "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode", "report_to",
    "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "eval_strategy", "save_strategy",
    "enable_jit_checkpoint", "load_best_model_at_end", "full_determinism", "dataloader_persistent_workers",
    "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order", "fsdp", "fsdp_config",
    "deepspeed", "generation_config",
}  # fmt: skip


def recipe(*overrides):
    return load_recipe("embedded", ["use_cpu=true", *overrides])


def test_no_key_is_forgotten():
    known = {*WORK, *HANDED_ON, *REFUSED, *REFUSED_BY_LENGTH, *PUSH_KEYS}
    assert not [name for name in NAMES if name not in known], "say of a new key whether it works or is refused"


@pytest.mark.parametrize("key", [key for key in WORK if key in NAMES])
def test_keys_that_work_reach_the_arguments(key):
    given = recipe()
    given.training[key] = WORK[key]
    assert check_training_keys(given, ("answer",)) == []
    found = getattr(training_arguments(given.for_stage("answer"), "folder", True), key)
    if key == "accelerator_config":
        found, expected = found.even_batches, True
    else:
        expected = WORK[key]
    assert found == expected or str(getattr(found, "value", found)) == expected or [expected] == found


OTHERS = {"do_train": False, "remove_unused_columns": True, "length_column_name": "n", "label_names": ["y"]}
OTHERS |= {"hub_strategy": "every_save", "eval_do_concat_batches": False, "include_for_metrics": ["loss"]}
OTHERS |= {"resume_from_checkpoint": "x", "local_rank": 1, "neftune_noise_alpha": 5.0, "liger_kernel_config": {"a": 1}}
OTHERS |= {"parallelism_config": object(), "do_eval": False, "do_predict": False}


@pytest.mark.parametrize("key", [*REFUSED, *REFUSED_BY_LENGTH])
def test_keys_without_effect_are_refused_by_name(key):
    given = recipe()
    given.training[key] = OTHERS.get(key, True)
    assert any(line.startswith(f"{key}:") for line in check_training_keys(given, ("answer",)))


@pytest.mark.parametrize(
    "overrides, named",
    [
        (["metric_for_best_model=rougeL"], "answer stage is measured by loss and accuracy"),
        (["metric_for_best_model=accuracy"], "rationale stage is measured by loss and rougeL"),
        (["report_to=nothing"], "report_to: there is no 'nothing'"),
        (["lr_scheduler_kwargs={nonsense: 1}"], "lr_scheduler_kwargs"),
        (["save_strategy=no"], "save and eval strategy to match"),
        (["tokens_per_batch=99", "train_sampling_strategy=random"], "tokens_per_batch: needs"),
        (["accelerator_config={split_batches: true}"], "accelerator_config.split_batches"),
        (["answer.batch_eval_metrics=true"], "answer.batch_eval_metrics: True has no use"),
    ],
)
def test_what_can_not_work_is_said_at_the_start(overrides, named):
    assert named in "; ".join(check_training_keys(recipe(*overrides)))


@pytest.mark.parametrize("capability, expected", [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bf16_where_the_gpu_has_it(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: capability)
    given = from_dict({})
    # looked up late: the first `import transformers` may be another object
    monkeypatch.setattr(sys.modules["transformers"], "Seq2SeqTrainingArguments", dict)
    assert training_arguments(given, "folder", True)["bf16"] is expected
    given.training["use_cpu"] = True
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    for flags in ({"avx2"}, {"avx2", "avx512_bf16"}, {"asimd", "bf16"}):
        monkeypatch.setattr("mmcot.training.inference.precision.cpu_flags", lambda flags=flags: frozenset(flags))
        assert training_arguments(given, "folder", True)["bf16"] is (len(flags) > 1)


def test_bf16_of_a_processor_needs_no_word_about_the_missing_gpu(monkeypatch):
    """transformers looks for a GPU with bf16 unless it is told use_cpu."""
    if torch.cuda.is_available() or torch.accelerator.is_available():
        pytest.skip("there is an accelerator here")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr("mmcot.training.inference.precision.cpu_flags", lambda: frozenset({"avx512_bf16"}))
    for given in (from_dict({}), from_dict({"bf16": True})):
        args = training_arguments(given.for_stage("answer"), "folder", True)
        assert args.bf16 and args.use_cpu


def test_smoothing_and_dropout_passes_do_not_go_together():
    assert "label_smoothing_factor: has no effect with dropout_passes" in "; ".join(
        check_training_keys(recipe("dropout_passes=2", "label_smoothing_factor=0.1"))
    )


def test_the_recipes_precision_goes_before_the_launchers(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    args = training_arguments(recipe("bf16=false").for_stage("answer"), "folder", True)
    assert args.mixed_precision == "no"


def test_help_names_every_key_with_its_meaning():
    text = subprocess.run(
        [sys.executable, "-m", "mmcot.training.cli", "train", "--help"], check=True, capture_output=True, text=True
    ).stdout
    meanings = own_meanings()
    assert list(meanings)[: len(own_keys())] == own_keys()
    for name in [*own_keys(), *NAMES]:
        assert f"\n  {name} (" in text, name
    assert meanings["num_beams"] in text and "num_beams (1)" in text and "learning_rate (5e-05)" in text
    assert set(NAMES) <= set(transformers_meanings())
    assert "%" in text and "%%" not in text


def test_evaluation_decodes_as_use_does(tmp_path):
    """As long, and by as many beams, as the recipe's predictions; unless its `generation_…` keys say else."""
    args = training_arguments(recipe("max_new_tokens=7", "num_beams=3"), tmp_path, has_eval=True)
    assert (args.generation_max_length, args.generation_num_beams) == (8, 3)  # the start token counts
    other = recipe("max_new_tokens=7", "num_beams=3", "generation_max_length=5", "generation_num_beams=2")
    args = training_arguments(other, tmp_path, has_eval=True)
    assert (args.generation_max_length, args.generation_num_beams) == (5, 2)


def test_a_fresh_backbones_pictures_have_the_size_that_the_recipe_says():
    sizes = {"model_type": "vit", "image_size": 64}
    for size, expected in ((32, 32), (None, 64)):
        assert dict(image_processor_of(sizes, size).size) == {"height": expected, "width": expected}
    assert dict(image_processor_of({"model_type": "resnet"}).size) == {"height": 224, "width": 224}
