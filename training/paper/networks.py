"""Networks in place of the paper's, for `mmcot paper --network small`: all rows run on a CPU in minutes.

Nothing is pretrained and nothing is downloaded: each network starts from one that has learnt, on words alone, to find
the option that a rationale names (recipe `paper-start`), as the paper's start from one language model.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmcot.training.stages.recipe import Recipe, load_recipe

NETWORKS = ("paper", "small")
# what the embedded data of a bare `embedded:` is: skills that small networks learn in a thousand steps
EMBEDDED = "embedded:n=8000,val=200,test=1000,skills=flower+layers+flag+tense"

_SIZES = {
    "base": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 8, "dropout_rate": 0.0},
    "large": {"d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 3, "num_heads": 8, "dropout_rate": 0.0},
}
_START_STEPS = {"large": 1300}  # a deeper network finds later how to look up what a rationale names
_PIXELS = 64
_TRANSFORMER = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": _PIXELS,
    "patch_size": 16,
}
_RESNET = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 1], "layer_type": "basic"}
# fresh backbones of the four kinds, all trained with the network that reads them
_VISION: dict[str, dict[str, Any]] = {
    "vit": {"model_type": "vit", **_TRANSFORMER},
    "clip": {"model_type": "clip_vision_model", **_TRANSFORMER},
    "resnet": {"model_type": "resnet", **_RESNET},
    "detr": {
        "model_type": "detr",
        "backbone_config": {
            "model_type": "resnet",
            **_RESNET,
            "out_features": ["stage2"],
        },
        "d_model": 64,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "num_queries": 16,
    },
}
# training from scratch takes another pace than fine-tuning
_TRAINING = {
    "max_source_length": 512,
    "max_target_length": 160,
    "max_new_tokens": 160,
    "source_truncation": "keep_ends",
    "loss_on_padding": False,
    "gold_rationales": "target",
    "answer_mode": "score",
    "learning_rate": 2e-3,
    "position_bias_lr": 15,
    "lr_scheduler_type": "linear",
    "warmup_steps": 60,
    "max_steps": 1000,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 256,
    "gradient_accumulation_steps": 1,
    "weight_decay": 0.0,
    "adam_beta2": 0.99,
    "eval_split": None,
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 250,
    "load_best_model_at_end": False,
    "answer.max_target_length": 160,
    "answer.max_new_tokens": 160,
}
_ANSWER_OF_TWO_STAGES = {"answer.max_steps": 200, "answer.learning_rate": 1e-3}


def small_settings(recipe: Recipe, start: str | Path) -> dict[str, Any]:
    """What makes a row's recipe small: key → value.

    Args:
        recipe: of the paper's row.
        start: folder of the network that all begin with, which has its tokenizer.
    """
    settings = {**_TRAINING, "model": str(start), "tokenizer": str(start), "features": None}
    if recipe.one_stage:
        # one stage learns the whole way from picture to answer
        settings |= {"answer.gradient_accumulation_steps": 1}
    else:
        settings |= _ANSWER_OF_TWO_STAGES
    settings |= {f"{stage}.gradient_accumulation_steps": 1 for stage in recipe.stage_overrides}
    if recipe.vision is not None:
        vision = _VISION[recipe.vision]
        settings |= {"vision": vision, "image_size": _PIXELS, "freeze_vision": False, "keep_images": True}
        settings |= {"vision_feature": "pooler_output" if vision["model_type"] == "resnet" else "last_hidden_state"}
    return settings


def start_recipe(size: str, folder: Path, tokenizer: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe of the network that all rows of a size begin with."""
    import json

    values = {"model": _SIZES[size], "tokenizer": str(tokenizer), "output_dir": str(folder)}
    if size in _START_STEPS:
        values["max_steps"] = _START_STEPS[size]
    return load_recipe("paper-start", [*(f"{key}={json.dumps(value)}" for key, value in values.items()), *overrides])


def make_tokenizer(recipes: Sequence[Recipe], folder: Path) -> Path:
    """One tokenizer for all rows, of the words of their training problems; not again where it is there already."""
    import shutil

    from mmcot.training.stages.tokenizer import train_tokenizer

    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        train_tokenizer(_texts(recipes)).save_pretrained(partial)
        partial.rename(folder)
    return folder


def _texts(recipes: Sequence[Recipe]) -> Iterator[str]:
    from mmcot.processing import build_prompt
    from mmcot.training.data.problems import load_problems

    for source, split in dict.fromkeys((recipe.data, recipe.train_split) for recipe in recipes):
        for problem in load_problems(source, split, image_rule="none"):
            for name in ("QCM-LE", "QCMG-A", "QCM-ALE"):
                yield from build_prompt(problem, name, use_caption=True)
