"""Generation: its options, the scores of a problem's own choices, answers in one stage, and what comes out."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from .errors_mmcot import ModelError

MODES = ("score", "generate")
MAX_NEW_TOKENS = 512  # the paper's output length of stage 1
SPECIAL_TOKENS = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
IMAGE_INPUTS = ("image_features", "pixel_values", "pixel_mask", "image_attention_mask")


@dataclass
class MMCoTOutput(ModelOutput):
    """What `generate` gives; rows = batch × `num_return_sequences`, sequences of one problem side by side.

    Args:
        rationale_ids (rows, length): the rationale, beginning with the decoder's start token.
        rationale_generation: what transformers' `generate` gave of it; `return_dict_in_generate=True` only.
        option_log_probs (rows, max choices): log-probability of each choice's letter after "The answer is (", over the
            whole vocabulary; -inf beyond a problem's own choices.
        answer_ids (rows, length): freely generated answer; `mode="generate"` only.
        answer_source_ids, answer_source_mask (rows, length): what the answer stage read; (batch, length) in one stage.
        image_features (batch, patches, width): the backbone's features, or those given; None without an image.
        image_attention_mask (batch, patches): which of them are real.
        rationale_image_attentions, answer_image_attentions (batch, heads, text, patches): attention of each source
            token over the patches; `output_image_attention=True` only. Of two stages, the answer's has `rows` of it.
        rationale_image_gate, answer_image_gate (batch, text, d_model): likewise, share of the image in each state.
    """

    rationale_ids: Tensor | None = None
    rationale_generation: ModelOutput | None = None
    option_log_probs: Tensor | None = None
    answer_ids: Tensor | None = None
    answer_source_ids: Tensor | None = None
    answer_source_mask: Tensor | None = None
    image_features: Tensor | None = None
    image_attention_mask: Tensor | None = None
    rationale_image_attentions: Tensor | None = None
    rationale_image_gate: Tensor | None = None
    answer_image_attentions: Tensor | None = None
    answer_image_gate: Tensor | None = None


def check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ModelError(f"`mode` is one of {', '.join(map(repr, MODES))}, not {mode!r}")


def check_vocabulary(processor, config) -> None:
    """Raises a ModelError if the tokenizer has more tokens than a stage of this configuration has embeddings."""
    tokens = len(processor.tokenizer)
    if tokens > config.vocab_size:
        raise ModelError(
            f"the tokenizer has {tokens} tokens, the model's vocabulary {config.vocab_size}: take the model's own "
            f"tokenizer, or call `model.resize_token_embeddings({tokens})` and train"
        )


def prepare_generation_config(
    model, generation_config: GenerationConfig | None = None, **kwargs
) -> tuple[GenerationConfig, dict[str, Any]]:
    """The options that `model.generate` decodes with, and those of `kwargs` that are none.

    Merged in transformers' order: the call's options, `generation_config`, the model's own; special tokens that are
    missing then are the stage's, anything else has transformers' default. A call's limit (`max_length`,
    `max_new_tokens`) wins over the model's own; without any, there are 512 new tokens, the paper's.
    """
    config = copy.deepcopy(generation_config) if generation_config is not None else GenerationConfig()
    rest = config.update(**{name: value for name, value in kwargs.items() if value is not None})
    own = model.generation_config.to_dict()
    if config.max_length is not None or config.max_new_tokens is not None:
        own |= {"max_length": None, "max_new_tokens": None}
    config.update(**own, defaults_only=True, allow_custom_entries=True)
    stage = getattr(model, "rationale", model).config
    config.update(**{name: getattr(stage, name) for name in SPECIAL_TOKENS}, defaults_only=True)
    if config.cache_implementation == "paged":
        raise ModelError('cache_implementation="paged" (continuous batching) takes no image')
    if config.max_length is None and config.max_new_tokens is None:
        config.max_new_tokens = MAX_NEW_TOKENS
    return config, rest


def mask_from_padding(ids: Tensor, pad_token_id: int | None) -> Tensor:
    """The attention mask (batch, length) of ids that come without one: 0 on padding, as transformers infers it."""
    return torch.ones_like(ids) if pad_token_id is None else ids.ne(pad_token_id).long()


def own_tokens(ids: Tensor, config) -> Tensor:
    """Where ids (rows, length) are text: before the end token, without start token, padding and -100.

    Args:
        config: names the special tokens; a stage's, or the generation configuration that the ids were written with.
    """

    def among(*token_ids: int | list[int] | None) -> Tensor:
        flat = [token for given in token_ids for token in (given if isinstance(given, list) else [given])]
        return torch.isin(ids, ids.new_tensor([token for token in flat if token is not None]))

    ended = among(config.eos_token_id).cumsum(1) > 0
    return ~(ended | among(-100, config.pad_token_id, config.decoder_start_token_id))


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


def score_options(
    model,
    encoder_hidden_states: Tensor,
    attention_mask: Tensor,
    option_prefix_ids: list[int],
    option_letter_ids: list[int],
    num_choices: Tensor | None = None,
    written: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Log-probability of each choice's letter after the forced prefix "The answer is (", in one forward pass.

    Args:
        model: the network that answers.
        encoder_hidden_states (rows, length, d_model), attention_mask (rows, length): its encoder's output.
        option_prefix_ids, option_letter_ids: see `MMCoTProcessor.answer_token_ids`.
        num_choices (rows,): choices of each row; default: as many as there are letters.
        written: ids (rows, length) and mask of the text that the decoder wrote before the prefix, if any.

    Returns:
        (rows, max choices), float32, over the whole vocabulary; -inf beyond a row's own choices.
    """
    texts = ([model.config.decoder_start_token_id], option_prefix_ids)
    start, prefix = (attention_mask.new_tensor(text).expand(len(attention_mask), -1) for text in texts)
    before = [] if written is None else [written]
    parts = [(start, torch.ones_like(start)), *before, (prefix, torch.ones_like(prefix))]
    ids, mask = join_ragged(parts, model.config.pad_token_id)
    inputs = {"encoder_outputs": (encoder_hidden_states,), "attention_mask": attention_mask, "decoder_input_ids": ids}
    logits = model(**inputs, use_cache=False).logits  # (rows, length, vocabulary); what follows `last` is padding
    last = mask.sum(1).to(logits.device) - 1
    return letter_log_probs(logits[torch.arange(len(ids), device=logits.device), last], option_letter_ids, num_choices)


