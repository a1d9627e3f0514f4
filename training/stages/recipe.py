"""`Recipe`: what a run does. Its keys, their defaults and meanings; `mmcot train --help` lists them from here.

`recipe_file.py` reads a recipe, `recipe_values.py` checks its values.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

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
    "logging_nan_inf_filter": False,  # such a loss ends the run
    "report_to": "none",
    "seed": 42,
}


@dataclass
class Recipe:
    """What a run does, beside the training arguments.

    Args:
        output_dir: folder of the run.
        data: source of problems, as `load_problems` takes it.
        columns: our field -> the source's key for it, as {image: img}.
        allow_urls: read images from http(s) addresses that the data names.
        allow_outside: read images from outside of the data's folder.
        data_license: licence of own data, and so of the weights, for the model card; known for ScienceQA.
        data_name: name of own data, for the model card; by default that of its file or folder.
        card_example: publish test questions with the model: one with its picture in the card, a few to try, and the
            predictions of all.
        rationales: file of a teacher's rationales (`mmcot distill`), to train on in place of the data's own.
        train_split: name of the split to train on.
        eval_split: name of the split to evaluate on while training; may be null.
        test_split: name of the split to test on; may be null.
        streaming: read the training split anew in every pass and keep no table of it, for sources too large for a
            second copy; needs max_steps.
        shuffle_buffer_size: problems of a stream that are held, of which the next one is drawn; 1: the source's order.
        max_train_samples: train on the first so many problems only; of a mixture on so many from all its sources.
        max_eval_samples: evaluate on so many problems only, likewise.
        max_test_samples: test on so many problems only, likewise.
        image_rule: "all" images of a problem, the "original" project's choice, or "none" (see `load_problems`).
        stages: "both", "rationale" or "answer".
        model: a checkpoint (T5, FLAN-T5, UnifiedQA, or one of ours), or the sizes of a fresh network as `T5Config` has
            them.
        tokenizer: checkpoint folder, Hub id or tokenizer.json; "train" makes one from the training texts; by default
            the model's.
        vision: preset (detr, vit, clip, resnet), checkpoint, or configuration of a fresh backbone; a list of two or
            more gives the patches of all, and the first one's image processor frames the pictures; null: text only.
        vision_feature: output of the backbone, `last_hidden_state` or `pooler_output`; by default the preset's.
        image_size: pixels to which images are brought, for a fresh backbone; by default the backbone's.
        features: cache of image features (`mmcot features`), read instead of running the backbone.
        freeze_vision: leave the backbone as it is.
        fusion_num_heads: heads of the attention over patches; by default the checkpoint's, or 1 (the paper's).
        fusion_gate: "sigmoid" (the paper's), "tanh" (a learnt share that begins at 0) or "none"; by default the
            checkpoint's, or "sigmoid".
        keep_images: hold preprocessed images in memory; for small sets and many epochs.
        share_stages: train one set of weights for both stages, on the samples of both.
        rationale_format: prompt format of the rationale stage; null makes a one-stage run.
        answer_format: prompt format of the answer stage, or of the one stage.
        gold_rationales: what the answer stage trains on: the rationale stage's "target", or "lecture_and_solution" as
            the original does in every format.
        cross_fit: number of folds; the answer stage then trains on rationales that rationale stages wrote which never
            saw the question, as it will read them, instead of gold ones. Trains the rationale stage once more a fold.
        use_caption: captions join the context.
        max_source_length: tokens of a source; longer ones are shortened by `source_truncation`.
        max_target_length: tokens of a target; longer ones are cut, the closing token kept.
        source_truncation: "keep_ends" shortens context and rationale, "end" cuts the end as the original does.
        loss_on_padding: pad targets to max_target_length and count padding in the loss, as the original does.
        tokens_per_batch: source plus target tokens of a process's batch, on average, in place of
            `per_device_train_batch_size` samples: long samples come in small batches, short ones in large.
        dropout_passes: forward passes with dropout a training step, whose probabilities are averaged before the loss
            (after MC-CoT's voting, arXiv 2311.14109); each costs a whole pass.
        position_bias_lr: learning rate of the relative position biases, as a multiple; for networks from scratch.
        protocol: how test rationales come about: "generated", or the original v1's "teacher_forced".
        answer_mode: "score" the choices' letters, or "generate" and parse the answer as the paper does.
        blank_probe: at the end also ask the test questions with a picture without it, for what the pictures are worth.
        max_new_tokens: limit of a generated rationale.
        num_beams: of the rationale's beam search; 1 is greedy.
        dtype: what predictions are computed in, as `mmcot predict --dtype`: "auto" (bfloat16 where the device has it),
            "float32", "bfloat16" or "int8". Training has bf16 and fp16.
        training: all other keys: `Seq2SeqTrainingArguments`.
        stage_overrides: the sections `rationale` and `answer`, whose keys hold for that stage alone.
    """

    output_dir: str = "runs/mmcot"
    data: str = "embedded"
    columns: dict | None = None
    allow_urls: bool = False
    allow_outside: bool = False
    data_license: str | None = None
    data_name: str | None = None
    card_example: bool = True
    rationales: str | None = None
    train_split: str = "train"
    eval_split: str | None = "val"
    test_split: str | None = "test"
    streaming: bool = False
    shuffle_buffer_size: int = 1000
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    max_test_samples: int | None = None
    image_rule: str = "all"
    stages: str = "both"
    model: str | dict = "google/flan-t5-base"
    tokenizer: str | None = None
    vision: str | dict | list | None = None
    vision_feature: str | None = None
    image_size: int | None = None
    features: str | None = None
    freeze_vision: bool = True
    fusion_num_heads: int | None = None
    fusion_gate: str | None = None
    keep_images: bool = False
    share_stages: bool = False
    rationale_format: str | None = "QCM-E"
    answer_format: str = "QCMG-A"
    gold_rationales: str = "target"
    cross_fit: int | None = None
    use_caption: bool = False
    max_source_length: int = 512
    max_target_length: int = 512
    source_truncation: str = "keep_ends"
    loss_on_padding: bool = False
    tokens_per_batch: int | None = None
    dropout_passes: int = 1
    position_bias_lr: float = 1.0
    protocol: str = "generated"
    answer_mode: str = "score"
    blank_probe: bool = True
    max_new_tokens: int = 512
    num_beams: int = 1
    dtype: str = "auto"
    training: dict[str, Any] = field(default_factory=dict)
    stage_overrides: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def one_stage(self) -> bool:
        return self.rationale_format is None

    @property
    def backbones(self) -> list:
        """The backbones of `vision`, each a name or a configuration; empty without."""
        return self.vision if isinstance(self.vision, list) else [] if self.vision is None else [self.vision]

    @property
    def fresh_vision(self) -> bool:
        """Whether the backbone starts from nothing: `vision` is a configuration."""
        return any(isinstance(backbone, dict) for backbone in self.backbones)

    def for_stage(self, stage: str) -> "Recipe":
        """The recipe with a stage's own section applied, and without sections."""
        own = self.stage_overrides.get(stage, {})
        known = {f.name for f in dataclasses.fields(self)}
        training = {**self.training, **{key: value for key, value in own.items() if key not in known}}
        changes = {key: value for key, value in own.items() if key in known}
        return dataclasses.replace(self, **changes, training=training, stage_overrides={})

    def to_dict(self) -> dict[str, Any]:
        """Flat, as it stands in a YAML file."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        training, overrides = values.pop("training"), values.pop("stage_overrides")
        return {**values, **training, **overrides}

    def identity(self) -> dict[str, Any]:
        """The settings that say what was trained, as JSON: without where to, how it was logged and on what machine."""
        volatile = ("output_dir", "report_to", "run_name", "dataloader_num_workers", "disable_tqdm", "use_cpu")
        volatile += ("hub_token",)  # and this is written to files that are shown
        values = {key: value for key, value in self.to_dict().items() if key not in (*volatile, "logging_steps")}
        return json.loads(json.dumps(values))


def own_keys() -> list[str]:
    """The keys of a recipe that are ours, in order."""
    return [f.name for f in dataclasses.fields(Recipe) if f.name not in ("training", "stage_overrides")]


# The names of this module's earlier self that others import.
_MOVED = {"load_recipe": "recipe_file", "from_dict": "recipe_values", "RECIPES": "recipe_file"}


def __getattr__(name: str):
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"mmcot.training.stages.{_MOVED[name]}"), name)
