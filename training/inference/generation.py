"""Which generation the greedy decoder takes over, and a network's `generate` that goes through it.

What the decoder takes is decided on the generation configuration that transformers itself has prepared and merged (the
call's options, a passed configuration, the model's): greedy decoding, and nothing beside the fields that the decoder
honours. Whatever else is asked for goes to transformers' own `generate`.
"""

import types
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from mmcot.training.inference.decoder import GreedyDecoder
from mmcot.training.inference.decoder_weights import is_plain_t5

# fields of a generation configuration that the decoder honours …
HONOURED = {"max_length", "max_new_tokens", "eos_token_id", "pad_token_id", "decoder_start_token_id"}
# … that change no ids of an encoder-decoder, or say where the configuration comes from …
WITHOUT_EFFECT = {"bos_token_id", "transformers_version", "_from_model_config", "compile_config", "disable_compile"}
# … that have an effect on sampling and beam search only …
OF_SAMPLING = {"temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}
OF_BEAMS = {"length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty"}
# … and the values at which the others ask for nothing; None does too, and False wherever a field is a switch.
NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
    "min_length": 0,
    "min_new_tokens": 0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1.0,
}
IMAGE_INPUTS = ("image_features", "pixel_values", "pixel_mask", "image_attention_mask")


def is_plain_greedy(config: GenerationConfig) -> bool:
    """Whether a configuration asks for the most probable token each time and nothing else."""
    return not special_options(config)


def special_options(config: GenerationConfig) -> dict[str, Any]:
    """What a configuration asks for beside plain greedy decoding: field → value."""
    filled = getattr(config, "_get_default_generation_params", dict)()  # whatever fields a version has
    neutral = {**GenerationConfig().to_dict(), **filled, **NEUTRAL}
    left = HONOURED | WITHOUT_EFFECT
    left = left if config.do_sample else left | OF_SAMPLING
    left = left if (config.num_beams or 1) > 1 else left | OF_BEAMS
    return {
        name: value
        for name, value in config.to_dict().items()
        if name not in left
        and value is not None
        and (value is not False or name == "use_cache")
        and (name not in neutral or value != neutral[name])
    }


def greedy_config(
    model, generation_config: GenerationConfig | None = None, options: dict[str, Any] | None = None
) -> GenerationConfig | None:
    """What a call of `model.generate` asks the decoder to do, or None if the decoder can't take the call.

    Args:
        model: a stage (or any T5).
        generation_config, options: as `generate` gets them. Options that are no fields of the configuration, such as
            a logits processor, are for `generate` alone, unless they are None, False or the encoder's.

    Returns:
        the merged configuration; its `max_new_tokens`, `eos_token_id` and `pad_token_id` are what holds.
    """
    options = options or {}
    lengths = [options.get("max_length"), generation_config and generation_config.max_length]
    lengths.append(model.generation_config.max_length)
    config, others = model._prepare_generation_config(generation_config, **options)
    if any(value is not None and value is not False for name, value in others.items() if name not in IMAGE_INPUTS):
        return None
    start = model.config.decoder_start_token_id
    if not is_plain_greedy(config) or start is None or config.decoder_start_token_id not in (None, start):
        return None
    if config.eos_token_id is None or not isinstance(config.pad_token_id, int):
        return None
    if model.training or not is_plain_t5(model):
        return None
    if config.max_new_tokens is None:
        length = next((length for length in lengths if length is not None), None)
        config.max_new_tokens = 20 if length is None else length - 1  # transformers' default; the start token counts
    return config if config.max_new_tokens > 0 else None


@torch.no_grad()
def generate(
    model,
    input_ids: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    encoder_outputs=None,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """A stage's `generate`, by the greedy decoder where it gives the same ids; see `use_engine`.

    Returns:
        ids (rows, length), beginning with the decoder's start token and padded behind each row's end; or whatever
        transformers' `generate` returns for what is asked of it.
    """
    labels = options.pop("labels", None)  # `Seq2SeqTrainer` hands them in; they are no part of generation
    config = greedy_config(model, generation_config, options)
    if attention_mask is None and config is not None:
        if encoder_outputs is None and input_ids is not None and not (input_ids == model.config.pad_token_id).any():
            attention_mask = torch.ones_like(input_ids)
        else:
            config = None  # what padding means without a mask is for transformers to say
    if config is None:
        given = {
            "input_ids": input_ids,
            "encoder_outputs": encoder_outputs,
            "attention_mask": attention_mask,
            "labels": labels,
        }
        given = {name: value for name, value in given.items() if value is not None}
        return type(model).generate(model, generation_config=generation_config, **given, **options)
    if encoder_outputs is None:
        images = {name: options[name] for name in IMAGE_INPUTS if options.get(name) is not None}
        encoder_outputs = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask, **images)
    hidden = encoder_outputs[0]
    decoder = GreedyDecoder(model, slots=len(hidden))
    batches = [(list(range(len(hidden))), hidden, attention_mask)]
    written = dict(decoder.decode(batches, config.max_new_tokens, config.eos_token_id))
    start = model.config.decoder_start_token_id
    rows = [torch.tensor([start, *written[row]]) for row in range(len(hidden))]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=config.pad_token_id)
    return padded.to(hidden.device)


def use_engine(model):
    """Lets the stages of a model generate by the greedy decoder wherever it gives the same ids; returns the model.

    Args:
        model: an `MMCoTModel` or `MMCoTForConditionalGeneration`; anything else stays as it is. Only this object
            changes, not its class, and what is saved of it doesn't.
    """
    from mmcot import MMCoTForConditionalGeneration, MMCoTModel

    stages = [model.rationale, model.answer] if isinstance(model, MMCoTModel) else [model]
    for stage in stages:
        if isinstance(stage, MMCoTForConditionalGeneration):
            stage.generate = types.MethodType(generate, stage)
    return model
