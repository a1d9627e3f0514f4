"""Generation: its options, the scores of a problem's own choices, and what comes out."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from .errors_mmcot import ModelError

MODES = ("score", "generate")
MAX_RATIONALE_TOKENS = 512  # the paper's output length of stage 1
IMAGE_INPUTS = ("image_features", "pixel_values", "pixel_mask", "image_attention_mask")


@dataclass
class MMCoTOutput(ModelOutput):
    """What `generate` gives; rows = batch × `num_return_sequences`, sequences of one problem side by side.

    Args:
        rationale_ids (rows, length): generated rationale, beginning with the decoder's start token.
        rationale_generation: what transformers' `generate` gave of it, with `return_dict_in_generate=True` only.
        option_log_probs (rows, max choices): log-probability of each choice's letter after "The answer is (",
            over the whole vocabulary; -inf beyond a problem's own choices.
        answer_ids (rows, length): freely generated answer; `mode="generate"` only.
        answer_source_ids, answer_source_mask (rows, length): what the answer stage read; (batch, length) in one stage.
        image_features (batch, patches, width): the backbone's features, or those given; None without an image.
        image_attention_mask (batch, patches): which of them are real.
        rationale_image_attentions, answer_image_attentions (batch, heads, text, patches): attention of each source
            token over the patches; `output_image_attention=True` only. With two stages the answer's has `rows` for
            batch.
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


def prepare_generation_config(
    model, generation_config: GenerationConfig | None = None, **kwargs
) -> tuple[GenerationConfig, dict]:
    """The options that `model.generate` decodes with, and those of `kwargs` that are none.

    Merged in transformers' order: the call's options, `generation_config`, the model's own; what is None afterwards
    has transformers' default. A call's `max_length` wins over the model's own `max_new_tokens`; without any limit
    there are 512 new tokens, the paper's.
    """
    config = copy.deepcopy(generation_config) if generation_config is not None else GenerationConfig()
    rest = config.update(**kwargs)
    own = model.generation_config.to_dict()
    if config.max_length is not None or config.max_new_tokens is not None:
        own.pop("max_new_tokens", None)
        own.pop("max_length", None)
    config.update(**own, defaults_only=True, allow_custom_entries=True)
    if config.cache_implementation == "paged":
        raise ModelError('cache_implementation="paged" (continuous batching) takes no encoder\'s output')
    if config.max_length is None and config.max_new_tokens is None:
        config.max_new_tokens = MAX_RATIONALE_TOKENS
    return config, rest


def encoder_options(config: GenerationConfig) -> dict[str, bool]:
    """What a generation configuration asks of the encoder."""
    names = ("output_attentions", "output_hidden_states")
    return {name: True for name in names if getattr(config, name)}


def special_token_ids(config) -> dict[str, int | list[int]]:
    """Pad, end and start token of a stage, as `GenerationConfig` names them."""
    names = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
    return {name: getattr(config, name) for name in names if getattr(config, name, None) is not None}


def mask_from_padding(ids: Tensor, pad_token_id: int | None) -> Tensor:
    """The attention mask (batch, length) of ids that come without one: 0 on padding, as transformers infers it."""
    return torch.ones_like(ids) if pad_token_id is None else ids.ne(pad_token_id).long()


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


def check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ModelError(f"`mode` is one of {', '.join(map(repr, MODES))}, not {mode!r}")


def check_vocabulary(processor, config) -> None:
    """Raises a ModelError if the tokenizer has more tokens than a stage of this configuration has embeddings."""
    tokens = len(processor.tokenizer)
    if tokens > config.vocab_size:
        raise ModelError(
            f"the tokenizer has {tokens} tokens, the model's vocabulary {config.vocab_size}: call "
            f"`resize_token_embeddings({tokens})` before training, or take the model's own tokenizer"
        )


