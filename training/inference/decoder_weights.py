"""A T5 decoder's weights and arithmetic, as decoding without gradients reads them.

The same sums as transformers' `T5Stack`, without its bookkeeping; `GreedyDecoder` and `score_options` are built on it.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.t5 import modeling_t5
from transformers.models.t5.modeling_t5 import T5ForConditionalGeneration, T5PreTrainedModel

from mmcot.modeling_mmcot import MMCoTForConditionalGeneration
from mmcot.training.inference.matrices import Matrix, multiply, multiply_each, packs, read_matrices

# the types that a T5 decoder is made of; a subclass may compute something else
PLAIN_MODULES = {
    modeling_t5.T5Attention,
    modeling_t5.T5Block,
    modeling_t5.T5DenseActDense,
    modeling_t5.T5DenseGatedActDense,
    modeling_t5.T5LayerCrossAttention,
    modeling_t5.T5LayerFF,
    modeling_t5.T5LayerNorm,
    modeling_t5.T5LayerSelfAttention,
    modeling_t5.T5Stack,
    nn.Dropout,
    nn.Embedding,
    nn.Linear,
    nn.ModuleList,
}

PLAIN_ATTENTION = ("eager", "sdpa")


def is_plain_t5(model) -> bool:
    """Whether decoder and output layer are T5's own, in memory, on one device, in one dtype: then the sums here are
    those of the network.

    Not with adapters on any module (LoRA, also of embeddings; LN-tuning), quantised or offloaded weights, hooks,
    sharding (FSDP, ZeRO-3), or other modules in place of T5's. Nor in float16, whose range a T5's states leave:
    transformers then keeps a part of the weights in float32.
    """
    if not isinstance(model, T5PreTrainedModel) or model.config._attn_implementation not in PLAIN_ATTENTION:
        return False
    if type(model).forward not in (MMCoTForConditionalGeneration.forward, T5ForConditionalGeneration.forward):
        return False  # prompt tuning, or someone's own network
    modules = [model.lm_head, *model.decoder.modules()]
    activations = {id(module.act) for module in modules if hasattr(module, "act")}  # called as they are
    for module in modules:
        if type(module) not in PLAIN_MODULES and id(module) not in activations:
            return False
        # accelerate's hooks stand in for `forward`; those of the network as a whole are called by nobody here
        if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
            return False
    if model._forward_hooks or model._forward_pre_hooks or hasattr(model, "_hf_hook"):
        return False
    weights = [*model.lm_head.parameters(), *model.decoder.parameters()]
    if model.lm_head.bias is not None or any(type(w.data) is not Tensor or hasattr(w, "ds_id") for w in weights):
        return False
    if len({weight.dtype for weight in weights}) != 1 or {weight.device.type for weight in weights} == {"meta"}:
        return False
    if len({weight.device for weight in weights}) != 1:
        return False
    return weights[0].is_floating_point() and computing_dtype(model) != torch.float16


def computing_dtype(model) -> torch.dtype:
    """Autocast's where that is on, else the weights'."""
    weight = model.lm_head.weight
    on = torch.is_autocast_enabled(weight.device.type)
    return torch.get_autocast_dtype(weight.device.type) if on else weight.dtype


def attention_kernels(device: torch.device):
    """A context for attention over shapes that keep changing. On a GPU it leaves out the kernel of cuDNN, which makes
    a plan for each new shape, in milliseconds."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


