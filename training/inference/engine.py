"""Many questions through trained networks, quickly: rationales are decoded greedily, options scored.

Three functions, one for each way a model is asked: `answer_questions` (both stages), `write_texts` (one network
writes: the rationale stage, or a one-stage model) and `score_options_of` (one network scores the options: the answer
stage). Each takes batches of tensors and gives results as they come; encoders read questions beside others of their
length.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from mmcot.answers_mmcot import MMCoTOutput, letter_log_probs
from mmcot.training.inference.decoder import GreedyDecoder
from mmcot.training.inference.decoder_weights import DecoderWeights, attention_kernels, forced_logits
from mmcot.training.inference.encoder_weights import EncoderWeights, is_plain_encoder

ANSWER_BATCHES = 4  # so many batches of answers are gathered and sorted by length
# Tokens that an encoder reads at a time. What a CPU's caches hold of their states; its fast products of bfloat16 want
# more, a GPU enough to be busy.
CPU_TOKENS, CPU_TOKENS_OF_BFLOAT16, OTHER_TOKENS = 1024, 3072, 32768
Batches = Iterable[tuple[list[Hashable], Mapping[str, torch.Tensor]]]


class StageWeights:
    """A network as the engine computes with it: encoder and decoder, in one dtype. The network stays as it is.

    Args:
        model: an `MMCoTForConditionalGeneration` in evaluation mode, for whose decoder `is_plain_t5`. An encoder that
            isn't plain (adapters, hooks) reads by its own passes.
        dtype: of products and attention, see `answering_dtype`; default: autocast's where that is on, else the
            weights'.
        packed: whether to make copies that a CPU multiplies faster, see `matrices.packs`.
    """

    def __init__(self, model, dtype: torch.dtype | None = None, packed: bool | None = None):
        self.model, self.config, self.device = model, model.config, model.device
        self.decoder = DecoderWeights(model, dtype, packed)
        self.encoder = EncoderWeights(model, dtype, packed) if is_plain_encoder(model.get_encoder()) else None

    @property
    def encoder_tokens(self) -> int:
        """Tokens, padding included, that the encoder reads at a time."""
        if self.device.type != "cpu":
            return OTHER_TOKENS
        return CPU_TOKENS_OF_BFLOAT16 if self.decoder.matrix_dtype == torch.bfloat16 else CPU_TOKENS

    def encode(self, ids: torch.Tensor, mask: torch.Tensor, images: dict[str, torch.Tensor]) -> torch.Tensor:
        """The encoder's output (rows, text, d_model)."""
        if self.encoder is not None:
            return self.encoder(ids, mask, **images)
        low = self.decoder.dtype
        with attention_kernels(self.device), torch.autocast(self.device.type, low, enabled=low == torch.bfloat16):
            return self.model.get_encoder()(input_ids=ids, attention_mask=mask, **images, return_dict=True)[0]


class TwoStageWeights:
    """Both stages of an `MMCoTModel` as the engine computes with them; arguments as in `StageWeights`."""

    def __init__(self, model, dtype: torch.dtype | None = None, packed: bool | None = None):
        self.rationale = self.answer = StageWeights(model.rationale, dtype, packed)
        if model.answer is not model.rationale:
            self.answer = StageWeights(model.answer, dtype, packed)


@dataclass
class _Question:
    """A question under way, without padding: ids of what the network reads; of two stages, ids of the second's source
    without rationale; how many choices; features of the pictures (patches, width), None without one. Ids are the
    host's, features the device's."""

    key: Hashable
    source: torch.Tensor
    num_choices: torch.Tensor | None
    patches: torch.Tensor | None
    prefix: torch.Tensor | None = None
    rationale: list[int] | None = None