def letter_log_probs(logits: Tensor, option_letter_ids: list[int], num_choices: Tensor | None = None) -> Tensor:
    """What `score_options` gives, from the logits (rows, vocabulary) where the letter stands."""
    most = len(option_letter_ids) if num_choices is None else int(num_choices.max())
    scores = logits.float().log_softmax(-1)[:, option_letter_ids[:most]]
    if num_choices is not None:
        own = torch.arange(most, device=scores.device) < num_choices.to(scores.device)[:, None]
        scores = scores.masked_fill(~own, float("-inf"))
    return scores


@torch.no_grad()
def answer_in_one_stage(
    model,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    num_choices: Tensor | None = None,
    mode: str = "score",
    output_image_attention: bool = False,
    generation_config: GenerationConfig | None = None,
    option_prefix_ids: list[int] | None = None,
    option_letter_ids: list[int] | None = None,
    **kwargs,
) -> MMCoTOutput:
    """Answers with a network of one stage (prompt formats QCM-A, QCM-LEA, QCM-ALE, …), as `MMCoTModel.generate` does.

    Args:
        mode: "score" answers by the choices' letters, behind the explanation where the format begins with one (…-LEA);
            "generate" by the text. Both give the choices' scores, and the explanation as `rationale_ids`.
        option_prefix_ids, option_letter_ids: default: those of the model's config, or of its processor.
        kwargs: image inputs, as in `MMCoTForConditionalGeneration.forward`, and `generate`'s options.
    """
    check_mode(mode)
    if "answer_input_ids" in kwargs:
        raise ModelError("this is one stage of two: give it `processor(problems, stage=…)`, or load both stages")
    if option_prefix_ids is None or option_letter_ids is None:
        option_prefix_ids, option_letter_ids = _option_token_ids(model)
    images = {name: kwargs.pop(name, None) for name in IMAGE_INPUTS}
    config, rest = prepare_generation_config(model, generation_config, **kwargs)
    if attention_mask is None:
        attention_mask = mask_from_padding(input_ids, model.config.pad_token_id)
    encoded = model.get_encoder()(
        input_ids=input_ids,
        attention_mask=attention_mask,
        **images,
        output_image_attention=output_image_attention,
        return_dict=True,
    )
    output = MMCoTOutput(
        answer_source_ids=input_ids,
        answer_source_mask=attention_mask,
        answer_image_attentions=encoded.image_attentions,
        answer_image_gate=encoded.image_gate,
    )
    hidden, written = encoded.last_hidden_state, None  # `generate` repeats the encoder's output in place
    target = (model.config.prompt_format or "QCM-A").split("-")[1]
    if mode == "generate" or target != "A":
        ids = model.generate(
            input_ids, attention_mask=attention_mask, encoder_outputs=encoded, generation_config=config, **rest
        )
        if isinstance(ids, ModelOutput):  # return_dict_in_generate
            output.rationale_generation, ids = ids, ids.sequences
        output.answer_ids = ids if mode == "generate" else None
        if target != "A":
            own = own_tokens(ids, config)
            if not target.startswith("A"):
                own &= _before(ids, option_prefix_ids)
                written = ids, own
            output.rationale_ids = ids.masked_fill(~own, model.config.pad_token_id)
    elif rest:
        raise ModelError(f'mode="score" writes nothing with the format …-A: {", ".join(rest)} would have no effect')
    repeats = config.num_return_sequences or 1
    hidden, attention_mask = (tensor.repeat_interleave(repeats, dim=0) for tensor in (hidden, attention_mask))
    if num_choices is not None:
        num_choices = num_choices.repeat_interleave(repeats, dim=0)
    output.option_log_probs = score_options(
        model, hidden, attention_mask, option_prefix_ids, option_letter_ids, num_choices, written
    )
    return output


def _option_token_ids(model) -> tuple[list[int], list[int]]:
    known = model.config.to_dict()
    if known.get("option_letter_ids") is None and model.processor is not None:
        known = model.processor.answer_token_ids()
    if known.get("option_letter_ids") is None:
        raise ModelError("answers need `option_letter_ids` in the config: set `model.processor`, and save the model")
    return known["option_prefix_ids"], known["option_letter_ids"]


def _before(ids: Tensor, phrase: list[int]) -> Tensor:
    """Where ids (rows, length) stand before the first occurrence of a phrase; everywhere in a row without it."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    if ids.shape[1] >= len(phrase):
        hits = (ids.unfold(1, len(phrase), 1) == ids.new_tensor(phrase)).all(-1)
        found[:, : hits.shape[1]] = hits
    return found.cumsum(1) == 0
