"""Greedy decoding of many rows at once: the ids that `generate()` writes, sooner.

A finished row's slot is taken by the next one, or the batch shrinks; keys and values are written in place instead of
being joined anew at each token.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcot.training.inference.decoder_weights import DecoderWeights, attention_kernels
from mmcot.training.inference.slots import Slots


class GreedyDecoder:
    """Decodes rows of a T5 whose encoder has read them.

    Args:
        model: `MMCoTForConditionalGeneration` (or any T5 of transformers') in evaluation mode.
        slots: rows that are decoded at a time.
        dtype: to compute in; default: autocast's where that is on, else the weights'.
        weights: the model's, if they have been read before.
    """

    def __init__(
        self, model, slots: int = 64, dtype: torch.dtype | None = None, weights: DecoderWeights | None = None
    ):
        self.weights = weights or DecoderWeights(model, dtype)
        self.slots, self.device = slots, self.weights.device
        # lengths of keys are rounded up to this: what a GPU's attention reads without copying
        self.length_multiple = 1 if self.device.type == "cpu" else 8
        # tokens between two looks for finished rows; each look waits for the device
        self.sync_interval = 1 if self.device.type == "cpu" else 8
        # a float32 product with one row isn't shared between the threads of every CPU
        alone = self.weights.packed or self.weights.matrix_dtype != torch.float32 or self.device.type != "cpu"
        self.min_rows = 1 if alone else 2
        # rows whose attention is one call, at the longest one's length: a CPU waits for memory there
        self.block_rows = 16 if self.device.type == "cpu" else slots

    @torch.no_grad()
    def decode(
        self,
        batches: Iterable[tuple[list[Hashable], Tensor, Tensor]],
        max_new_tokens: int,
        eos_token_id: int | list[int],
    ) -> Iterator[tuple[Hashable, list[int]]]:
        """Yields (key, ids) of each row as it ends; ids have no start token, and the end token if it was written.

        Args:
            batches: (keys, hidden (rows, text, d_model), attention_mask (rows, text)); the next is asked for when
                a slot is free. Rows of falling length waste least.
            max_new_tokens: a row ends here at the latest.
            eos_token_id: ends a row.
        """
        ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id)
        end_ids = torch.tensor(sorted(ends), device=self.device)
        source = _Source(batches)
        slots = Slots(self, max_new_tokens)
        since_sync = 0
        while True:
            free = slots.free(self.slots)
            if free and (not slots.keys or free >= max(1, self.slots // 8)):
                rows = source.take(free)
                if rows:
                    slots.admit(rows)
            if not slots.active:
                return
            slots.step(lambda tokens: self._step(tokens, slots), end_ids)
            since_sync += 1
            if since_sync >= self.sync_interval:
                since_sync = 0
                yield from slots.finished(ends)
                if source.exhausted:
                    slots.shrink()

    def _step(self, tokens: Tensor, slots: Slots) -> Tensor:
        """Logits (rows, vocabulary) after `tokens` (rows,), whose keys and values join those of the slots."""
        with torch.autocast(self.device.type, enabled=False), attention_kernels(self.device):
            return self._logits(tokens, slots)

    def _logits(self, tokens: Tensor, slots: Slots) -> Tensor:
        weights, rows, positions = self.weights, slots.rows, slots.positions
        sizes = slots.blocks(self.block_rows, self.length_multiple)
        place = slots.common_position if self.device.type == "cpu" else None
        bias = slots.biases(max(written for _, written, _ in sizes), place)
        own_blocks = [(own_rows, written, bias[own_rows, ..., :written]) for own_rows, written, _ in sizes]
        cross_blocks = [(own_rows, text, slots.cross_mask[own_rows, ..., :text]) for own_rows, _, text in sizes]
        state = weights.embed(tokens)  # (rows, d_model)
        for number, layer in enumerate(weights.layers):
            read = weights.project(weights.norm(state, layer["norm"]), layer["qkv"], 3)
            query, *pair = (weights.split_heads(part) for part in read)  # (rows, heads, width)
            for own, part in zip(slots.own[number], pair, strict=True):  # keys, values
                if place is None:
                    own[rows, :, positions] = part
                else:  # a copy, not one for each row
                    own[:, :, place] = part
            state = state + weights.project(_attend(query, slots.own[number], own_blocks), layer["out"])[0]
            query = weights.project(weights.norm(state, layer["cross_norm"]), layer["cross_q"])[0]
            query = weights.split_heads(query)
            state = state + weights.project(_attend(query, slots.cross[number], cross_blocks), layer["cross_out"])[0]
            state = weights.feed_forward(state, layer)
        return weights.logits(state)


def _attend(query: Tensor, key_value: Tensor, blocks: list[tuple[slice, int, Tensor]]) -> Tensor:
    """query (rows, heads, width) over key_value (2, rows, heads, length, width) -> (rows, heads * width).

    Args:
        blocks: rows, how many of the keys they see, and the mask that is added.
    """
    attend = _attend_on_cpu if query.device.type == "cpu" else _attend_fused
    found = [attend(query[rows], key_value[:, rows, :, :length], mask) for rows, length, mask in blocks]
    return (found[0] if len(found) == 1 else torch.cat(found)).flatten(1)


def _attend_fused(query: Tensor, key_value: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query[:, :, None], *key_value, attn_mask=mask, scale=1.0)


def _attend_on_cpu(query: Tensor, key_value: Tensor, mask: Tensor) -> Tensor:
    """The same by two products: PyTorch's attention for CPUs is made for many queries, and for one, in bfloat16, takes
    five times as long. In bfloat16 the scores are rounded to it, as in `forced_logits`."""
    rows, heads, width = query.shape
    if rows == 1 and query.dtype == torch.float32:  # in fewer calls
        key, value = key_value[:, 0]
        shares = torch.baddbmm(mask[0], query.transpose(0, 1), key.transpose(1, 2)).softmax(-1)
        return torch.bmm(shares, value).view(1, -1)
    key, value = key_value.flatten(1, 2)  # (rows * heads, length, width) each
    scores = torch.bmm(query.reshape(rows * heads, 1, width), key.transpose(1, 2)).view(rows, heads, 1, -1)
    shares = (scores.float() + mask).softmax(-1).to(value.dtype)
    return torch.bmm(shares.flatten(0, 1), value).view(rows, heads * width)


class _Source:
    """Encoded rows, one by one, of batches that are asked for when they are needed."""

    def __init__(self, batches):
        self.batches, self.waiting, self.exhausted = iter(batches), deque(), False

    def take(self, count: int) -> list[tuple[Hashable, Tensor, int]]:
        """Up to `count` rows: key, hidden state without padding on the right (text, d_model), mask."""
        while len(self.waiting) < count and not self.exhausted:
            batch = next(self.batches, None)
            if batch is None:
                self.exhausted = True
                break
            keys, hidden, mask = batch
            positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
            lengths = (mask.bool() * positions).amax(1).tolist()
            for key, row, row_mask, length in zip(keys, hidden, mask, lengths, strict=True):
                self.waiting.append((key, row[:length], row_mask[:length]))
        return [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]
