"""Both stages of Multimodal-CoT as one model (Zhang et al., arXiv 2302.00923, section 4).

The first network writes a rationale, the second reads question and rationale and answers. Everything between the two
happens on token ids: T5's tokens never span white space, so that joined ids equal the ids of the joined text.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from .answers_mmcot import (
    SPECIAL_TOKENS,
    MMCoTOutput,
    check_mode,
    check_vocabulary,
    join_ragged,
    mask_from_padding,
    own_tokens,
    prepare_generation_config,
    score_options,
)
from .configuration_mmcot import MMCoTTwoStageConfig
from .errors_mmcot import ModelError
from .modeling_mmcot import MMCoTForConditionalGeneration
from .pipeline_mmcot import MMCoTPipeline  # noqa: F401  (travels with the model: the loader follows imports)
from .saving_mmcot import CompleteSaveMixin
from .vision_mmcot import MMCoTImageFeatures, build_vision, get_image_features

STAGES = ("rationale", "answer")
MAX_ANSWER_TOKENS = 16  # "The answer is (B)." has 7


class MMCoTModel(CompleteSaveMixin, PreTrainedModel, GenerationMixin):
    """Two networks `rationale` and `answer` and the `vision` backbone that both read.

    With `config.share_stages` one set of weights serves both stages and `answer` is `rationale`. The stages hold no
    backbone of their own: features are computed once a question.
    """

    config_class = MMCoTTwoStageConfig
    main_input_name = "input_ids"
    _no_split_modules = ["T5Block", "GatedFusion"]
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    _keep_in_fp32_modules = ["wo"]
    _auto_map = {
        "AutoConfig": "configuration_mmcot.MMCoTTwoStageConfig",
        "AutoModel": "modeling_mmcot_two_stage.MMCoTModel",
        "AutoProcessor": "processing_mmcot.MMCoTProcessor",
    }

    def __init__(self, config: Any):
        super().__init__(config)
        self.rationale = MMCoTForConditionalGeneration(config.rationale_config)
        if config.share_stages:
            object.__setattr__(self, "answer", self.rationale)  # not registered again: its weights exist once
        else:
            self.answer = MMCoTForConditionalGeneration(config.answer_config)
        self.vision = build_vision(config.vision_config) if config.vision_config is not None else None
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        return False  # else transformers skips modules without own parameters when it initialises

    @classmethod
    def from_stages(
        cls,
        rationale: MMCoTForConditionalGeneration,
        answer: MMCoTForConditionalGeneration | None = None,
        processor=None,
    ) -> "MMCoTModel":
        """Joins two trained stages, which become part of the model; `answer=None` shares one's weights between both.

        Args:
            processor (`MMCoTProcessor`, *optional*): supplies the token ids of `Answer:` and of the options' letters,
                and is saved with the model.

        Raises:
            ModelError: the stages differ in what they must share (vocabulary, limits, image features, backbone), or
                the processor doesn't fit them. They are then as they were.
        """
        stages = [rationale] if answer is None or answer is rationale else [rationale, answer]
        _check_fit(stages, processor)
        seeing = next((stage for stage in stages if stage.encoder.vision is not None), rationale)
        vision = seeing.encoder.vision
        configs = [copy.deepcopy(stage.config) for stage in stages]
        for own in configs:
            own.vision_config = None
        config = MMCoTTwoStageConfig(
            rationale_config=configs[0],
            answer_config=configs[-1],
            vision_config=seeing.config.vision_config,
            vision_feature=seeing.config.vision_feature,
            freeze_vision=seeing.config.freeze_vision,
            share_stages=len(stages) == 1,
            **{name: getattr(rationale.config, name) for name in SPECIAL_TOKENS},
            **({} if processor is None else processor.answer_token_ids()),
        )
        with torch.device("meta"):  # only the frame: the trained modules move in as they are, ties and all
            model = cls(config)
        model.generation_config = copy.deepcopy(rationale.generation_config)
        for stage, own in zip(stages, configs, strict=True):  # all is checked: only now they change
            stage.encoder.vision = stage.encoder.config.vision_config = None
            stage.config = own
            stage.generation_config = GenerationConfig.from_model_config(own)  # as it is after loading
        model.rationale, model.vision = rationale, vision
        if len(stages) == 1:
            object.__setattr__(model, "answer", rationale)
        else:
            model.answer = stages[1]
        model.processor = processor
        return model.eval()

    def get_stage(self, stage: str) -> MMCoTForConditionalGeneration:
        """The network of "rationale" or "answer"."""
        if stage not in STAGES:
            raise ModelError(f"there is no stage {stage!r}: choose one of {', '.join(STAGES)}")
        return getattr(self, stage)

    def stage_alone(self, stage: str) -> MMCoTForConditionalGeneration:
        """A stage as a model of its own, the backbone inside; it shares its weights with this one.

        Save it, and it loads as `AutoModelForSeq2SeqLM` or `AutoModelForImageTextToText`.
        """
        config = copy.deepcopy(self.get_stage(stage).config)
        config.vision_config = copy.deepcopy(self.config.vision_config)
        config.vision_feature, config.freeze_vision = self.config.vision_feature, self.config.freeze_vision
        with torch.device("meta"):  # only the frame, as in `from_stages`
            alone = MMCoTForConditionalGeneration(config)
        source = self.get_stage(stage)
        alone.shared, alone.decoder, alone.lm_head = source.shared, source.decoder, source.lm_head
        for name, module in source.encoder.named_children():
            if name != "vision":
                setattr(alone.encoder, name, module)
        alone.encoder.vision = self.vision
        options = self.generation_config if stage == "rationale" else source.generation_config
        alone.generation_config = copy.deepcopy(options)
        alone.processor, alone._repository_files = self.processor, self._repository_files
        return alone.train(self.training)

    def get_input_embeddings(self):
        return self.rationale.get_input_embeddings()

    def resize_token_embeddings(self, *args, **kwargs):
        """As inherited, for both stages."""
        for stage in {id(stage): stage for stage in (self.rationale, self.answer)}.values():
            stage.resize_token_embeddings(*args, **kwargs)
        return self.get_input_embeddings()

    def train(self, mode: bool = True):
        super().train(mode)
        if self.vision is not None and self.config.freeze_vision:
            self.vision.eval().requires_grad_(False)
        return self

    def get_image_features(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        image_attention_mask: Tensor | None = None,
        **kwargs,
    ) -> MMCoTImageFeatures:
        """As `MMCoTForConditionalGeneration.get_image_features`, by the shared backbone."""
        if self.vision is None:
            raise ModelError("pixel_values need a vision backbone, and this model has none: pass `image_features`")
        names = {"vision_feature": self.config.vision_feature}
        names["feature_size"] = self.config.rationale_config.image_feature_size
        return get_image_features(self.vision, pixel_values, pixel_mask, image_attention_mask, **names, **kwargs)

    def _image_inputs(self, pixel_values, pixel_mask, image_features, image_attention_mask) -> dict[str, Tensor]:
        """The image arguments of a stage, features computed; empty without an image."""
        pictures = pixel_values is not None and (image_attention_mask is None or bool(image_attention_mask.any()))
        if image_features is None and pictures:
            images = self.get_image_features(pixel_values, pixel_mask, image_attention_mask)
            image_features, image_attention_mask = images.pooler_output, images.image_attention_mask
        if image_features is None:
            return {}
        inputs = {"image_features": image_features}
        if image_attention_mask is not None:
            inputs["image_attention_mask"] = image_attention_mask
        return inputs

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        image_features: Tensor | None = None,
        image_attention_mask: Tensor | None = None,
        stage: str = "rationale",
        **kwargs,
    ):
        """One stage's forward pass, with the shared backbone; `stage` is "rationale" or "answer".

        Further arguments are those of `MMCoTForConditionalGeneration.forward`, whose output is returned.
        """
        images = self._image_inputs(pixel_values, pixel_mask, image_features, image_attention_mask)
        return self.get_stage(stage)(input_ids=input_ids, attention_mask=attention_mask, **images, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Tensor | None = None,
        answer_input_ids: Tensor | None = None,
        answer_attention_mask: Tensor | None = None,
        num_choices: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        image_features: Tensor | None = None,
        image_attention_mask: Tensor | None = None,
        rationale_ids: Tensor | None = None,
        mode: str = "score",
        output_image_attention: bool = False,
        generation_config: GenerationConfig | None = None,
        **kwargs,
    ) -> MMCoTOutput:
        """Writes a rationale for each problem and answers with it.

        Args:
            input_ids, attention_mask (batch, length): source of the rationale stage, from `MMCoTProcessor`.
            answer_input_ids, answer_attention_mask (batch, length): source of the answer stage without rationale and
                closing; likewise. A missing mask is 0 on padding.
            num_choices (batch,): choices of each problem; default: as many as there are letters.
            pixel_values, pixel_mask, image_features, image_attention_mask: as in `MMCoTForConditionalGeneration`.
            rationale_ids (rows, length): take these rationales instead of writing some; padding or -100 is left out.
            mode: "score" answers by one decoder step over the choices' letters and always gives an answer;
                "generate" also decodes the answer greedily, as the paper does.
            output_image_attention: give the attention over patches and the gate.
            generation_config, kwargs: of the rationale, all that transformers' `generate` takes (`num_beams`,
                `do_sample`, `num_return_sequences`, `logits_processor`, `streamer`, …).

        Raises:
            ModelError: an unknown mode; the answer stage's inputs or token ids are missing; pixels without a backbone;
                options of a rationale that is given.
        """
        check_mode(mode)
        if answer_input_ids is None or self.config.answer_suffix_ids is None:
            raise ModelError(
                "two-stage generation needs `answer_input_ids` from the processor, and `answer_suffix_ids`, "
                "`option_prefix_ids` and `option_letter_ids` in the config (`MMCoTModel.from_stages(processor=…)`)"
            )
        images = self._image_inputs(pixel_values, pixel_mask, image_features, image_attention_mask)
        output = MMCoTOutput(image_features=images.get("image_features"))
        output.image_attention_mask = images.get("image_attention_mask")
        writer: Any = self.rationale.config
        if rationale_ids is None:
            writer, rest = prepare_generation_config(self, generation_config, **kwargs)
            if attention_mask is None:
                attention_mask = mask_from_padding(input_ids, self.rationale.config.pad_token_id)
            source = {"input_ids": input_ids, "attention_mask": attention_mask, **images}
            if output_image_attention:
                encoded = self.rationale.get_encoder()(**source, output_image_attention=True, return_dict=True)
                output.rationale_image_attentions = encoded.image_attentions
                output.rationale_image_gate = encoded.image_gate
            rationale_ids = self.rationale.generate(**source, generation_config=writer, **rest)
            if isinstance(rationale_ids, ModelOutput):  # return_dict_in_generate
                output.rationale_generation, rationale_ids = rationale_ids, rationale_ids.sequences
        elif kwargs or generation_config is not None:
            names = ", ".join(kwargs) or "generation_config"
            raise ModelError(f"`rationale_ids` are given: {names} would have no effect")
        output.rationale_ids = rationale_ids

        source_ids, source_mask = self._answer_source(answer_input_ids, answer_attention_mask, rationale_ids, writer)
        output.answer_source_ids, output.answer_source_mask = source_ids, source_mask
        repeats = len(source_ids) // len(answer_input_ids)
        images = {name: value.repeat_interleave(repeats, dim=0) for name, value in images.items()}
        encoded = self.answer.get_encoder()(
            input_ids=source_ids,
            attention_mask=source_mask,
            **images,
            output_image_attention=output_image_attention,
            return_dict=True,
        )
        output.answer_image_attentions = encoded.image_attentions
        output.answer_image_gate = encoded.image_gate
        output.option_log_probs = score_options(
            self.answer,
            encoded.last_hidden_state,
            source_mask,
            self.config.option_prefix_ids,
            self.config.option_letter_ids,
            None if num_choices is None else num_choices.repeat_interleave(repeats, dim=0),
        )
        if mode == "generate":
            output.answer_ids = self.answer.generate(
                source_ids, attention_mask=source_mask, encoder_outputs=encoded, max_new_tokens=MAX_ANSWER_TOKENS
            )
        return output

    def _answer_source(self, prefix_ids, prefix_mask, rationale_ids, writer=None) -> tuple[Tensor, Tensor]:
        """Joins question, rationale and `Answer:` as ids; what is too long is cut as `MMCoTProcessor` cuts it.

        `writer`: the configuration that names the rationale's special tokens; default: the rationale stage's.
        """
        config = self.config.answer_config
        if prefix_mask is None:
            prefix_mask = mask_from_padding(prefix_ids, config.pad_token_id)
        repeats, left_over = divmod(len(rationale_ids), len(prefix_ids))
        if left_over or not repeats:
            raise ModelError(f"there are {len(rationale_ids)} rationales for {len(prefix_ids)} problems")
        prefix_ids, prefix_mask = (t.repeat_interleave(repeats, dim=0) for t in (prefix_ids, prefix_mask))
        suffix_ids = prefix_ids.new_tensor(self.config.answer_suffix_ids).expand(prefix_ids.shape[0], -1)
        keep = own_tokens(rationale_ids, writer or self.rationale.config)
        limit = config.max_source_length
        if config.source_truncation == "keep_ends":
            keep &= keep.cumsum(1) <= limit - prefix_mask.sum(1, keepdim=True) - suffix_ids.shape[1]
        parts = [(prefix_ids, prefix_mask), (rationale_ids, keep), (suffix_ids, torch.ones_like(suffix_ids))]
        ids, mask = join_ragged(parts, config.pad_token_id)
        if ids.shape[1] > limit:
            cut = mask[:, limit] == 1
            ids, mask = ids[:, :limit].clone(), mask[:, :limit]
            ids[cut, -1] = suffix_ids[cut, -1]  # the end token stays, as when a tokenizer truncates
        return ids, mask


def _check_fit(stages: list[MMCoTForConditionalGeneration], processor) -> None:
    """What two stages and their processor must have in common, before anything is changed."""
    names = ["vocab_size", "max_source_length", "source_truncation", "image_feature_size", *SPECIAL_TOKENS]
    if all(stage.encoder.vision is not None for stage in stages):
        names.append("vision_feature")
    configs = [stage.config for stage in stages]
    for name in names:
        values = [getattr(config, name) for config in configs]
        if values[0] != values[-1]:
            raise ModelError(f"the stages differ in {name}: {values[0]} and {values[1]}")
    backbones = [stage.encoder.vision.state_dict() for stage in stages if stage.encoder.vision is not None]
    one, other = backbones * 2 if len(backbones) == 1 else backbones or ({}, {})
    if one.keys() != other.keys() or not all(torch.equal(one[name], other[name]) for name in one):
        raise ModelError("the stages read two different vision backbones, and the model holds one for both")
    if processor is not None:
        for name in ("max_source_length", "source_truncation"):
            ours, other = getattr(configs[0], name), getattr(processor, name)
            if ours != other:
                raise ModelError(f"the stages' {name} is {ours}, the processor's is {other}")
        check_vocabulary(processor, configs[0])