@torch.no_grad()
def answer_questions(
    model,
    batches: Batches,
    *,
    max_new_tokens: int = 512,
    eos_token_id: int | list[int] | None = None,
    slots: int = 64,
    encoder_tokens: int | None = None,
    weights: TwoStageWeights | None = None,
) -> Iterator[tuple[list[Hashable], MMCoTOutput]]:
    """Writes rationales greedily and scores the options; what `MMCoTModel.generate(mode="score")` gives, in another
    order.

    Args:
        model: an `MMCoTModel` in evaluation mode.
        batches: (keys, inputs) with the inputs of `MMCoTModel.generate`, read as slots become free. Longest first
            wastes least.
        max_new_tokens: limit of a rationale.
        eos_token_id: what ends one; default: the network's own.
        slots: rationales that are written at a time.
        encoder_tokens: tokens, padding included, that an encoder reads at a time; default: 1,024 on a CPU (3,072 in
            bfloat16), 32,768 elsewhere.
        weights: the model's, where another dtype or a second call are to have them read once; default: in the model's
            dtype.

    Yields:
        (keys, output) of some questions, with `rationale_ids` and `option_log_probs`.
    """
    device, weights = model.device, weights or TwoStageWeights(model)
    start, pad = model.rationale.config.decoder_start_token_id, model.rationale.config.pad_token_id
    tokens = encoder_tokens or weights.rationale.encoder_tokens
    end = model.rationale.config.eos_token_id if eos_token_id is None else eos_token_id
    writer = GenerationConfig(eos_token_id=end, pad_token_id=pad, decoder_start_token_id=start)
    under_way: dict[Hashable, _Question] = {}
    option_ids = (model.config.option_prefix_ids, model.config.option_letter_ids)

    def answers(questions: list[_Question]):
        for group in _groups(questions, tokens, lambda question: len(question.prefix) + len(question.rationale)):
            prefix, mask = _padded([question.prefix for question in group], pad, device)
            rationales = [torch.tensor([start, *question.rationale]) for question in group]
            rationale_ids = pad_sequence(rationales, batch_first=True, padding_value=pad).to(device)
            source, source_mask = model._answer_source(prefix, mask, rationale_ids, writer)
            hidden = weights.answer.encode(source, source_mask, _images(group))
            output = MMCoTOutput(
                rationale_ids=rationale_ids,
                option_log_probs=_scores(weights.answer, hidden, source_mask, group, *option_ids),
                answer_source_ids=source,
                answer_source_mask=source_mask,
            )
            yield [question.key for question in group], output

    questions = _questions(model, batches, weights.rationale.decoder.dtype)
    encoded = _encoded(weights.rationale, questions, tokens, under_way)
    decoder = GreedyDecoder(model.rationale, slots, weights=weights.rationale.decoder)
    written: list[_Question] = []
    for key, ids in decoder.decode(encoded, max_new_tokens, end):
        question = under_way.pop(key)
        question.rationale = ids
        written.append(question)
        if len(written) >= ANSWER_BATCHES * slots:
            yield from answers(written)
            written = []
    yield from answers(written)


@torch.no_grad()
def write_texts(
    model,
    batches: Batches,
    *,
    max_new_tokens: int,
    eos_token_id: int | list[int] | None = None,
    slots: int = 64,
    weights: StageWeights | None = None,
) -> Iterator[tuple[Hashable, list[int]]]:
    """What one network writes greedily, such as the rationales of the first stage.

    Args:
        model: an `MMCoTForConditionalGeneration` in evaluation mode.
        batches: (keys, inputs) with `input_ids`, `attention_mask` and image inputs.
        max_new_tokens, eos_token_id, weights: as in `answer_questions`.

    Yields:
        (key, ids without the start token) of each row as it ends.
    """
    weights = weights or StageWeights(model)
    questions = _questions(model, batches, weights.decoder.dtype)
    encoded = (found[:3] for found in _encoded_groups(weights, questions, weights.encoder_tokens))
    end = model.config.eos_token_id if eos_token_id is None else eos_token_id
    yield from GreedyDecoder(model, slots, weights=weights.decoder).decode(encoded, max_new_tokens, end)


@torch.no_grad()
def score_options_of(
    model,
    batches: Batches,
    option_prefix_ids: list[int],
    option_letter_ids: list[int],
    weights: StageWeights | None = None,
) -> Iterator[tuple[list[Hashable], torch.Tensor]]:
    """Log-probabilities of the options by the answer stage: (keys, (rows, choices)), -inf beyond a row's own choices.

    Args:
        batches: (keys, inputs) with `input_ids`, `attention_mask`, `num_choices` and image inputs; the source holds
            the rationale already.
        weights: as in `answer_questions`.
    """
    weights = weights or StageWeights(model)
    questions = _questions(model, batches, weights.decoder.dtype)
    for keys, hidden, mask, group in _encoded_groups(weights, questions, weights.encoder_tokens):
        yield keys, _scores(weights, hidden, mask, group, option_prefix_ids, option_letter_ids)


def _scores(
    weights: StageWeights, hidden, mask, group: list[_Question], prefix_ids: list[int], letter_ids: list[int]
) -> torch.Tensor:
    forced = [weights.config.decoder_start_token_id, *prefix_ids]
    num_choices = torch.stack([question.num_choices for question in group])
    logits = forced_logits(weights.model, hidden, mask, forced, weights.decoder)
    return letter_log_probs(logits, letter_ids, num_choices)


