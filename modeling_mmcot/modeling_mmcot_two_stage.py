"""Both stages of Multimodal-CoT as one model (Zhang et al., arXiv 2302.00923, section 4).

The first network writes a rationale, the second reads question and rationale and answers. Everything between the two
happens on token ids: T5's tokens never span white space, so that joined ids equal the ids of the joined text.
"""

import copy

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from .answers_mmcot import MMCoTOutput, score_options, special_token_ids
from .configuration_mmcot import MMCoTTwoStageConfig
from .modeling_mmcot import MMCoTForConditionalGeneration
from .pipeline_mmcot import MMCoTPipeline  # noqa: F401  (travels with the model: the loader follows imports)
from .saving_mmcot import CompleteSaveMixin
from .vision_mmcot import build_vision, get_image_features

STAGES = ("rationale", "answer")
MAX_RATIONALE_TOKENS = 512  # the paper's output length of stage 1
MAX_ANSWER_TOKENS = 16  # "The answer is (B)." has 7


def join_ragged(parts: list[tuple[Tensor, Tensor]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Joins masked id tensors row by row, without gaps, right-padded.

    Args:
        parts: pairs of ids (batch, length_i) and mask (batch, length_i), 1 where the id counts.

    Returns:
        ids (batch, longest row) and attention mask, both int64.
    """
    ids = torch.cat([part for part, _ in parts], dim=1)
    mask = torch.cat([part.to(torch.bool) for _, part in parts], dim=1)
    order = (~mask).to(torch.int8).argsort(dim=1, stable=True)  # real ids to the left, in their order
    length = int(mask.sum(1).max())
    ids, mask = ids.gather(1, order)[:, :length], mask.gather(1, order)[:, :length]
    return ids.masked_fill(~mask, pad_token_id), mask.long()


class MMCoTModel(CompleteSaveMixin, PreTrainedModel, GenerationMixin):
    """Two networks `rationale` and `answer` and the `vision` backbone that both read.

    With `config.share_stages` one set of weights serves both stages and `answer` is `rationale`. The stages hold no
    backbone of their own: features are computed once a question.
    """

    config_class = MMCoTTwoStageConfig
    main_input_name = "input_ids"
    _no_split_modules = ["T5Block"]
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    _keep_in_fp32_modules = ["wo"]
    _auto_map = {
        "AutoConfig": "configuration_mmcot.MMCoTTwoStageConfig",
        "AutoModel": "modeling_mmcot_two_stage.MMCoTModel",
        "AutoProcessor": "processing_mmcot.MMCoTProcessor",
    }

    def __init__(self, config: MMCoTTwoStageConfig):
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
            ValueError: the stages read image features of different widths, or two different backbones.
        """
        stages = [rationale] if answer is None else [rationale, answer]
        widths = {stage.config.image_feature_size for stage in stages}
        if len(widths) > 1:
            raise ValueError(f"The stages read image features of different widths: {sorted(widths, key=str)}")
        backbones = [stage.encoder.vision.state_dict() for stage in stages if stage.encoder.vision is not None]
        if len(backbones) == 2 and not all(
            torch.equal(weight, backbones[1][name]) for name, weight in backbones[0].items()
        ):
            raise ValueError("The stages read two different vision backbones, and the model holds one for both")
        vision = next((stage.encoder.vision for stage in stages if stage.encoder.vision is not None), None)
        vision_config = rationale.config.vision_config or stages[-1].config.vision_config
        configs = []
        for stage in stages:
            stage.encoder.vision = None
            stage.config.vision_config = stage.encoder.config.vision_config = None
            configs.append(stage.config.to_dict())
        config = MMCoTTwoStageConfig(
            rationale_config=configs[0],
            answer_config=configs[-1],
            vision_config=vision_config,
            vision_feature=rationale.config.vision_feature,
            freeze_vision=rationale.config.freeze_vision,
            share_stages=answer is None,
            **({} if processor is None else processor.answer_token_ids()),
        )
        with torch.device("meta"):  # only the frame: the trained modules move in as they are, ties and all
            model = cls(config)
        model.rationale, model.vision = rationale, vision
        if answer is None:
            object.__setattr__(model, "answer", rationale)
        else:
            model.answer = answer
        model.generation_config = copy.deepcopy(rationale.generation_config)
        model.processor = processor
        return model.eval()

    def get_stage(self, stage: str) -> MMCoTForConditionalGeneration:
        """The network of "rationale" or "answer"."""
        if stage not in STAGES:
            raise ValueError(f"There is no stage {stage!r}: choose one of {', '.join(STAGES)}")
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
        alone.generation_config = copy.deepcopy(self.generation_config)
        alone.processor, alone._repository_files = self.processor, self._repository_files
        return alone.train(self.training)

    def get_input_embeddings(self):
        return self.rationale.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.rationale.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.rationale.get_output_embeddings()

    def get_encoder(self, *args, **kwargs):
        return self.rationale.get_encoder(*args, **kwargs)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.vision is not None and self.config.freeze_vision:
            self.vision.eval().requires_grad_(False)
        return self

    def encode_images(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, image_attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `MMCoTForConditionalGeneration.encode_images`, by the shared backbone."""
        if self.vision is None:
            raise ValueError("This model has no vision backbone: pass `image_features` instead of `pixel_values`")
        images = get_image_features(
            self.vision,
            pixel_values,
            pixel_mask,
            image_attention_mask,
            vision_feature=self.config.vision_feature,
            feature_size=self.config.rationale_config.image_feature_size,
        )
        return images.pooler_output, images.image_attention_mask

    def _image_inputs(self, pixel_values, pixel_mask, image_features, image_attention_mask) -> dict[str, Tensor]:
        """The image arguments of a stage, features computed; empty without an image or for text-only stages."""
        if image_features is None and pixel_values is not None and self.vision is not None:
            image_features, image_attention_mask = self.encode_images(pixel_values, pixel_mask, image_attention_mask)
        if image_features is None:
            return {}
        inputs = {"image_features": image_features.to(self.rationale.dtype)}
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
        input_ids: Tensor,
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
                closing; likewise.
            num_choices (batch,): choices of each problem; default: as many as there are letters.
            pixel_values, pixel_mask, image_features, image_attention_mask: as in `MMCoTForConditionalGeneration`.
            rationale_ids (rows, length): take these rationales instead of writing some.
            mode: "score" answers by one decoder step over the choices' letters and always gives an answer;
                "generate" also decodes the answer freely, as the paper does.
            output_image_attention: give the attention over patches and the gate.
            generation_config, kwargs: of the rationale (`num_beams`, `do_sample`, `num_return_sequences`, …).

        Raises:
            ValueError: an unknown mode, or the answer stage's inputs or token ids are missing.
        """
        if mode not in ("score", "generate"):
            raise ValueError(f'`mode` is "score" or "generate", not {mode!r}')
        if answer_input_ids is None or self.config.answer_suffix_ids is None:
            raise ValueError(
                "Two-stage generation needs `answer_input_ids` from the processor, and `answer_suffix_ids`, "
                "`option_prefix_ids` and `option_letter_ids` in the config (`MMCoTModel.from_stages(processor=…)`)"
            )
        kwargs.pop("return_dict_in_generate", None)
        images = self._image_inputs(pixel_values, pixel_mask, image_features, image_attention_mask)
        output = MMCoTOutput(**images)

        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if rationale_ids is None:
            encoded = self._encode("rationale", input_ids, attention_mask, images, output_image_attention)
            output.rationale_image_attentions = encoded.get("image_attentions")
            output.rationale_image_gate = encoded.get("image_gate")
            rationale_ids = self.rationale.generate(
                encoder_outputs=encoded,
                attention_mask=attention_mask,
                generation_config=self._rationale_generation_config(generation_config, kwargs),
            )
        output.rationale_ids = rationale_ids

        source, source_mask = self._answer_source(answer_input_ids, answer_attention_mask, rationale_ids)
        output.answer_source_ids, output.answer_source_mask = source, source_mask
        repeats = source.shape[0] // input_ids.shape[0]
        if repeats > 1:
            images = {name: value.repeat_interleave(repeats, dim=0) for name, value in images.items()}
        encoded = self._encode("answer", source, source_mask, images, output_image_attention)
        output.answer_image_attentions = encoded.get("image_attentions")
        output.answer_image_gate = encoded.get("image_gate")
        output.option_log_probs = score_options(
            self.answer,
            encoded,
            source_mask,
            self.config.option_prefix_ids,
            self.config.option_letter_ids,
            None if num_choices is None else num_choices.repeat_interleave(repeats, dim=0),
        )
        if mode == "generate":
            config = GenerationConfig(max_new_tokens=MAX_ANSWER_TOKENS, **special_token_ids(self.answer.config))
            output.answer_ids = self.answer.generate(
                encoder_outputs=encoded, attention_mask=source_mask, generation_config=config
            )
        return output

    def _encode(self, stage: str, input_ids, attention_mask, images, output_image_attention: bool):
        return self.get_stage(stage).get_encoder()(
            input_ids=input_ids,
            attention_mask=attention_mask,
            **images,
            **({"output_image_attention": True} if output_image_attention else {}),
            return_dict=True,
        )

    def _rationale_generation_config(self, generation_config, kwargs) -> GenerationConfig:
        config = copy.deepcopy(generation_config or self.generation_config)
        for name, value in special_token_ids(self.rationale.config).items():
            if getattr(config, name) is None:
                setattr(config, name, value)
        unused = config.update(**kwargs)
        if unused:
            raise ValueError(f"Neither a generation option nor an input of this model: {', '.join(sorted(unused))}")
        if config.max_new_tokens is None and config.max_length in (None, GenerationConfig().max_length, 20):
            config.max_new_tokens = MAX_RATIONALE_TOKENS
        return config

    def _answer_source(self, prefix_ids, prefix_mask, rationale_ids) -> tuple[Tensor, Tensor]:
        """Joins question, rationale and `Answer:` as ids; what is too long is cut as `MMCoTProcessor` cuts it."""
        config = self.config.answer_config
        if prefix_mask is None:
            prefix_mask = torch.ones_like(prefix_ids)
        repeats = rationale_ids.shape[0] // prefix_ids.shape[0]
        prefix_ids, prefix_mask = (t.repeat_interleave(repeats, dim=0) for t in (prefix_ids, prefix_mask))
        suffix_ids = prefix_ids.new_tensor(self.config.answer_suffix_ids).expand(prefix_ids.shape[0], -1)
        special = prefix_ids.new_tensor(
            [config.pad_token_id, self.rationale.config.decoder_start_token_id, config.eos_token_id]
        )
        keep = ~torch.isin(rationale_ids, special)
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
