"""One stage of Multimodal-CoT: T5 with an encoder that sees image features (arXiv 2302.00923, section 4).

Everything of T5 is inherited. The encoder ends in a gated fusion, so that whatever works with a T5 (generation,
caches, adapters, trainers) works here: the decoder sees only an encoder output.
"""

import copy
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, T5ForConditionalGeneration
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.t5.modeling_t5 import T5PreTrainedModel, T5Stack
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .answers_mmcot import answer_in_one_stage
from .configuration_mmcot import MMCoTConfig
from .errors_mmcot import ModelError
from .fusion_mmcot import GatedFusion
from .pipeline_mmcot import MMCoTPipeline  # noqa: F401  (travels with the model: the loader follows imports)
from .saving_mmcot import CompleteSaveMixin
from .vision_mmcot import MMCoTImageFeatures, build_vision, get_image_features, vision_feature_size

# what transformers calls the decoder's cache, before and since 5.24
CACHE = "cache" if "cache" in Seq2SeqLMOutput.__dataclass_fields__ else "past_key_values"


@dataclass
class MMCoTEncoderOutput(BaseModelOutput):
    """The encoder's output; its last hidden state is the fused one. `output_image_attention=True` adds:

    Attributes:
        image_hidden_states: (batch, patches, width), the image features that were fused.
        image_attentions: (batch, heads, length, patches), each token's attention over patches.
        image_gate: (batch, length, d_model), the share of the image in each value.
    """

    image_hidden_states: Tensor | None = None
    image_attentions: Tensor | None = None
    image_gate: Tensor | None = None


@dataclass
class MMCoTSeq2SeqLMOutput(Seq2SeqLMOutput):
    """T5's output and the three image fields of `MMCoTEncoderOutput`."""

    image_hidden_states: Tensor | None = None
    image_attentions: Tensor | None = None
    image_gate: Tensor | None = None


