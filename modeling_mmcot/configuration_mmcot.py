"""Configurations of one stage (`MMCoTConfig`), both stages (`MMCoTTwoStageConfig`), and several vision backbones."""

from dataclasses import field
from typing import Any, ClassVar

from .errors_mmcot import ModelError  # first, as it says so if transformers is too old to have the names below

# isort: split
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, T5Config

VISION_FEATURES = ("last_hidden_state", "pooler_output")
FUSION_GATES = ("sigmoid", "tanh", "none")
STAGES = (None, "rationale", "answer")


def as_vision_config(config: dict | PreTrainedConfig) -> PreTrainedConfig:
    """A backbone's configuration as an object; of a model of image and text (CLIP, SigLIP) its vision tower's.

    transformers' `sub_configs_defaults` would make the object, but not in 5.15.

    Raises:
        ModelError: a dictionary without a `model_type` that transformers knows.
    """
    if isinstance(config, dict):
        values = dict(config)
        model_type = values.pop("model_type", None)
        if model_type == MMCoTBackbonesConfig.model_type:
            return MMCoTBackbonesConfig(**values)
        if model_type not in CONFIG_MAPPING:
            raise ModelError(f"vision_config has model_type {model_type!r}, not one such as 'detr' or 'timm_wrapper'")
        config = AutoConfig.for_model(model_type, **values)
    return getattr(config, "vision_config", None) or config


class MMCoTConfig(T5Config):
    r"""Configuration of one stage of Multimodal-CoT: a T5 whose encoder output is fused with image features.

    A T5, FLAN-T5 or UnifiedQA `config.json` is a valid one: it gives the text-only network.

    Args:
        vision_config: the backbone inside the model, anything that `AutoModel` builds; without it image features come
            from outside.
        vision_feature: the backbone's output to use: `"last_hidden_state"` (patches), `"pooler_output"` (one vector).
        image_feature_size: width of an image feature; the backbone's by default. Without either there is no fusion.
        fusion_num_heads: heads of the attention over patches (the paper's: 1).
        fusion_gate: `"sigmoid"`, the mix of text and image of arXiv 2302.00923, section 4.2; `"tanh"`, text plus a
            learnt share of the image that begins at 0 (Flamingo, arXiv 2204.14198); or `"none"`, their sum.
        freeze_vision: the backbone is not trained and stays in evaluation mode.
        stage: what the weights were trained for, `"rationale"` or `"answer"`, if known.
        prompt_format: the prompt format they were trained for, such as `"QCM-E"`.
        use_caption: captions were part of the context in training.
        loss_on_padding: the loss counts padding in the labels, as the original code's does.
        max_source_length: longest source in tokens that the weights were trained for.
        source_truncation: how a longer one is cut, `"keep_ends"` or `"end"`; see `MMCoTProcessor`.
        option_prefix_ids, option_letter_ids: as in `MMCoTTwoStageConfig`, for a model that answers in one stage.
    """

    model_type = "mmcot"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": AutoConfig}

    bos_token_id: int | None = None  # T5 has none; generation asks for it
    decoder_start_token_id: int | None = 0
    vision_config: dict | PreTrainedConfig | None = None
    vision_feature: str = "last_hidden_state"
    image_feature_size: int | None = None
    fusion_num_heads: int = 1
    fusion_gate: str = "sigmoid"
    freeze_vision: bool = True
    stage: str | None = None
    prompt_format: str | None = None
    use_caption: bool = False
    loss_on_padding: bool = False
    max_source_length: int = 512
    source_truncation: str = "keep_ends"
    option_prefix_ids: list[int] | None = None
    option_letter_ids: list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.vision_config is not None:
            self.vision_config = as_vision_config(self.vision_config)
        # T5Config forces the tie and keeps the wish only as `scale_decoder_outputs`; a model whose head is its own
        # then ends up with a merged one as soon as somebody calls `tie_weights()`.
        tie_word_embeddings = kwargs.get("tie_word_embeddings")
        super().__post_init__(**kwargs)
        if tie_word_embeddings is not None:
            self.tie_word_embeddings = tie_word_embeddings
        for name, allowed in (("vision_feature", VISION_FEATURES), ("fusion_gate", FUSION_GATES), ("stage", STAGES)):
            if getattr(self, name) not in allowed:
                raise ModelError(f"{name} is {getattr(self, name)!r}, not one of {allowed}")
        if self.image_feature_size is not None and self.image_feature_size < 1:
            raise ModelError(f"image_feature_size is {self.image_feature_size}, not a width")
        if self.fusion_num_heads < 1 or self.d_model % self.fusion_num_heads:
            raise ModelError(f"fusion_num_heads={self.fusion_num_heads} doesn't divide d_model={self.d_model}")

    @property
    def has_fusion(self) -> bool:
        """Whether the network has image inputs at all."""
        return self.image_feature_size is not None or self.vision_config is not None