class DecoderWeights:
    """The weights, in one dtype; what a state is summed up in stays the model's, as under autocast.

    On a CPU they are the model's own, without a copy unless the dtype differs or they are packed. Elsewhere, and where
    they are packed, projections that read the same state are joined to one.

    Args:
        model: `MMCoTForConditionalGeneration`, or any T5 of transformers' for which `is_plain_t5`.
        dtype: to compute in; default: autocast's where that is on, else the weights'. int8 is the matrices' alone: the
            rest is float32.
        packed: whether to make copies that are multiplied faster, see `matrices.packs`.
    """

    def __init__(self, model, dtype: torch.dtype | None = None, packed: bool | None = None):
        config, decoder = model.config, model.decoder
        weight = model.lm_head.weight
        self.matrix_dtype, self.device = dtype or computing_dtype(model), weight.device
        self.dtype = torch.float32 if self.matrix_dtype == torch.int8 else self.matrix_dtype
        self.packed = packs(model, self.matrix_dtype, packed)
        self.heads, self.width, self.d_model = config.num_heads, config.d_kv, config.d_model
        self.eps = config.layer_norm_epsilon
        self.start = config.decoder_start_token_id
        self.logit_scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
        self.embedding = decoder.embed_tokens.weight
        (self.lm_head,) = self._read(weight)
        self.final_norm = decoder.final_layer_norm.weight.detach()
        self.layers = [self._layer(block) for block in decoder.block]
        self._first_attention = decoder.block[0].layer[0].SelfAttention

    def _read(self, *weights: Tensor) -> tuple[Matrix, ...]:
        return read_matrices(list(weights), self.matrix_dtype, self.packed)

    def _layer(self, block) -> dict:
        own, cross, feed = block.layer[0], block.layer[1], block.layer[2]
        attention, over = own.SelfAttention, cross.EncDecAttention
        dense = feed.DenseReluDense
        gated = hasattr(dense, "wi_0")
        norms = [part.layer_norm.weight.detach() for part in (own, cross, feed)]
        return {
            "norm": norms[0],
            "qkv": self._read(attention.q.weight, attention.k.weight, attention.v.weight),
            "out": self._read(attention.o.weight),
            "cross_norm": norms[1],
            "cross_q": self._read(over.q.weight),
            "cross_kv": self._read(over.k.weight, over.v.weight),
            # as they are, for `forced_logits`
            "cross_pair": tuple(weight.detach().to(self.dtype) for weight in (over.k.weight, over.v.weight)),
            "cross_out": self._read(over.o.weight),
            "feed_norm": norms[2],
            "feed_in": self._read(dense.wi_0.weight, dense.wi_1.weight) if gated else self._read(dense.wi.weight),
            "feed_out": self._read(dense.wo.weight),
            "activation": dense.act,
            "gated": gated,
            "nonnegative": not gated and isinstance(dense.act, nn.ReLU),
        }

    def embed(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.embedding)

    def norm(self, state: Tensor, weight: Tensor) -> Tensor:
        if state.device.type == "cpu" and state.numel() == self.d_model and state.dtype == torch.float32 and self.eps:
            # of one row by a number: a third of PyTorch's calls
            scale = (torch.linalg.vector_norm(state).item() ** 2 / self.d_model + self.eps) ** -0.5
            return (state * weight).mul_(scale).to(self.dtype)
        return F.rms_norm(state, (self.d_model,), weight, self.eps).to(self.dtype)

    def project(self, state: Tensor, weights: tuple[Matrix, ...], parts: int = 1) -> tuple[Tensor, ...]:
        """The state (…, in) times each of `parts` matrices, which may be joined: (…, out) each."""
        return multiply_each(state, weights, parts)

    def split_heads(self, state: Tensor) -> Tensor:
        """(…, heads * width) -> (…, heads, width), as fused attention takes it: values of a head side by side."""
        state = state if state.stride(-1) == 1 else state.contiguous()
        return state.unflatten(-1, (self.heads, self.width))

    def feed_forward(self, state: Tensor, layer: dict) -> Tensor:
        """The state after a layer's feed-forward part."""
        return feed_forward(self.norm(state, layer["feed_norm"]), state, layer)

    def logits(self, state: Tensor) -> Tensor:
        """(rows, d_model) -> (rows, vocabulary)."""
        return multiply(self.norm(state, self.final_norm) * self.logit_scale, self.lm_head)

    def biases(self, count: int) -> Tensor:
        """T5's bias by how far back a key lies, (heads, count)."""
        attention = self._first_attention
        buckets = attention._relative_position_bucket(
            -torch.arange(count, device=self.device),
            bidirectional=False,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        return attention.relative_attention_bias(buckets).T.to(self.dtype)


def feed_forward(normed: Tensor, state: Tensor, layer: dict) -> Tensor:
    """The state after a layer's feed-forward part, which reads `normed`."""
    if layer["gated"]:
        gate, inner = multiply_each(normed, layer["feed_in"], 2)
        inner = layer["activation"](gate) * inner
    else:
        inner = layer["activation"](multiply(normed, layer["feed_in"][0]))
    return state + multiply(inner, layer["feed_out"][0], layer["nonnegative"])


@torch.no_grad()
def forced_logits(
    model, hidden: Tensor, attention_mask: Tensor, ids: list[int], weights: DecoderWeights | None = None
) -> Tensor:
    """Logits (rows, vocabulary) after decoder inputs `ids`, the same for all rows.

    A few queries look at many keys. So the projections to keys and values move to the side of the queries:
    `q · (W_k h) = (W_kᵀ q) · h`, and `Σ p W_v h = W_v Σ p h`. Keys and values are never computed.

    Args:
        model: as in `DecoderWeights`.
        hidden (rows, text, d_model), attention_mask (rows, text): the encoder's output.
        weights: the model's; default: read anew, in autocast's dtype where that is on.
    """
    weights = weights or DecoderWeights(model)
    with torch.autocast(weights.device.type, enabled=False), attention_kernels(weights.device):
        return _forced_logits(weights, hidden, attention_mask, ids)


def _forced_logits(weights: DecoderWeights, hidden: Tensor, attention_mask: Tensor, ids: list[int]) -> Tensor:
    count, heads, width = len(ids), weights.heads, weights.width
    hidden = hidden.to(weights.dtype)
    text_mask = torch.zeros(attention_mask.shape, dtype=weights.dtype, device=hidden.device)
    text_mask = text_mask.masked_fill(attention_mask == 0, torch.finfo(weights.dtype).min)[:, None]  # (rows, 1, text)
    back = torch.arange(count, device=hidden.device)
    back = back[:, None] - back  # (count, count)
    bias = weights.biases(count)[:, back.clamp(min=0)].masked_fill(back < 0, float("-inf"))[None]
    # until it has looked at the text, the state is the same for all rows
    state = weights.embed(torch.tensor([ids], device=hidden.device))  # (1 or rows, count, d_model)
    for number, layer in enumerate(weights.layers):
        read = weights.project(weights.norm(state, layer["norm"]), layer["qkv"], 3)
        query, key, value = (weights.split_heads(part).transpose(1, 2) for part in read)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        state = state + weights.project(found.transpose(1, 2).flatten(2), layer["out"])[0]
        if number == len(weights.layers) - 1:
            state, count = state[:, -1:], 1
        query = weights.project(weights.norm(state, layer["cross_norm"]), layer["cross_q"])[0]
        key, value = (part.view(heads, width, -1) for part in layer["cross_pair"])
        query = torch.einsum("rchw,hwd->rchd", weights.split_heads(query), key).flatten(1, 2)  # (…, count * heads, d)
        scores = query @ hidden.transpose(1, 2) + text_mask  # (rows, count * heads, text)
        found = (scores.softmax(-1, dtype=torch.float32).to(weights.dtype) @ hidden).unflatten(1, (count, heads))
        found = torch.einsum("rchd,hwd->rchw", found, value).flatten(2)
        state = state + weights.project(found, layer["cross_out"])[0]
        state = weights.feed_forward(state, layer)
    return weights.logits(state[:, -1])


__all__ = ["DecoderWeights", "attention_kernels", "feed_forward", "forced_logits", "is_plain_t5"]