def _encoded(weights: StageWeights, questions: Iterable[list[_Question]], tokens: int, under_way: dict):
    """(keys, hidden states, mask) of groups of questions, which join those under way."""
    for keys, hidden, mask, group in _encoded_groups(weights, questions, tokens):
        under_way.update(zip(keys, group, strict=True))
        yield keys, hidden, mask


def _encoded_groups(weights: StageWeights, questions: Iterable[list[_Question]], tokens: int):
    """(keys, hidden states (rows, text, d_model), mask, questions) of groups of like length."""
    for some in questions:
        for group in _groups(some, tokens, lambda question: len(question.source)):
            ids, mask = _padded([question.source for question in group], weights.config.pad_token_id, weights.device)
            yield [question.key for question in group], weights.encode(ids, mask, _images(group)), mask, group


def _ahead(batches: Iterable) -> Iterator:
    """The batches, each made in a thread while the device works on the one before."""
    batches, end = iter(batches), object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, end)
        while (batch := coming.result()) is not end:
            coming = thread.submit(next, batches, end)
            yield batch


def _questions(model, batches: Batches, dtype: torch.dtype) -> Iterator[list[_Question]]:
    """Batches as single questions without padding; pictures go through the backbone, in `dtype`."""
    device = model.device
    for keys, inputs in batches if device.type == "cpu" else _ahead(batches):
        with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
            images = _image_features(model, inputs)
        mask = images.get("image_attention_mask")
        patches = _rows(images["image_features"], None if mask is None else mask.cpu()) if images else [()] * len(keys)
        nothing = [None] * len(keys)
        columns = (
            _rows(inputs["input_ids"], inputs.get("attention_mask")),
            inputs.get("num_choices", nothing),
            [own if len(own) else None for own in patches],
            _rows(inputs["answer_input_ids"], inputs.get("answer_attention_mask"))
            if "answer_input_ids" in inputs
            else nothing,
        )
        yield [_Question(*fields) for fields in zip(keys, *columns, strict=True)]


def _image_features(model, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`image_features` and their mask, of the backbone or as given; empty without."""
    names = ("pixel_values", "pixel_mask", "image_features", "image_attention_mask")
    given = {name: inputs[name].to(model.device) for name in names if inputs.get(name) is not None}
    if hasattr(model, "rationale"):
        return model._image_inputs(*(given.get(name) for name in names))
    features, mask = given.get("image_features"), given.get("image_attention_mask")
    if features is None and "pixel_values" in given and model.config.has_fusion:
        images = model.get_image_features(given["pixel_values"], given.get("pixel_mask"), mask)
        features, mask = images.pooler_output, images.image_attention_mask
    if features is None:
        return {}
    found = {"image_features": features.to(model.dtype)}
    return found if mask is None else {**found, "image_attention_mask": mask}


def _rows(values: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
    """Each row's own entries, without padding; the mask is the host's."""
    if mask is None:
        return list(values)
    mask = mask.bool()
    counts = mask.sum(1).tolist()
    return [
        row[:count] if own[:count].all() else row[own] for row, own, count in zip(values, mask, counts, strict=True)
    ]


def _groups(questions: list[_Question], tokens: int, length: Callable[[_Question], int]) -> Iterator[list[_Question]]:
    """Questions of like length, longest first, as many as come to `tokens` with padding.

    Those without a picture go by themselves: what they see instead of one is the same for all.
    """
    groups: list[list[_Question]] = []
    for seeing in (True, False):
        group: list[_Question] = []
        own = [question for question in questions if (question.patches is not None) == seeing]
        for question in sorted(own, key=length, reverse=True):
            if group and (len(group) + 1) * length(group[0]) > tokens:
                groups.append(group)
                group = []
            group.append(question)
        if group:
            groups.append(group)
    yield from sorted(groups, key=lambda group: length(group[0]), reverse=True)


def _padded(rows: list[torch.Tensor], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (rows, longest), on the device."""
    ids = pad_sequence(rows, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)


def _images(group: list[_Question]) -> dict[str, torch.Tensor]:
    """The image arguments of a group; none where there is no picture."""
    rows = [question.patches for question in group]
    if rows[0] is None:
        return {}
    features, counts = pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])
    if counts.min() == counts.max():
        return {"image_features": features}
    mask = torch.arange(features.shape[1]) < counts[:, None]
    return {"image_features": features, "image_attention_mask": mask.to(features.device, non_blocking=True)}