class MMCoTTwoStageConfig(PreTrainedConfig):
    r"""Configuration of both stages and the backbone that they share, in one `config.json`.

    Args:
        rationale_config: the stage that writes the rationale. It holds no `vision_config` of its own.
        answer_config: the stage that answers; the rationale stage's with `share_stages`.
        vision_config, vision_feature, freeze_vision: the backbone, as in `MMCoTConfig`.
        share_stages: one set of weights serves as both stages.
        answer_suffix_ids: token ids that close the answer stage's source (`Answer:` and the end of the sequence).
        option_prefix_ids: token ids that the answer starts with, up to its letter.
        option_letter_ids: token ids of the letters A to Z after that prefix.
    """

    model_type = "mmcot_two_stage"
    sub_configs: ClassVar[dict[str, Any]] = {
        "rationale_config": MMCoTConfig,
        "answer_config": MMCoTConfig,
        "vision_config": AutoConfig,
    }

    rationale_config: dict | PreTrainedConfig | None = None
    answer_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    vision_feature: str = "last_hidden_state"
    freeze_vision: bool = True
    share_stages: bool = False
    answer_suffix_ids: list[int] | None = None
    option_prefix_ids: list[int] | None = None
    option_letter_ids: list[int] | None = None
    is_encoder_decoder: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    decoder_start_token_id: int | None = 0

    def __post_init__(self, **kwargs):
        if self.vision_config is not None:
            self.vision_config = as_vision_config(self.vision_config)
        self.rationale_config = self._stage(self.rationale_config, "rationale")
        if self.share_stages:
            self.answer_config = self.rationale_config
        else:
            self.answer_config = self._stage(self.answer_config, "answer")
        super().__post_init__(**kwargs)
        if self.vision_feature not in VISION_FEATURES:
            raise ModelError(f"vision_feature is {self.vision_feature!r}, not one of {VISION_FEATURES}")

    @staticmethod
    def _stage(config: dict | PreTrainedConfig | None, stage: str) -> PreTrainedConfig:
        if config is None:
            return MMCoTConfig(stage=stage)
        return MMCoTConfig(**config) if isinstance(config, dict) else config

    def get_text_config(self, *args, **kwargs) -> Any:
        """The rationale stage's: both stages have one vocabulary."""
        return self.rationale_config


class MMCoTBackbonesConfig(PreTrainedConfig):
    r"""Configuration of several vision backbones that read the same pixels: a `vision_config` of `MMCoTConfig`.

    Args:
        backbones: their configurations, two or more.
        vision_features: the output of each that is used; `"last_hidden_state"` by default.
        pixel_scales, pixel_shifts: for each backbone three numbers, which make `pixel * scale + shift` its own pixels
            of the shared ones; by default 1 and 0.
        image_sizes: for each backbone the [height, width] that it needs, or None; other pixels are resized to it.
        hidden_size: sum of the features' widths; set when the networks are built.
    """

    model_type = "mmcot_backbones"

    backbones: list = field(default_factory=list)
    vision_features: list[str] = field(default_factory=list)
    pixel_scales: list[list[float]] = field(default_factory=list)
    pixel_shifts: list[list[float]] = field(default_factory=list)
    image_sizes: list = field(default_factory=list)
    hidden_size: int | None = None

    def __post_init__(self, **kwargs):
        self.backbones = [as_vision_config(config) for config in self.backbones]
        count = len(self.backbones)
        defaults = {"vision_features": "last_hidden_state", "pixel_scales": [1.0] * 3, "pixel_shifts": [0.0] * 3}
        for name, value in {**defaults, "image_sizes": None}.items():
            if not getattr(self, name):
                setattr(self, name, [value] * count)
            if len(getattr(self, name)) != count:
                raise ModelError(f"{name} are {len(getattr(self, name))}, but there are {count} backbones")
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As inherited, which leaves configurations in a list as they are; without where they were loaded from."""
        values = super().to_dict()
        values["backbones"] = [config.to_dict() for config in self.backbones]
        for backbone in values["backbones"]:
            backbone.pop("_name_or_path", None)
            backbone.pop("transformers_version", None)
        return values


__all__ = ["MMCoTBackbonesConfig", "MMCoTConfig", "MMCoTTwoStageConfig", "as_vision_config"]
