"""Greedy decoding of many rows at once: what `generate()` writes, sooner.

A row that has ended gives its place to the next one, or the batch shrinks; keys and values are written in place
instead of being joined anew at each token. The ids equal those of `generate()`.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig

from mmcot.training.inference.decoder_weights import DecoderWeights, attention_kernels, is_plain_t5

# What a generation configuration may hold for greedy decoding to be the same as what it asks for.
_PLAIN_OPTIONS = {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "max_length",
    "max_new_tokens",
    "transformers_version",
    "_from_model_config",
}
_PLAIN_VALUES = {"num_beams": (None, 1), "do_sample": (None, False), "use_cache": (None, True)}


def is_plain_greedy(config: GenerationConfig) -> bool:
    """Whether a configuration asks for the most probable token each time and nothing else."""
    options = {name: value for name, value in config.to_diff_dict().items() if value is not None}
    return all(name in _PLAIN_OPTIONS or value in _PLAIN_VALUES.get(name, ()) for name, value in options.items())


def generate_ids(model, encoder_outputs, attention_mask: Tensor, config: GenerationConfig) -> Tensor:
    """`model.generate(encoder_outputs=…, attention_mask=…, generation_config=config)`, by the fastest way that fits.

    Returns:
        ids (rows, length), beginning with the decoder's start token and padded behind each row's end.
    """
    end = config.eos_token_id
    limit = config.max_new_tokens or (config.max_length - 1 if config.max_length else None)
    if end is None or not limit or not is_plain_greedy(config) or not is_plain_t5(model):
        return model.generate(encoder_outputs=encoder_outputs, attention_mask=attention_mask, generation_config=config)
    hidden = encoder_outputs[0]
    decoder = GreedyDecoder(model, slots=len(hidden))
    ids = dict(decoder.decode([(list(range(len(hidden))), hidden, attention_mask)], limit, end))
    start = model.config.decoder_start_token_id
    rows = [torch.tensor([start, *ids[row]]) for row in range(len(hidden))]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=model.config.pad_token_id)
    return padded.to(hidden.device)


class GreedyDecoder:
    """Decodes rows of a T5 whose encoder has read them.

    Args:
        model: `MMCoTForConditionalGeneration` (or any T5 of transformers') in evaluation mode.
        slots: rows that are decoded at a time.
        dtype: to compute in; default: autocast's where that is on, else the weights'.
    """

    def __init__(self, model, slots: int = 64, dtype: torch.dtype | None = None):
        self.weights = DecoderWeights(model, dtype)
        self.slots, self.device = slots, self.weights.device
        # lengths of keys are rounded up to this: what a GPU's attention reads without copying
        self.multiple = 1 if self.device.type == "cpu" else 8
        # finished rows are looked for every so often: each look waits for the device
        self.look_every = 1 if self.device.type == "cpu" else 8
        # a product with one row wouldn't be shared between a CPU's threads
        self.fewest = 2 if self.device.type == "cpu" else 1
        # rows whose attention is one call, at the longest one's length: a CPU waits for memory there
        self.block = 16 if self.device.type == "cpu" else slots

    @torch.no_grad()
    def decode(
        self,
        batches: Iterable[tuple[list[Hashable], Tensor, Tensor]],
        max_new_tokens: int,
        eos_token_id: int | list[int],
        lengths: Mapping[Hashable, int] | None = None,
    ) -> Iterator[tuple[Hashable, list[int]]]:
        """Yields (key, ids) of each row as it ends; ids have no start token, and the end token if it was written.

        Args:
            batches: (keys, hidden (rows, text, d_model), attention_mask (rows, text)); the next is asked for when
                there is room. Rows of falling length waste least.
            max_new_tokens: a row ends here at the latest.
            eos_token_id: ends a row.
            lengths: key → how many tokens the row gets, whatever the network would do; for measuring speed with
                random weights.
        """
        ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id)
        ends_here = torch.tensor(sorted(ends), device=self.device)
        source = _Source(batches)
        places = _Places(self, max_new_tokens)
        since_look = 0
        while True:
            free = places.free(self.slots)
            if free and (not places.keys or free >= max(1, self.slots // 8)):
                rows = source.take(free)
                if rows:
                    places.admit(rows, lengths)
            if not places.active:
                return
            places.step(None if lengths is not None else ends_here)
            since_look += 1
            if since_look >= self.look_every:
                since_look = 0
                yield from places.finished(ends)
                if source.exhausted:
                    places.shrink()

    def _step(self, tokens: Tensor, places: "_Places") -> Tensor:
        """Logits (rows, vocabulary) after `tokens` (rows,), whose keys and values join the places' own."""
        with torch.autocast(self.device.type, enabled=False), attention_kernels(self.device):
            return self._logits(tokens, places)

    def _logits(self, tokens: Tensor, places: "_Places") -> Tensor:
        weights, rows, positions = self.weights, places.rows, places.positions
        blocks = places.blocks(self.block, self.multiple)
        longest = max(written for _, written, _ in blocks)
        distance = positions[:, None] - torch.arange(longest, device=self.device)  # (rows, longest)
        bias = places.bias_table[:, distance.clamp(min=0)].transpose(0, 1)[:, :, None]  # (rows, heads, 1, longest)
        bias = bias.masked_fill((distance < 0)[:, None, None], float("-inf"))
        state = weights.embed(tokens)  # (rows, d_model)
        for number, layer in enumerate(weights.layers):
            read = weights.project(weights.norm(state, layer["norm"]), layer["qkv"], 3)
            query, key, value = (weights.split_heads(part) for part in read)  # (rows, heads, width)
            own, cross = places.own[number], places.cross[number]
            own[0, rows, :, positions] = key
            own[1, rows, :, positions] = value
            found = [
                _attend(query[own_rows], own[:, own_rows, :, :written], bias[own_rows, ..., :written])
                for own_rows, written, _ in blocks
            ]
            state = state + weights.project(_joined(found), layer["out"])[0]
            query = weights.project(weights.norm(state, layer["cross_norm"]), layer["cross_q"])[0]
            query = weights.split_heads(query)
            found = [
                _attend(query[own_rows], cross[:, own_rows, :, :text], places.cross_mask[own_rows, ..., :text])
                for own_rows, _, text in blocks
            ]
            state = state + weights.project(_joined(found), layer["cross_out"])[0]
            state = weights.feed_forward(state, layer)
        return weights.logits(state)


def _attend(query: Tensor, key_value: Tensor, mask: Tensor) -> Tensor:
    """query (rows, heads, width) over key_value (2, rows, heads, length, width) -> (rows, heads * width)."""
    found = F.scaled_dot_product_attention(query[:, :, None], *key_value, attn_mask=mask, scale=1.0)
    return found.flatten(1)


def _joined(found: list[Tensor]) -> Tensor:
    return found[0] if len(found) == 1 else torch.cat(found)


def _rounded_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


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


class _Places:
    """The rows that are being decoded: their keys and values, masks, tokens and positions.

    Of each layer own (2, rows, heads, room, width) and cross (2, rows, heads, text, width); cross_mask (rows, 1, 1,
    text; `unseen` where there is no text), written (rows, room), tokens, positions, ended and vacant (rows,). The
    host's: `keys`, `counts` (tokens written), `goals` (at most to write), `texts` (length of what the row reads).
    """

    def __init__(self, decoder: GreedyDecoder, max_new_tokens: int):
        self.decoder, self.limit = decoder, max_new_tokens
        self.keys: list[Hashable | None] = []
        self.counts: list[int] = []
        self.goals: list[int] = []
        self.texts: list[int] = []
        self.room = 0
        self.unseen = torch.finfo(decoder.weights.dtype).min  # not -inf: a free place mustn't come to hold NaN
        self.bias_table = decoder.weights.biases(max_new_tokens + decoder.look_every)

    @property
    def active(self) -> int:
        return sum(key is not None for key in self.keys)

    def free(self, slots: int) -> int:
        return slots - self.active

    def blocks(self, size: int, multiple: int) -> list[tuple[slice, int, int]]:
        """Rows side by side, `size` at a time: which, their tokens with the one being written, their longest text;
        both rounded up to a multiple as far as there is room."""
        found = []
        for first in range(0, len(self.keys), size):
            rows = slice(first, first + size)
            written, text = max(self.counts[rows]) + 1, max(self.texts[rows])
            written, text = _rounded_up(written, multiple), _rounded_up(text, multiple)
            found.append((rows, min(written, self.room), min(text, self.cross_mask.shape[-1])))
        return found

    def admit(self, rows: list[tuple[Hashable, Tensor, Tensor]], lengths) -> None:
        """Gives rows a place: one that is free, or a new one."""
        weights, device = self.decoder.weights, self.decoder.device
        places = [i for i, key in enumerate(self.keys) if key is None][: len(rows)]
        places += range(len(self.keys), len(self.keys) + len(rows) - len(places))
        added = max(0, places[-1] + 1 - len(self.keys), self.decoder.fewest - len(self.keys))
        for values, empty in ((self.keys, None), (self.counts, 0), (self.goals, 0), (self.texts, 1)):
            values += [empty] * added
        for place, (key, row, _) in zip(places, rows, strict=True):
            self.keys[place], self.counts[place], self.texts[place] = key, 0, len(row)
            self.goals[place] = self.limit if lengths is None else min(self.limit, lengths[key])
        texts = [self.texts[place] for place in places]
        self._make_room(len(self.keys), max(texts))
        index = torch.tensor(places, device=device)
        self.tokens[index] = weights.start
        self.positions[index] = 0
        self.ended[index] = False
        self.cross_mask[index] = self.unseen
        # what the rows read, one after the other without padding: the place and position of each token
        hidden = torch.cat([row for _, row, _ in rows]).to(weights.dtype)  # (tokens, d_model)
        seen = torch.cat([mask.bool() for _, _, mask in rows])
        places = torch.tensor(places).repeat_interleave(torch.tensor(texts)).to(device)
        positions = torch.cat([torch.arange(text) for text in texts]).to(device)
        self.cross_mask[places, 0, 0, positions] = torch.zeros_like(seen, dtype=weights.dtype).masked_fill(
            ~seen, self.unseen
        )
        with torch.autocast(device.type, enabled=False):
            for cross, layer in zip(self.cross, weights.layers, strict=True):
                for i, part in enumerate(weights.project(hidden, layer["cross_kv"], 2)):
                    cross[i, places, :, positions] = weights.split_heads(part)
        self._places_changed()

    def _make_room(self, rows: int, text: int) -> None:
        """Enlarges, or first makes, the tensors; what they hold stays."""
        weights, device = self.decoder.weights, self.decoder.device
        long = {"dtype": torch.long, "device": device}
        if not self.room:
            self.room = min(64, self.limit) + self.decoder.look_every
            empty = torch.zeros(2, 0, weights.heads, self.room, weights.width, dtype=weights.dtype, device=device)
            self.own = [empty for _ in weights.layers]
            self.cross = [empty[..., :0, :] for _ in weights.layers]
            self.cross_mask = empty.new_zeros(0, 1, 1, 0)
            self.written = torch.zeros(0, self.room, **long)
            self.tokens, self.positions = torch.zeros(0, **long), torch.zeros(0, **long)
            self.ended = torch.zeros(0, dtype=torch.bool, device=device)
        text = _rounded_up(text, self.decoder.multiple)
        more, wider = max(0, rows - len(self.tokens)), max(0, text - self.cross_mask.shape[-1])
        if more or wider:  # layer by layer, so that old and new are there together of one only
            self._each_layer(self.cross, lambda cross: F.pad(cross, (0, 0, 0, wider, 0, 0, 0, more)))
            self.cross_mask = F.pad(self.cross_mask, (0, wider, 0, 0, 0, 0, 0, more), value=self.unseen)
        if more:
            self._each_layer(self.own, lambda own: F.pad(own, (0,) * 6 + (0, more)))
            self.written = F.pad(self.written, (0, 0, 0, more))
            self.tokens, self.positions = F.pad(self.tokens, (0, more)), F.pad(self.positions, (0, more))
            self.ended = F.pad(self.ended, (0, more))

    @staticmethod
    def _each_layer(tensors: list[Tensor], change: Callable[[Tensor], Tensor]) -> None:
        for number in range(len(tensors)):
            tensors[number] = change(tensors[number])

    def _places_changed(self) -> None:
        """A free place starts over at each token: nobody reads it, and it must stay within its bounds."""
        device = self.decoder.device
        self.rows = torch.arange(len(self.keys), device=device)
        self.vacant = torch.tensor([key is None for key in self.keys], device=device)
        self.positions = self.positions.masked_fill(self.vacant, 0)

    def step(self, ends: Tensor | None) -> None:
        """One more token in every row; `ends` are the tokens that end one."""
        longest = max(self.counts) + 1
        if longest > self.room:
            more = min(self.room, self.limit + self.decoder.look_every - self.room)
            self._each_layer(self.own, lambda own: F.pad(own, (0, 0, 0, more)))
            self.written = F.pad(self.written, (0, more))
            self.room += more
        tokens = self.decoder._step(self.tokens, self).argmax(-1)
        self.written[self.rows, self.positions] = tokens
        self.tokens = tokens
        if ends is not None:
            self.ended |= torch.isin(tokens, ends)
        self.positions = self.positions + 1
        self.counts = [0 if key is None else count + 1 for key, count in zip(self.keys, self.counts, strict=True)]
        if None in self.keys:
            self.positions = self.positions.masked_fill(self.vacant, 0)

    def finished(self, ends: set[int]) -> Iterator[tuple[Hashable, list[int]]]:
        """Yields the rows that have ended and frees their places."""
        ended = self.ended.tolist()
        done = [
            i for i, key in enumerate(self.keys) if key is not None and (ended[i] or self.counts[i] >= self.goals[i])
        ]
        if not done:
            return
        written = self.written[torch.tensor(done, device=self.decoder.device)].tolist()
        for i, ids in zip(done, written, strict=True):
            ids = ids[: min(self.counts[i], self.goals[i])]
            if ended[i]:
                end = next((j for j, token in enumerate(ids) if token in ends), len(ids) - 1)
                ids = ids[: end + 1]
            key, self.keys[i], self.counts[i], self.texts[i] = self.keys[i], None, 0, 1
            yield key, ids
        self._places_changed()

    def shrink(self) -> None:
        """Drops free places once they are a quarter, and text that no row reads any more."""
        if not self.decoder.fewest < len(self.keys) or self.active > 0.75 * len(self.keys):
            return
        kept = sorted(range(len(self.keys)), key=lambda i: (self.keys[i] is None, i))
        kept = kept[: max(self.active, self.decoder.fewest)]
        index = torch.tensor(kept, device=self.decoder.device)
        self.keys, self.counts, self.goals, self.texts = (
            [values[i] for i in kept] for values in (self.keys, self.counts, self.goals, self.texts)
        )
        text = _rounded_up(max(self.texts), self.decoder.multiple)
        self.cross_mask = self.cross_mask[..., :text][index]
        self._each_layer(self.own, lambda own: own[:, index])
        self._each_layer(self.cross, lambda cross: cross[..., :text, :][:, index])
        self.written, self.tokens = self.written[index], self.tokens[index]
        self.positions, self.ended = self.positions[index], self.ended[index]
        self._places_changed()


__all__ = ["GreedyDecoder", "generate_ids", "is_plain_greedy"]
