"""Greedy decoding of many rows at once: what `generate()` writes, sooner.

A row that has ended gives its place to the next one, or the batch shrinks; keys and values are written in place
instead of being joined anew at each token; projections that read the same state are one product. The ids equal those
of `generate()`.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig
from transformers.models.t5.modeling_t5 import T5Attention, T5DenseActDense, T5DenseGatedActDense

_PROJECTIONS = {"q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"}
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


def is_plain_t5(model) -> bool:
    """Whether the decoder is T5's own, on one device: no adapters, quantised layers or hooks."""
    modules = [model.lm_head, *model.decoder.modules()]
    for module in modules:
        if isinstance(module, T5Attention | T5DenseActDense | T5DenseGatedActDense):
            parts = [part for name, part in module.named_children() if name in _PROJECTIONS]
            if any(type(part) is not nn.Linear for part in parts):
                return False
        if module._forward_hooks or module._forward_pre_hooks:
            return False
    return type(model.lm_head) is nn.Linear and len({weight.device for weight in model.decoder.parameters()}) == 1


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
    rows = [torch.tensor([start, *ids[row]], device=hidden.device) for row in range(len(hidden))]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=model.config.pad_token_id)


class GreedyDecoder:
    """Decodes rows of a T5 whose encoder has read them.

    Args:
        model: `MMCoTForConditionalGeneration` (or any T5 of transformers') in evaluation mode.
        slots: rows that are decoded at a time.
        dtype: to compute in; default: autocast's where that is on, else the weights'.
    """

    def __init__(self, model, slots: int = 64, dtype: torch.dtype | None = None):
        config, decoder = model.config, model.decoder
        weight = model.lm_head.weight
        if dtype is None:
            device_type = weight.device.type
            on = torch.is_autocast_enabled(device_type)
            dtype = torch.get_autocast_dtype(device_type) if on else weight.dtype
        self.slots, self.dtype, self.device = slots, dtype, weight.device
        self.heads, self.width, self.eps = config.num_heads, config.d_kv, config.layer_norm_epsilon
        self.d_model = config.d_model
        self.start = config.decoder_start_token_id
        self.logit_scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
        self.embedding = decoder.embed_tokens.weight
        self.lm_head = self._copy(weight)
        self.final_norm = self._copy(decoder.final_layer_norm.weight)
        self.layers = [self._layer(block) for block in decoder.block]
        self._bias_of = decoder.block[0].layer[0].SelfAttention
        # finished rows are looked for every so often: each look waits for the device
        self.look_every = 8 if self.device.type == "cuda" else 1

    def _copy(self, *weights: Tensor) -> Tensor:
        return (weights[0] if len(weights) == 1 else torch.cat(weights)).detach().to(self.dtype)

    def _layer(self, block) -> dict[str, Tensor]:
        own, cross, feed = block.layer[0], block.layer[1], block.layer[2]
        attention, over = own.SelfAttention, cross.EncDecAttention
        dense = feed.DenseReluDense
        gated = hasattr(dense, "wi_0")
        return {
            "norm": self._copy(own.layer_norm.weight),
            "qkv": self._copy(attention.q.weight, attention.k.weight, attention.v.weight),
            "out": self._copy(attention.o.weight),
            "cross_norm": self._copy(cross.layer_norm.weight),
            "cross_q": self._copy(over.q.weight),
            "cross_kv": self._copy(over.k.weight, over.v.weight),
            "cross_out": self._copy(over.o.weight),
            "feed_norm": self._copy(feed.layer_norm.weight),
            "feed_in": self._copy(dense.wi_0.weight, dense.wi_1.weight) if gated else self._copy(dense.wi.weight),
            "feed_out": self._copy(dense.wo.weight),
            "activation": dense.act,
            "gated": gated,
        }

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
        ends = torch.as_tensor(eos_token_id, device=self.device).view(-1)
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
            places.step(None if lengths is not None else ends)
            since_look += 1
            if since_look >= self.look_every:
                since_look = 0
                yield from places.finished(ends)
                if source.exhausted:
                    places.shrink()

    def _step(self, tokens: Tensor, places: "_Places", longest: int) -> Tensor:
        """Logits (rows, vocabulary) after `tokens` (rows,), whose keys and values join the places' own."""
        rows, positions = places.rows, places.positions
        distance = positions[:, None] - torch.arange(longest, device=self.device)  # (rows, longest)
        bias = places.bias_table[:, distance.clamp(min=0)].transpose(0, 1)[:, :, None]  # (rows, heads, 1, longest)
        bias = bias.masked_fill((distance < 0)[:, None, None], float("-inf"))
        state = F.embedding(tokens, self.embedding).to(self.dtype)  # (rows, d_model)
        for number, layer in enumerate(self.layers):
            read = F.linear(self._norm(state, layer["norm"]), layer["qkv"])
            query, key, value = read.view(len(tokens), 3, self.heads, self.width).unbind(1)
            places.own[number, 0, rows, positions] = key
            places.own[number, 1, rows, positions] = value
            state = state + F.linear(self._attend(query, places.own[number, :, :, :longest], bias), layer["out"])
            query = F.linear(self._norm(state, layer["cross_norm"]), layer["cross_q"])
            query = query.view(len(tokens), self.heads, self.width)
            found = self._attend(query, places.cross[number], places.cross_mask)
            state = state + F.linear(found, layer["cross_out"])
            inner = F.linear(self._norm(state, layer["feed_norm"]), layer["feed_in"])
            if layer["gated"]:
                gate, inner = inner.chunk(2, dim=-1)
                inner = layer["activation"](gate) * inner
            else:
                inner = layer["activation"](inner)
            state = state + F.linear(inner, layer["feed_out"])
        return F.linear(self._norm(state, self.final_norm) * self.logit_scale, self.lm_head)

    def _norm(self, state: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(state, (self.d_model,), weight, self.eps)

    def _attend(self, query: Tensor, key_value: Tensor, mask: Tensor) -> Tensor:
        """query (rows, heads, width) over key_value (2, rows, length, heads, width) -> (rows, heads * width)."""
        key, value = key_value.transpose(2, 3)  # (rows, heads, length, width) each
        found = F.scaled_dot_product_attention(query[:, :, None], key, value, attn_mask=mask, scale=1.0)
        return found.flatten(1)


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

    own (layers, 2, rows, room, heads, width), cross (layers, 2, rows, text, heads, width), cross_mask (rows, 1, 1,
    text), written (rows, room), tokens and positions (rows,); `keys` and `counts` (tokens written) are the host's.
    """

    def __init__(self, decoder: GreedyDecoder, max_new_tokens: int):
        self.decoder, self.limit = decoder, max_new_tokens
        self.keys: list[Hashable | None] = []
        self.counts: list[int] = []
        self.goals: list[int] = []
        self.room = 0
        self.bias_table = self._biases(max_new_tokens + decoder.look_every)

    def _biases(self, room: int) -> Tensor:
        """T5's bias by how far back a key lies, (heads, room)."""
        attention = self.decoder._bias_of
        back = -torch.arange(room, device=self.decoder.device)
        buckets = attention._relative_position_bucket(
            back,
            bidirectional=False,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        return attention.relative_attention_bias(buckets).T.to(self.decoder.dtype)

    @property
    def active(self) -> int:
        return sum(key is not None for key in self.keys)

    def free(self, slots: int) -> int:
        return slots - self.active

    def admit(self, rows: list[tuple[Hashable, Tensor, Tensor]], lengths) -> None:
        """Gives rows a place: one that is free, or a new one."""
        decoder = self.decoder
        places = [i for i, key in enumerate(self.keys) if key is None][: len(rows)]
        places += range(len(self.keys), len(self.keys) + len(rows) - len(places))
        added = max(0, places[-1] + 1 - len(self.keys))
        self.keys += [None] * added
        self.counts += [0] * added
        self.goals += [0] * added
        hidden = nn.utils.rnn.pad_sequence([row for _, row, _ in rows], batch_first=True).to(decoder.dtype)
        mask = nn.utils.rnn.pad_sequence([row_mask.bool() for _, _, row_mask in rows], batch_first=True)
        text = mask.shape[1]
        for place, (key, _, _) in zip(places, rows, strict=True):
            self.keys[place], self.counts[place] = key, 0
            self.goals[place] = self.limit if lengths is None else min(self.limit, lengths[key])
        self._make_room(len(self.keys), text)
        index = torch.tensor(places, device=decoder.device)
        self.cross_mask[index] = False
        self.cross_mask[index, :, :, :text] = mask[:, None, None]
        for number, layer in enumerate(decoder.layers):
            read = F.linear(hidden, layer["cross_kv"]).view(len(rows), text, 2, decoder.heads, decoder.width)
            self.cross[number, :, index, :text] = read.permute(2, 0, 1, 3, 4)
        self.tokens[index] = decoder.start
        self.positions[index] = 0
        self.ended[index] = False

    def _make_room(self, rows: int, text: int) -> None:
        """Enlarges, or first makes, the tensors; what they hold stays."""
        decoder = self.decoder
        layers, heads, width = len(decoder.layers), decoder.heads, decoder.width
        long = {"dtype": torch.long, "device": decoder.device}
        if not self.room:
            self.room = min(64, self.limit) + decoder.look_every
            self.own = torch.zeros(layers, 2, 0, self.room, heads, width, dtype=decoder.dtype, device=decoder.device)
            self.cross = self.own.new_zeros(layers, 2, 0, 0, heads, width)
            self.cross_mask = torch.zeros(0, 1, 1, 0, dtype=torch.bool, device=decoder.device)
            self.written = torch.zeros(0, self.room, **long)
            self.tokens, self.positions = torch.zeros(0, **long), torch.zeros(0, **long)
            self.ended = torch.zeros(0, dtype=torch.bool, device=decoder.device)
        more, wider = rows - len(self.tokens), max(0, text - self.cross.shape[3])
        if wider:
            self.cross = F.pad(self.cross, (0, 0, 0, 0, 0, wider))
            self.cross_mask = F.pad(self.cross_mask, (0, wider))
        if more > 0:
            self.own = F.pad(self.own, (0,) * 6 + (0, more))
            self.cross = F.pad(self.cross, (0,) * 6 + (0, more))
            self.cross_mask = F.pad(self.cross_mask, (0,) * 6 + (0, more))
            self.written = F.pad(self.written, (0, 0, 0, more))
            self.tokens, self.positions = F.pad(self.tokens, (0, more)), F.pad(self.positions, (0, more))
            self.ended = F.pad(self.ended, (0, more))
        self.rows = torch.arange(rows, device=decoder.device)

    def step(self, ends: Tensor | None) -> None:
        """One more token in every row; `ends` are the tokens that end one."""
        longest = max(self.counts) + 1
        if longest > self.room:
            more = min(self.room, self.limit + self.decoder.look_every - self.room)
            self.own = F.pad(self.own, (0, 0, 0, 0, 0, more))
            self.written = F.pad(self.written, (0, more))
            self.room += more
        tokens = self.decoder._step(self.tokens, self, longest).argmax(-1)
        self.written[self.rows, self.positions] = tokens
        self.tokens = tokens
        if ends is not None:
            self.ended |= torch.isin(tokens, ends)
        self.positions = self.positions + 1
        self.counts = [count + 1 for count in self.counts]
        for i, key in enumerate(self.keys):
            if key is None:  # nobody reads it; it must only stay within its bounds
                self.counts[i] = 0
        if None in self.keys:
            vacant = torch.tensor([key is None for key in self.keys], device=self.decoder.device)
            self.positions = self.positions.masked_fill(vacant, 0)

    def finished(self, ends: Tensor) -> Iterator[tuple[Hashable, list[int]]]:
        """Yields the rows that have ended and frees their places."""
        ended = self.ended.tolist()
        done = [
            i for i, key in enumerate(self.keys) if key is not None and (ended[i] or self.counts[i] >= self.goals[i])
        ]
        if not done:
            return
        written = self.written[torch.tensor(done, device=self.decoder.device)].tolist()
        ends = set(ends.tolist())
        for i, ids in zip(done, written, strict=True):
            ids = ids[: min(self.counts[i], self.goals[i])]
            if ended[i]:
                end = next((j for j, token in enumerate(ids) if token in ends), len(ids) - 1)
                ids = ids[: end + 1]
            key, self.keys[i], self.counts[i] = self.keys[i], None, 0
            yield key, ids
        self.positions[torch.tensor(done, device=self.decoder.device)] = 0

    def shrink(self) -> None:
        """Drops free places once they are a quarter, and text that no row has any more."""
        if self.active > 0.75 * len(self.keys) or not self.active:
            return
        kept = [i for i, key in enumerate(self.keys) if key is not None]
        index = torch.tensor(kept, device=self.decoder.device)
        self.keys, self.counts, self.goals = (
            [values[i] for i in kept] for values in (self.keys, self.counts, self.goals)
        )
        self.cross_mask = self.cross_mask[index]
        text = int((self.cross_mask.view(len(kept), -1).any(0)).nonzero().max()) + 1
        self.cross_mask = self.cross_mask[..., :text]
        self.own = self.own[:, :, index]
        self.cross = self.cross[:, :, index, :text]
        self.written, self.tokens = self.written[index], self.tokens[index]
        self.positions, self.ended = self.positions[index], self.ended[index]
        self.rows = torch.arange(len(kept), device=self.decoder.device)


__all__ = ["GreedyDecoder", "generate_ids", "is_plain_greedy", "is_plain_t5"]
