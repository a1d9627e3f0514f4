"""The slots of the greedy decoder: which rows are under way, and the tensors that hold their state."""

import math
from collections.abc import Callable, Hashable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


def _rounded_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def most_probable(logits: Tensor) -> Tensor:
    """`logits.argmax(-1)` of (rows, vocabulary), the first where several are equal.

    A CPU looks for the place of the largest value one by one, for the value itself many at a time: so first in which
    block it is.
    """
    block = math.gcd(logits.shape[-1], 128)
    if logits.device.type != "cpu" or block < 16:
        return logits.argmax(-1)
    rows = torch.arange(len(logits))
    if logits.stride(0) == 1:  # of a product whose rows lie side by side
        blocks = logits.T.unflatten(0, (-1, block))  # (blocks, block, rows)
        number = blocks.amax(1).argmax(0)
        return number * block + blocks[number, :, rows].argmax(-1)
    blocks = logits.unflatten(-1, (-1, block))  # (rows, blocks, block)
    number = blocks.amax(-1).argmax(-1)
    return number * block + blocks[rows, number].argmax(-1)


class Slots:
    """The batch rows that are being decoded: their cache, masks, tokens and positions. A row is a slot: when a
    sequence is finished, the next one takes it.

    On the device, of each layer: `own` (2, rows, heads, cache length, width) and `cross` (2, rows, heads, source
    length, width), keys and values; `cross_mask` (rows, 1, 1, source length), 0, or the mask value on padding;
    `written` (rows, cache length), `tokens`, `positions`, `finished_rows` and `free_rows` (rows,). On the host, a
    row each: `keys` (None in a free slot), `counts` (tokens written), `limits` (of tokens), `source_lengths`.
    """

    def __init__(self, decoder, max_new_tokens: int):
        self.decoder, self.limit = decoder, max_new_tokens
        self.keys: list[Hashable | None] = []
        self.counts: list[int] = []
        self.limits: list[int] = []
        self.source_lengths: list[int] = []
        self.cache_length = 0
        self.mask_value = torch.finfo(decoder.weights.dtype).min  # not -inf: a free slot must not hold NaN
        self.bias_table = decoder.weights.biases(max_new_tokens + decoder.sync_interval)
        self.bias_from_first = self.bias_table.flip(1)

    @property
    def active(self) -> int:
        return sum(key is not None for key in self.keys)

    @property
    def common_position(self) -> int | None:
        """Where all rows write their next token, if that is the same place."""
        return self.counts[0] if None not in self.keys and len(set(self.counts)) == 1 else None

    def free(self, slots: int) -> int:
        return slots - self.active

    def blocks(self, size: int, multiple: int) -> list[tuple[slice, int, int]]:
        """Rows side by side, `size` at a time: which, their longest cache with the token being written, their longest
        source; both rounded up to a multiple as far as the tensors reach."""
        found = []
        for first in range(0, len(self.keys), size):
            rows = slice(first, first + size)
            written, text = max(self.counts[rows]) + 1, max(self.source_lengths[rows])
            written, text = _rounded_up(written, multiple), _rounded_up(text, multiple)
            found.append((rows, min(written, self.cache_length), min(text, self.cross_mask.shape[-1])))
        return found

    def biases(self, longest: int, place: int | None) -> Tensor:
        """T5's bias on the first `longest` keys of the slots' own, (rows, heads, 1, longest), -inf on those to come.

        Args:
            place: where all rows write, if that is the same.
        """
        if place is not None and longest == place + 1:
            own = self.bias_from_first[None, :, None, self.bias_from_first.shape[-1] - 1 - place :]
            return own.expand(len(self.keys), -1, -1, -1)
        distance = self.positions[:, None] - torch.arange(longest, device=self.decoder.device)  # (rows, longest)
        bias = self.bias_table[:, distance.clamp(min=0)].transpose(0, 1)[:, :, None]
        return bias.masked_fill((distance < 0)[:, None, None], float("-inf"))

    def admit(self, rows: list[tuple[Hashable, Tensor, Tensor]]) -> None:
        """Gives rows a slot: a free one, or a new one."""
        weights, device = self.decoder.weights, self.decoder.device
        slots = [i for i, key in enumerate(self.keys) if key is None][: len(rows)]
        slots += range(len(self.keys), len(self.keys) + len(rows) - len(slots))
        added = max(0, slots[-1] + 1 - len(self.keys), self.decoder.min_rows - len(self.keys))
        for values, empty in ((self.keys, None), (self.counts, 0), (self.limits, 0), (self.source_lengths, 1)):
            values += [empty] * added
        for slot, (key, row, _) in zip(slots, rows, strict=True):
            self.keys[slot], self.counts[slot], self.source_lengths[slot] = key, 0, len(row)
            self.limits[slot] = self.limit
        lengths_read = [self.source_lengths[slot] for slot in slots]
        self._enlarge(len(self.keys), max(lengths_read))
        index = torch.tensor(slots, device=device)
        self.tokens[index] = weights.start
        self.positions[index] = 0
        self.finished_rows[index] = False
        self.cross_mask[index] = self.mask_value
        # the sources one after the other without padding: slot and position of each token
        hidden = torch.cat([row for _, row, _ in rows]).to(weights.dtype)  # (tokens, d_model)
        seen = torch.cat([mask.bool() for _, _, mask in rows])
        token_slots = torch.tensor(slots).repeat_interleave(torch.tensor(lengths_read)).to(device)
        positions = torch.cat([torch.arange(text) for text in lengths_read]).to(device)
        self.cross_mask[token_slots, 0, 0, positions] = torch.zeros_like(seen, dtype=weights.dtype).masked_fill(
            ~seen, self.mask_value
        )
        with torch.autocast(device.type, enabled=False):
            for cross, layer in zip(self.cross, weights.layers, strict=True):
                for i, part in enumerate(weights.project(hidden, layer["cross_kv"], 2)):
                    cross[i, token_slots, :, positions] = weights.split_heads(part)
        self._slots_changed()

    def _enlarge(self, rows: int, text: int) -> None:
        """Makes the tensors, or enlarges them to `rows` and to sources of length `text`; what they hold stays."""
        weights, device = self.decoder.weights, self.decoder.device
        long = {"dtype": torch.long, "device": device}
        if not self.cache_length:
            self.cache_length = min(64, self.limit) + self.decoder.sync_interval
            empty = torch.zeros(
                2, 0, weights.heads, self.cache_length, weights.width, dtype=weights.dtype, device=device
            )
            self.own = [empty for _ in weights.layers]
            self.cross = [empty[..., :0, :] for _ in weights.layers]
            self.cross_mask = empty.new_zeros(0, 1, 1, 0)
            self.written = torch.zeros(0, self.cache_length, **long)
            self.tokens, self.positions = torch.zeros(0, **long), torch.zeros(0, **long)
            self.finished_rows = torch.zeros(0, dtype=torch.bool, device=device)
        text = _rounded_up(text, self.decoder.length_multiple)
        more, wider = max(0, rows - len(self.tokens)), max(0, text - self.cross_mask.shape[-1])
        if more or wider:  # layer by layer, so that old and new are there together of one only
            self._each_layer(self.cross, lambda cross: F.pad(cross, (0, 0, 0, wider, 0, 0, 0, more)))
            self.cross_mask = F.pad(self.cross_mask, (0, wider, 0, 0, 0, 0, 0, more), value=self.mask_value)
        if more:
            self._each_layer(self.own, lambda own: F.pad(own, (0,) * 6 + (0, more)))
            self.written = F.pad(self.written, (0, 0, 0, more))
            self.tokens, self.positions = F.pad(self.tokens, (0, more)), F.pad(self.positions, (0, more))
            self.finished_rows = F.pad(self.finished_rows, (0, more))

    @staticmethod
    def _each_layer(tensors: list[Tensor], change: Callable[[Tensor], Tensor]) -> None:
        for number in range(len(tensors)):
            tensors[number] = change(tensors[number])

    def _slots_changed(self) -> None:
        """A free slot stays at position 0: nobody reads it, and it must not leave the cache."""
        device = self.decoder.device
        self.rows = torch.arange(len(self.keys), device=device)
        self.free_rows = torch.tensor([key is None for key in self.keys], device=device)
        self.positions = self.positions.masked_fill(self.free_rows, 0)

    def step(self, next_logits: Callable[[Tensor], Tensor], ends: Tensor) -> None:
        """One more token in every row.

        Args:
            next_logits: tokens (rows,) → logits (rows, vocabulary), whose keys and values join the slots'.
            ends: ids that finish a row.
        """
        longest = max(self.counts) + 1
        if longest > self.cache_length:
            more = min(self.cache_length, self.limit + self.decoder.sync_interval - self.cache_length)
            self._each_layer(self.own, lambda own: F.pad(own, (0, 0, 0, more)))
            self.written = F.pad(self.written, (0, more))
            self.cache_length += more
        tokens = most_probable(next_logits(self.tokens))
        self.written[self.rows, self.positions] = tokens
        self.tokens = tokens
        self.finished_rows |= torch.isin(tokens, ends)
        self.positions = self.positions + 1
        self.counts = [0 if key is None else count + 1 for key, count in zip(self.keys, self.counts, strict=True)]
        if None in self.keys:
            self.positions = self.positions.masked_fill(self.free_rows, 0)

    def finished(self, ends: set[int]) -> Iterator[tuple[Hashable, list[int]]]:
        """Yields the finished rows and frees their slots."""
        finished = self.finished_rows.tolist()
        done = [
            i
            for i, key in enumerate(self.keys)
            if key is not None and (finished[i] or self.counts[i] >= self.limits[i])
        ]
        if not done:
            return
        written = self.written[torch.tensor(done, device=self.decoder.device)].tolist()
        for i, ids in zip(done, written, strict=True):
            ids = ids[: min(self.counts[i], self.limits[i])]
            if finished[i]:
                end = next((j for j, token in enumerate(ids) if token in ends), len(ids) - 1)
                ids = ids[: end + 1]
            key, self.keys[i], self.counts[i], self.source_lengths[i] = self.keys[i], None, 0, 1
            yield key, ids
        self._slots_changed()

    def shrink(self) -> None:
        """Drops free slots once they are a quarter, and what of the sources' length no row needs any more."""
        if not self.decoder.min_rows < len(self.keys) or self.active > 0.75 * len(self.keys):
            return
        kept = sorted(range(len(self.keys)), key=lambda i: (self.keys[i] is None, i))
        kept = kept[: max(self.active, self.decoder.min_rows)]
        index = torch.tensor(kept, device=self.decoder.device)
        self.keys, self.counts, self.limits, self.source_lengths = (
            [values[i] for i in kept] for values in (self.keys, self.counts, self.limits, self.source_lengths)
        )
        text = _rounded_up(max(self.source_lengths), self.decoder.length_multiple)
        self.cross_mask = self.cross_mask[..., :text][index]
        self._each_layer(self.own, lambda own: own[:, index])
        self._each_layer(self.cross, lambda cross: cross[..., :text, :][:, index])
        self.written, self.tokens = self.written[index], self.tokens[index]
        self.positions, self.finished_rows = self.positions[index], self.finished_rows[index]
        self._slots_changed()
