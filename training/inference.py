"""Both stages over many questions: rationales of rows that come and go, answers by one decoder step over the options.

Every question is encoded once a stage, its image features are computed once, and nothing leaves the device in between.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping

import torch
from torch.nn.utils.rnn import pad_sequence

from mmcot.decoding_mmcot import GreedyDecoder
from mmcot.scoring_mmcot import MMCoTOutput, special_token_ids

ANSWER_BATCHES = 4  # so many batches of answers are gathered and sorted by length


@torch.no_grad()
def answer_questions(
    model,
    batches: Iterable[tuple[list[Hashable], Mapping[str, torch.Tensor]]],
    *,
    max_new_tokens: int = 512,
    slots: int = 64,
    lengths: Mapping[Hashable, int] | None = None,
) -> Iterator[tuple[list[Hashable], MMCoTOutput]]:
    """Writes rationales greedily and scores the options; what `model.generate(mode="score")` gives, in another order.

    Args:
        model: an `MMCoTModel` in evaluation mode.
        batches: (keys, inputs) with the inputs of `MMCoTModel.generate`, read as there is room. Longest first wastes
            least.
        slots: rationales that are written, and answers that are scored, at a time.
        lengths: key → tokens of its rationale, for measuring speed with random weights.

    Yields:
        (keys, output) of up to `slots` questions, with `rationale_ids` and `option_log_probs`.
    """
    kept: dict[Hashable, dict[str, torch.Tensor]] = {}  # what the answer stage needs of the questions under way
    device = model.device
    start, pad = model.rationale.config.decoder_start_token_id, model.rationale.config.pad_token_id

    def encoded():
        for keys, inputs in batches:
            inputs = {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
            names = ("pixel_values", "pixel_mask", "image_features", "image_attention_mask")
            images = model._image_inputs(*(inputs.get(name) for name in names))
            mask = inputs["attention_mask"]
            hidden = model._encode("rationale", inputs["input_ids"], mask, images, False)[0]
            prefixes = [ids[own.bool()] for ids, own in zip(*_answer_prefix(inputs), strict=True)]
            for i, key in enumerate(keys):
                kept[key] = {"prefix": prefixes[i], "choices": inputs["num_choices"][i]}
                if images:
                    own = images.get("image_attention_mask")
                    features = images["image_features"][i]
                    kept[key]["patches"] = features if own is None else features[own[i].bool()]
            yield keys, hidden, mask

    def answers(written):
        rows = [kept.pop(key) for key, _ in written]
        prefix = pad_sequence([row["prefix"] for row in rows], batch_first=True, padding_value=pad)
        mask = pad_sequence([torch.ones_like(row["prefix"]) for row in rows], batch_first=True)
        ids = [torch.tensor([start, *ids], device=device) for _, ids in written]
        images = {}
        if "patches" in rows[0]:
            patches = [row["patches"] for row in rows]  # none for a question without a picture
            images["image_features"] = pad_sequence(patches, batch_first=True)
            counts = torch.tensor([len(own) for own in patches], device=device)
            columns = torch.arange(images["image_features"].shape[1], device=device)
            images["image_attention_mask"] = columns < counts[:, None]
        output = model.generate(
            input_ids=prefix,
            answer_input_ids=prefix,
            answer_attention_mask=mask,
            num_choices=torch.stack([row["choices"] for row in rows]),
            rationale_ids=pad_sequence(ids, batch_first=True, padding_value=pad),
            **images,
        )
        return [key for key, _ in written], output

    decoder = GreedyDecoder(model.rationale, slots)
    end = special_token_ids(model.rationale.config)["eos_token_id"]
    waiting: list[tuple[Hashable, list[int]]] = []

    def sorted_batches():
        waiting.sort(key=lambda item: len(item[1]) + len(kept[item[0]]["prefix"]), reverse=True)
        for first in range(0, len(waiting), slots):
            yield answers(waiting[first : first + slots])
        waiting.clear()

    for item in decoder.decode(encoded(), max_new_tokens, end, lengths):
        waiting.append(item)
        if len(waiting) >= ANSWER_BATCHES * slots:
            yield from sorted_batches()
    yield from sorted_batches()


def _answer_prefix(inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = inputs["answer_input_ids"]
    return ids, inputs.get("answer_attention_mask", torch.ones_like(ids))