class MMCoTPreTrainedModel(T5PreTrainedModel):
    """What the networks here share: their configuration and how fresh weights are drawn."""

    config: MMCoTConfig
    config_class = MMCoTConfig
    _no_split_modules = ["T5Block", "GatedFusion"]

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: for code from outside transformers, initialisation skips T5's modules that hold no parameters themselves
        and leaves their weights at a standard deviation of 1."""
        return False

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, GatedFusion):
            self._init_fusion(module)

    @staticmethod
    def _init_fusion(fusion: GatedFusion):
        """PyTorch's defaults for `nn.Linear` and `nn.MultiheadAttention`, which the original keeps, not T5's."""
        for linear in (fusion.image_proj, fusion.out_proj, fusion.gate_proj):
            if linear is not None:
                bound = linear.in_features**-0.5
                init.uniform_(linear.weight, -bound, bound)
                init.uniform_(linear.bias, -bound, bound)
        init.zeros_(fusion.out_proj.bias)
        if fusion.gate_scale is not None:
            init.zeros_(fusion.gate_scale)
        for linear in (fusion.q_proj, fusion.k_proj, fusion.v_proj):
            bound = (6 / (4 * linear.in_features)) ** 0.5  # Xavier over the three stacked, as PyTorch keeps them
            init.uniform_(linear.weight, -bound, bound)
            init.zeros_(linear.bias)


class MMCoTEncoder(MMCoTPreTrainedModel, T5Stack):
    """T5's encoder, with the image features fused into its output; complete with its vision backbone, if any."""

    def __init__(self, config: MMCoTConfig):
        T5Stack.__init__(self, config)
        self.vision = self.fusion = None
        if config.vision_config is not None:
            self.vision = build_vision(config.vision_config)
            if config.image_feature_size is None:
                config.image_feature_size = vision_feature_size(self.vision, config.vision_feature)
        if config.image_feature_size is not None:
            sizes = (config.d_model, config.image_feature_size, config.fusion_num_heads)
            self.fusion = GatedFusion(*sizes, config.fusion_gate)
        self.post_init()  # T5Stack has called it before these two existed
        self.train(self.training)

    def train(self, mode: bool = True):
        """As `nn.Module.train`, but a frozen backbone stays in evaluation mode and out of the gradients."""
        super().train(mode)
        if self.vision is not None and self.config.freeze_vision:
            self.vision.eval().requires_grad_(False)
        return self

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, *args: Any, **kwargs: Any) -> MMCoTImageFeatures:
        """Image features by the backbone inside the model: `get_image_features` of vision_mmcot.py."""
        if self.vision is None:
            raise ModelError("pixel_values need a vision backbone, and this model has none: set vision_config")
        kwargs |= {"vision_feature": self.config.vision_feature, "feature_size": self.config.image_feature_size}
        return get_image_features(self.vision, pixel_values, *args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        image_features: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        image_attention_mask: Tensor | None = None,
        output_image_attention: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MMCoTEncoderOutput:
        """Encode text and image; the arguments are those of `MMCoTForConditionalGeneration.forward`."""
        kwargs["return_dict"] = True
        text = super().forward(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )
        output = MMCoTEncoderOutput(text.last_hidden_state, text.hidden_states, text.attentions)
        if self.fusion is None:
            if image_features is not None or pixel_values is not None:
                raise ModelError("this model takes no images: set image_feature_size or vision_config")
            return output
        if image_features is None and pixel_values is not None:
            images = self.get_image_features(pixel_values, pixel_mask, image_attention_mask, return_dict=True)
            image_features, image_attention_mask = images.pooler_output, images.image_attention_mask
        output.last_hidden_state, output.image_attentions, output.image_gate = self.fusion(
            text.last_hidden_state, image_features, image_attention_mask, output_attentions=output_image_attention
        )
        if output_image_attention:
            output.image_hidden_states = image_features
        if output.hidden_states is not None:
            output.hidden_states = (*output.hidden_states[:-1], output.last_hidden_state)
        return output


class MMCoTForConditionalGeneration(
    CompleteSaveMixin, MMCoTPreTrainedModel, T5ForConditionalGeneration, GenerationMixin
):
    """T5 that sees images: one stage of Multimodal-CoT.

    `from_pretrained` takes its own folders, any T5 checkpoint (the fusion then starts fresh) and the original
    project's checkpoints in both of their key layouts.
    """

    _auto_map = {
        "AutoConfig": "configuration_mmcot.MMCoTConfig",
        "AutoModel": "modeling_mmcot.MMCoTForConditionalGeneration",
        "AutoModelForSeq2SeqLM": "modeling_mmcot.MMCoTForConditionalGeneration",
        "AutoModelForImageTextToText": "modeling_mmcot.MMCoTForConditionalGeneration",
        "AutoProcessor": "processing_mmcot.MMCoTProcessor",
    }
    _pipeline_auto_class = "AutoModelForSeq2SeqLM"
    encoder: MMCoTEncoder

    def __init__(self, config: MMCoTConfig):
        # Not T5ForConditionalGeneration's, which would build a second encoder.
        T5PreTrainedModel.__init__(self, config)
        self.loss_type = "ForMaskedLM"  # plain cross-entropy: the decoder's inputs are shifted, not the labels
        self.model_dim = config.d_model
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = MMCoTEncoder(self._stack_config(is_decoder=False, use_cache=False))
        config.image_feature_size = self.encoder.config.image_feature_size  # known once the backbone is there
        self.decoder = T5Stack(self._stack_config(is_decoder=True, num_layers=config.num_decoder_layers))
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()
        self.train(self.training)  # freezes the backbone

    def _stack_config(self, **changes) -> MMCoTConfig:
        """A copy for encoder or decoder; the backbone's configuration stays one object."""
        config = copy.deepcopy(self.config)
        config.vision_config = self.config.vision_config
        for name, value in changes.items():
            setattr(config, name, value)
        return config

    @classmethod
    def _adapt(cls, source, saved_config, weights, config, kwargs):
        own = saved_config.get("model_type") == cls.config_class.model_type
        if own and weights and not any("mha_layer." in name for name in weights):
            return config
        # By others: to start a training from. No plain import, which would bring the file into every Hub repository.
        if not saved_config or importlib.util.find_spec(f"{__package__}.checkpoints") is None:
            return super()._adapt(source, saved_config, weights, config, kwargs)
        checkpoints = importlib.import_module(".checkpoints", __package__)
        return checkpoints.adapt_checkpoint(cls.config_class, source, saved_config, weights, config, kwargs)

    def _after_loading(self, info):
        if any(key.startswith("encoder.vision.") for key in info["missing_keys"]):
            # Made again: backbones draw some of their weights where they are built, and loading builds without memory.
            self.encoder.vision = build_vision(self.config.vision_config).to(device=self.device, dtype=self.dtype)
            self.eval()
        if self.config.tie_word_embeddings and self.lm_head.weight is not self.shared.weight:
            # transformers kept them apart because they differ; say so, or the next tie_weights() merges them.
            for part in (self, self.encoder, self.decoder):
                part.config.tie_word_embeddings = False

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """With a head of its own (FLAN-T5), encoder and decoder still share one embedding."""
        if all_submodels or self.config.tie_word_embeddings:
            return super().get_expanded_tied_weights_keys(all_submodels=all_submodels)
        return {target: source for target, source in self._tied_weights_keys.items() if target != "lm_head.weight"}

    def get_image_features(self, pixel_values: Tensor, *args: Any, **kwargs: Any) -> MMCoTImageFeatures:
        """As `MMCoTEncoder.get_image_features`."""
        return self.encoder.get_image_features(pixel_values, *args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        image_features: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        image_attention_mask: Tensor | None = None,
        output_image_attention: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MMCoTSeq2SeqLMOutput:
        """T5's forward with images.

        Args:
            input_ids, attention_mask: (batch, length), padded on either side.
            labels: (batch, target), -100 where no loss is taken (on padding, if `loss_on_padding`).
            encoder_outputs: this model's encoder's; the image arguments are then without effect.
            image_features: (batch, patches, width), computed before.
            pixel_values: (batch, 3, H, W) or (batch, images, 3, H, W), for the model's own backbone instead.
            pixel_mask: (batch, H, W) or (batch, images, H, W), if the backbone takes one.
            image_attention_mask: (batch, patches) beside features, (batch, images) beside pixels; False where there is
                none. A row without any, and a call without images, sees one all-zero patch.
            output_image_attention: give out image features, attention over patches and gate.
            num_items_in_batch: divide the summed loss by this instead of by this batch's own labels, as `Trainer` asks
                for when it accumulates gradients.
            skip_logits: with labels: the loss alone. The output layer then works on positions with a label only, and
                `logits` is None.
        """
        cache = kwargs.pop("past_key_values", cache)
        kwargs["return_dict"] = True
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                image_features=image_features,
                pixel_values=pixel_values,
                pixel_mask=pixel_mask,
                image_attention_mask=image_attention_mask,
                output_image_attention=output_image_attention,
                **kwargs,
            )
        elif not isinstance(encoder_outputs, BaseModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs[:3])
        if labels is not None and self.config.loss_on_padding:
            labels = labels.masked_fill(labels == -100, self.config.pad_token_id or 0)
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._shift_right(labels)
        decoded = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=attention_mask,
            use_cache=False if skip_logits and labels is not None else use_cache,
            **{CACHE: cache},
            **kwargs,
        )
        states = decoded.last_hidden_state
        states = states * self.model_dim**-0.5 if self.config.scale_decoder_outputs else states
        loss = None
        logits: Any = None if skip_logits and labels is not None else self.lm_head(states)
        if labels is not None and skip_logits:
            labels = labels.flatten().to(states.device)
            labelled = (labels != -100).nonzero().squeeze(1)  # once: the device has to be waited for
            labels, states = labels[labelled], states.flatten(0, 1)[labelled]  # (labels, d_model)
            loss = self.labelled_loss(self.lm_head, states, labels, num_items_in_batch)
        elif labels is not None:
            loss = self.loss_function(logits, labels, logits.shape[-1], num_items_in_batch=num_items_in_batch)
        return MMCoTSeq2SeqLMOutput(
            loss=loss,
            logits=logits,
            **{CACHE: getattr(decoded, CACHE)},
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
            **{name: value for name, value in encoder_outputs.items() if name.startswith("image_")},
        )

    def labelled_loss(self, lm_head: nn.Module, states: Tensor, labels: Tensor, num_items_in_batch=None) -> Tensor:
        """The loss of states (labels, d_model) that have a label each; where training may put another way to it."""
        logits = lm_head(states)
        return self.loss_function(logits, labels, logits.shape[-1], num_items_in_batch=num_items_in_batch)

    def generate(self, *args, num_choices: Tensor | None = None, **kwargs):
        """As any T5's. With `num_choices` (batch,), which the processor gives for whole problems, it answers them as
        `MMCoTModel.generate` does, and gives an `MMCoTOutput`: see `answer_in_one_stage`."""
        if num_choices is None:
            return super().generate(*args, **kwargs)
        return answer_in_one_stage(self, *args, num_choices=num_choices, **{"mode": "score", **kwargs})

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether `Trainer` may hand in `num_items_in_batch`. It counts labels without padding, so not with
        `loss_on_padding`: the loss is then a mean over each batch, as the original's."""
        return not self.config.loss_on_padding


__all__ = ["MMCoTEncoder", "MMCoTForConditionalGeneration", "MMCoTPreTrainedModel"]
