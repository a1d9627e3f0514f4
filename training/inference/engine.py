"""Both stages over many questions: rationales of rows that come and go, answers by one decoder step over the options.

Every question is encoded once a stage, beside others of its length, its image features are computed once, and nothing
leaves the device in between.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from mmcot.answers_mmcot import MMCoTOutput, letter_log_probs, special_token_ids
from mmcot.training.inference.decoder import GreedyDecoder
from mmcot.training.inference.decoder_weights import attention_kernels, forced_logits

ANSWER_BATCHES = 4  # so many batches of answers are gathered and sorted by length
# What a CPU's caches hold of the states of a batch; a GPU wants enough to be busy.
ENCODER_TOKENS = {"cpu": 1024}
OTHER_ENCODER_TOKENS = 32768


@dataclass
class _Question:
    """A question under way: ids of its first stage's source and its second's without rationale, its choices, and the
    features of its pictures (patches, width), None without one. Ids are the host's, features the device's."""

    key: Hashable
    source: torch.Tensor
    prefix: torch.Tensor
    num_choices: torch.Tensor
    patches: torch.Tensor | None
    rationale: list[int] | None = None


@torch.no_grad()
def answer_questions(
    model,
    batches: Iterable[tuple[list[Hashable], Mapping[str, torch.Tensor]]],
    *,
    max_new_tokens: int = 512,
    slots: int = 64,
    encoder_tokens: int | None = None,
    lengths: Mapping[Hashable, int] | None = None,
) -> Iterator[tuple[list[Hashable], MMCoTOutput]]:
    """Writes rationales greedily and scores the options; what `model.generate(mode="score")` gives, in another order.

    Args:
        model: an `MMCoTModel` in evaluation mode.
        batches: (keys, inputs) with the inputs of `MMCoTModel.generate`, read as there is room. Longest first wastes
            least.
        slots: rationales that are written at a time.
        encoder_tokens: tokens, padding included, that an encoder reads at a time; default: 1,024 on a CPU, 32,768
            elsewhere.
        lengths: key → tokens of its rationale, for measuring speed with random weights.

    Yields:
        (keys, output) of some questions, with `rationale_ids` and `option_log_probs`.
    """
    device = model.device
    tokens = encoder_tokens or ENCODER_TOKENS.get(device.type, OTHER_ENCODER_TOKENS)
    start, pad = model.rationale.config.decoder_start_token_id, model.rationale.config.pad_token_id
    under_way: dict[Hashable, _Question] = {}

    def encoded():
        for keys, inputs in batches if device.type == "cpu" else _ahead(batches):
            for group in _groups(_questions(model, keys, inputs), tokens, lambda question: len(question.source)):
                under_way.update((question.key, question) for question in group)
                ids, mask = _padded([question.source for question in group], pad, device)
                with attention_kernels(device):
                    hidden = model._encode("rationale", ids, mask, _images(group), False)[0]
                yield [question.key for question in group], hidden, mask

    def answers(questions: list[_Question]):
        for group in _groups(questions, tokens, lambda question: len(question.prefix) + len(question.rationale)):
            prefix, mask = _padded([question.prefix for question in group], pad, device)
            rationales = [torch.tensor([start, *question.rationale]) for question in group]
            rationale_ids = pad_sequence(rationales, batch_first=True, padding_value=pad).to(device)
            source, source_mask = model._answer_source(prefix, mask, rationale_ids)
            with attention_kernels(device):
                hidden = model._encode("answer", source, source_mask, _images(group), False)[0]
            forced = [model.answer.config.decoder_start_token_id, *model.config.option_prefix_ids]
            logits = forced_logits(model.answer, hidden, source_mask, forced)
            num_choices = torch.stack([question.num_choices for question in group])
            scores = letter_log_probs(logits, model.config.option_letter_ids, num_choices)
            output = MMCoTOutput(
                rationale_ids=rationale_ids,
                option_log_probs=scores,
                answer_source_ids=source,
                answer_source_mask=source_mask,
            )
            yield [question.key for question in group], output

    end = special_token_ids(model.rationale.config)["eos_token_id"]
    written: list[_Question] = []
    for key, ids in GreedyDecoder(model.rationale, slots).decode(encoded(), max_new_tokens, end, lengths):
        question = under_way.pop(key)
        question.rationale = ids
        written.append(question)
        if len(written) >= ANSWER_BATCHES * slots:
            yield from answers(written)
            written = []
    yield from answers(written)


def _ahead(batches: Iterable) -> Iterator:
    """The batches, each made in a thread while the device works on the one before."""
    batches, end = iter(batches), object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, end)
        while (batch := coming.result()) is not end:
            coming = thread.submit(next, batches, end)
            yield batch


def _questions(model, keys: list[Hashable], inputs: Mapping[str, torch.Tensor]) -> list[_Question]:
    """A batch as single questions without padding; pictures go through the backbone."""
    names = ("pixel_values", "pixel_mask", "image_features", "image_attention_mask")
    given = (inputs.get(name) for name in names)
    images = model._image_inputs(*(None if value is None else value.to(model.device) for value in given))
    mask = images.get("image_attention_mask")
    patches = _rows(images["image_features"], None if mask is None else mask.cpu()) if images else [()] * len(keys)
    columns = (
        _rows(inputs["input_ids"], inputs.get("attention_mask")),
        _rows(inputs["answer_input_ids"], inputs.get("answer_attention_mask")),
        inputs["num_choices"],
        [own if len(own) else None for own in patches],
    )
    return [_Question(*fields) for fields in zip(keys, *columns, strict=True)]


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
