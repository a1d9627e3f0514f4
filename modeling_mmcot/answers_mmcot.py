"""Answers: what generation gives, and the scores of a problem's own choices."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class MMCoTOutput(ModelOutput):
    """What `MMCoTModel.generate` gives; rows = batch × `num_return_sequences`, sequences of one problem side by side.

    Args:
        rationale_ids (rows, length): generated rationale, beginning with the decoder's start token.
        option_log_probs (rows, max choices): log-probability of each choice's letter after "The answer is (",
            over the whole vocabulary; -inf beyond a problem's own choices.
        answer_ids (rows, length): freely generated answer; `mode="generate"` only.
        answer_source_ids, answer_source_mask (rows, length): what the answer stage read.
        image_features (batch, patches, width): the backbone's features, or those given; None without an image.
        image_attention_mask (batch, patches): which of them are real.
        rationale_image_attentions, answer_image_attentions (batch, heads, text, patches): attention of each source
            token over the patches; `output_image_attention=True` only. The answer stage's has `rows` for batch.
        rationale_image_gate, answer_image_gate (batch, text, d_model): likewise, share of the image in each state.
    """

    rationale_ids: Tensor | None = None
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


def special_token_ids(config) -> dict[str, int]:
    """Pad, end and start token of a stage, as `GenerationConfig` names them."""
    names = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
    return {name: getattr(config, name) for name in names if getattr(config, name, None) is not None}


def score_options(
    model,
    encoder_outputs,
    attention_mask: Tensor,
    option_prefix_ids: list[int],
    option_letter_ids: list[int],
    num_choices: Tensor | None = None,
) -> Tensor:
    """Log-probability of each choice's letter after the forced prefix "The answer is (", in one decoder pass.

    Args:
        model: the network that answers.
        encoder_outputs, attention_mask: its encoder's output for (rows, length) source tokens, and their mask.
        option_prefix_ids, option_letter_ids: see `MMCoTProcessor.answer_token_ids`.
        num_choices (rows,): choices of each row; default: as many as there are letters.

    Returns:
        (rows, max choices), float32, over the whole vocabulary; -inf beyond a row's own choices.
    """
    forced = [model.config.decoder_start_token_id, *option_prefix_ids]
    logits = model(
        encoder_outputs=encoder_outputs,
        attention_mask=attention_mask,
        decoder_input_ids=attention_mask.new_tensor(forced).expand(attention_mask.shape[0], -1),
        use_cache=False,
    ).logits[:, -1]
    return letter_log_probs(logits, option_letter_ids, num_choices)


def letter_log_probs(logits: Tensor, option_letter_ids: list[int], num_choices: Tensor | None = None) -> Tensor:
    """Log-probabilities of the choices' letters from the logits (rows, vocabulary) where the letter stands; see
    `score_options`."""
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
    attention_mask: Tensor,
    option_prefix_ids: list[int],
    option_letter_ids: list[int],
    answer_suffix_ids: list[int] | None = None,
    num_choices: Tensor | None = None,
    output_image_attention: bool = False,
    **kwargs,
) -> MMCoTOutput:
    """Answers with a network of one stage (prompt formats QCM-A, QCM-LEA, QCM-ALE, …).

    The answer is generated with its explanation, if the format has one. Where the target begins with the answer (…-A,
    …-A*), the choices are scored too.

    Args:
        option_prefix_ids, option_letter_ids, answer_suffix_ids: `MMCoTProcessor.answer_token_ids`; the last is of no
            use in one stage.
        kwargs: image inputs, as in `MMCoTForConditionalGeneration.forward`, and generation options.
    """
    names = ("image_features", "pixel_values", "pixel_mask", "image_attention_mask")
    images = {name: kwargs.pop(name) for name in names if name in kwargs}
    kwargs = {"max_new_tokens": 512, **kwargs}
    encoded = model.get_encoder()(
        input_ids=input_ids,
        attention_mask=attention_mask,
        **images,
        **({"output_image_attention": True} if output_image_attention else {}),
        return_dict=True,
    )
    output = MMCoTOutput(
        answer_source_ids=input_ids,
        answer_source_mask=attention_mask,
        answer_image_attentions=encoded.get("image_attentions"),
        answer_image_gate=encoded.get("image_gate"),
    )
    if (model.config.prompt_format or "QCM-A").split("-")[1].startswith("A"):
        output.option_log_probs = score_options(
            model, encoded, attention_mask, option_prefix_ids, option_letter_ids, num_choices
        )
    output.answer_ids = model.generate(encoder_outputs=encoded, attention_mask=attention_mask, **kwargs)
    return output