def score_options(
    model,
    encoder_hidden_states: Tensor,
    attention_mask: Tensor,
    option_prefix_ids: list[int],
    option_letter_ids: list[int],
    num_choices: Tensor | None = None,
    written: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Log-probability of each choice's letter after the forced prefix "The answer is (", in one decoder pass.

    Args:
        model: the network that answers.
        encoder_hidden_states (rows, length, d_model): what its encoder made of the source.
        attention_mask (rows, length): the source's.
        option_prefix_ids, option_letter_ids: see `MMCoTProcessor.answer_token_ids`.
        num_choices (rows,): choices of each row; default: as many as there are letters.
        written: ids (rows, length) and mask of what the decoder wrote before; default: its start token.

    Returns:
        (rows, max choices), float32, over the whole vocabulary; -inf beyond a row's own choices.
    """
    prefix = attention_mask.new_tensor(option_prefix_ids).expand(attention_mask.shape[0], -1)
    if written is None:
        start = torch.full_like(prefix[:, :1], model.config.decoder_start_token_id)
        written = start, torch.ones_like(start)
    ids, mask = join_ragged([written, (prefix, torch.ones_like(prefix))], model.config.pad_token_id)
    states = model.get_decoder()(
        input_ids=ids,
        attention_mask=mask,
        encoder_hidden_states=encoder_hidden_states,
        encoder_attention_mask=attention_mask,
        use_cache=False,
    )[0]
    states = states[torch.arange(len(ids), device=states.device), mask.sum(1).to(states.device) - 1]  # the letter's
    if model.config.scale_decoder_outputs:
        states = states * model.config.d_model**-0.5
    return letter_log_probs(model.lm_head(states), option_letter_ids, num_choices)


def letter_log_probs(logits: Tensor, option_letter_ids: list[int], num_choices: Tensor | None = None) -> Tensor:
    """Log-probabilities of the choices' letters from the logits (rows, vocabulary) where the letter stands; see
    `score_options`."""
    most = len(option_letter_ids) if num_choices is None else int(num_choices.max())
    scores = logits.float().log_softmax(-1)[:, option_letter_ids[:most]]
    if num_choices is not None:
        own = torch.arange(most, device=scores.device) < num_choices.to(scores.device)[:, None]
        scores = scores.masked_fill(~own, float("-inf"))
    return scores


def own_tokens(ids: Tensor, config, generation_config: GenerationConfig | None = None) -> Tensor:
    """Where ids (rows, length) are text: without start token, end token, padding and -100.

    Args:
        config: of the network that wrote them.
        generation_config: what `generate` wrote them with; whatever follows its end token is padding.
    """
    special = [-100, config.pad_token_id, config.decoder_start_token_id, *_as_list(config.eos_token_id)]
    own = ~torch.isin(ids, ids.new_tensor([token for token in special if token is not None]))
    if generation_config is not None:
        own[:, 0] = False
        own &= torch.isin(ids, ids.new_tensor(_as_list(generation_config.eos_token_id))).cumsum(1) == 0
    return own


def _as_list(token_ids: int | list[int] | None) -> list[int]:
    return [] if token_ids is None else [token_ids] if isinstance(token_ids, int) else list(token_ids)


def _before(ids: Tensor, phrase: list[int]) -> Tensor:
    """Where ids (rows, length) stand before the first occurrence of a phrase, or anywhere in a row without it."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    if ids.shape[1] >= len(phrase):
        hits = (ids.unfold(1, len(phrase), 1) == ids.new_tensor(phrase)).all(-1)
        found[:, : hits.shape[1]] = hits
    return found.cumsum(1) == 0


@torch.no_grad()
def answer_in_one_stage(
    model,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    num_choices: Tensor | None = None,
    mode: str = "generate",
    output_image_attention: bool = False,
    generation_config: GenerationConfig | None = None,
    option_prefix_ids: list[int] | None = None,
    option_letter_ids: list[int] | None = None,
    answer_suffix_ids: list[int] | None = None,
    **kwargs,
) -> MMCoTOutput:
    """Answers with a network of one stage (prompt formats QCM-A, QCM-LEA, QCM-ALE, …), as `MMCoTModel.generate` does.

    Args:
        mode: "score" answers by the choices' letters, behind the explanation where the format begins with one (…-LEA);
            "generate" by the text. Both give the choices' scores, and the explanation as `rationale_ids`.
        option_prefix_ids, option_letter_ids: default: those of the model's config, or of its processor.
            `answer_suffix_ids` is of no use in one stage.
        kwargs: image inputs, as in `MMCoTForConditionalGeneration.forward`, and `generate`'s options.
    """
    check_mode(mode)
    if "answer_input_ids" in kwargs:
        raise ModelError(
            "this is one stage of two: give it its own inputs, `processor(problems, stage=…)`, or load the repository "
            "of both stages"
        )
    if option_prefix_ids is None or option_letter_ids is None:
        option_prefix_ids, option_letter_ids = _option_token_ids(model)
    target = (model.config.prompt_format or "QCM-A").split("-")[1]
    images = {name: kwargs.pop(name, None) for name in IMAGE_INPUTS}
    config, rest = prepare_generation_config(model, generation_config, **kwargs)
    if attention_mask is None:
        attention_mask = mask_from_padding(input_ids, model.config.pad_token_id)
    source = {"input_ids": input_ids, "attention_mask": attention_mask}
    encoded = model.get_encoder()(
        **source, **images, output_image_attention=output_image_attention, return_dict=True, **encoder_options(config)
    )
    output = MMCoTOutput(
        answer_source_ids=input_ids,
        answer_source_mask=attention_mask,
        answer_image_attentions=encoded.image_attentions,
        answer_image_gate=encoded.image_gate,
    )
    hidden, written = encoded.last_hidden_state, None  # `generate` repeats the encoder's output in place
    if mode == "generate" or target != "A":
        ids = model.generate(**source, encoder_outputs=encoded, generation_config=config, **rest)
        if isinstance(ids, ModelOutput):
            output.rationale_generation, ids = ids, ids.sequences
        if mode == "generate":
            output.answer_ids = ids
        if target != "A":
            own = own_tokens(ids, model.config, config)
            if not target.startswith("A"):
                own &= _before(ids, option_prefix_ids)
                own[:, 0] = True  # the start token
                written = ids, own
            output.rationale_ids = ids.masked_fill(~own, model.config.pad_token_id)
    elif rest:
        raise ModelError(f'the format …-A writes nothing in mode="score", so that {", ".join(rest)} would be ignored')
    repeats = config.num_return_sequences or 1

    def repeated(tensor):
        return None if tensor is None else tensor.repeat_interleave(repeats, dim=0)

    output.option_log_probs = score_options(
        model,
        repeated(hidden),
        repeated(attention_mask),
        option_prefix_ids,
        option_letter_ids,
        repeated(num_choices),
        written,
    )
    return output


def _option_token_ids(model) -> tuple[list[int], list[int]]:
    holder = model.config.to_dict()
    if holder.get("option_letter_ids") is None and model.processor is not None:
        holder = model.processor.answer_token_ids()
    if holder.get("option_letter_ids") is None:
        raise ModelError(
            "answers need `option_prefix_ids` and `option_letter_ids` in the config, or a processor: set "
            "`model.processor`, and save the model with it"
        )
    return holder["option_prefix_ids"], holder["option_letter_ids"]
