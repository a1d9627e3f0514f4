"""A T5 encoder's and its fusion's weights and arithmetic, as reading without gradients wants them.

The same sums as `MMCoTEncoder`, in one dtype for products and attention; what a state is summed up in stays the
model's. The counterpart of `decoder_weights.py`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.t5.modeling_t5 import T5Stack

from mmcot.fusion_mmcot import GatedFusion
from mmcot.modeling_mmcot import MMCoTEncoder
from mmcot.training.inference.decoder_weights import (
    PLAIN_ATTENTION,
    PLAIN_MODULES,
    attention_kernels,
    computing_dtype,
    feed_forward,
)
from mmcot.training.inference.matrices import Matrix, multiply, multiply_each, packs, read_matrices


def is_plain_encoder(encoder) -> bool:
    """Whether an encoder is T5's own with our fusion, in memory, on one device, in one dtype: then the sums here are
    those of the network. Not with adapters, quantised or offloaded weights, hooks, or other modules.
    """
    if encoder.config._attn_implementation not in PLAIN_ATTENTION or encoder.training:
        return False
    if type(encoder).forward not in (MMCoTEncoder.forward, T5Stack.forward):
        return False
    vision = getattr(encoder, "vision", None)
    backbone = set() if vision is None else {id(module) for module in vision.modules()}
    modules = [module for module in encoder.modules() if id(module) not in backbone]
    activations = {id(module.act) for module in modules if hasattr(module, "act")}
    known = PLAIN_MODULES | {GatedFusion}
    for module in modules:
        if module is not encoder and type(module) not in known and id(module) not in activations:
            return False
        if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
            return False
    weights = [weight for module in modules for weight in module.parameters(recurse=False)]
    if any(type(weight.data) is not Tensor or hasattr(weight, "ds_id") for weight in weights):
        return False
    kinds = {(weight.dtype, weight.device) for weight in weights}
    return len(kinds) == 1 and weights[0].is_floating_point() and weights[0].device.type != "meta"


class EncoderWeights:
    """Reads text and image features as the model's encoder does.

    Args:
        model: `MMCoTForConditionalGeneration` (or any T5) whose encoder `is_plain_encoder`.
        dtype, packed: as in `DecoderWeights`.
    """

    def __init__(self, model, dtype: torch.dtype | None = None, packed: bool | None = None):
        config, encoder = model.config, model.get_encoder()
        self.matrix_dtype = dtype or computing_dtype(model)
        self.dtype = torch.float32 if self.matrix_dtype == torch.int8 else self.matrix_dtype
        self.packed = packs(model, self.matrix_dtype, packed)
        self.embedding = encoder.embed_tokens.weight.detach()
        self.device = self.embedding.device
        self.width, self.d_model, self.eps = config.d_kv, config.d_model, config.layer_norm_epsilon
        self.layers = [self._layer(block) for block in encoder.block]
        self.final_norm = encoder.final_layer_norm.weight.detach()
        self._first_attention = encoder.block[0].layer[0].SelfAttention
        fusion = getattr(encoder, "fusion", None)
        self.fusion = None if fusion is None else _FusionWeights(fusion, self)

    def read(self, *weights: Tensor) -> tuple[Matrix, ...]:
        return read_matrices(list(weights), self.matrix_dtype, self.packed)

    def _layer(self, block) -> dict:
        own, feed = block.layer[0], block.layer[1]
        attention, dense = own.SelfAttention, feed.DenseReluDense
        gated = hasattr(dense, "wi_0")
        return {
            "norm": own.layer_norm.weight.detach(),
            "qkv": self.read(attention.q.weight, attention.k.weight, attention.v.weight),
            "out": self.read(attention.o.weight),
            "feed_norm": feed.layer_norm.weight.detach(),
            "feed_in": self.read(dense.wi_0.weight, dense.wi_1.weight) if gated else self.read(dense.wi.weight),
            "feed_out": self.read(dense.wo.weight),
            "activation": dense.act,
            "gated": gated,
            "nonnegative": not gated and isinstance(dense.act, nn.ReLU),
        }

    @torch.no_grad()
    def __call__(
        self,
        ids: Tensor,
        mask: Tensor,
        image_features: Tensor | None = None,
        image_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """The encoder's output (rows, text, d_model).

        Args:
            ids, mask (rows, text); image_features, image_attention_mask: as `MMCoTEncoder.forward` takes them.
        """
        with torch.autocast(self.device.type, enabled=False), attention_kernels(self.device):
            bias = self._bias(mask)  # (rows, heads, text, text)
            state = F.embedding(ids, self.embedding)
            for layer in self.layers:
                read = multiply_each(self._norm(state, layer["norm"]), layer["qkv"], 3)
                heads = (part.unflatten(-1, (-1, self.width)).transpose(1, 2) for part in read)
                found = F.scaled_dot_product_attention(*heads, attn_mask=bias, scale=1.0)
                state = state + multiply(found.transpose(1, 2).flatten(2), layer["out"][0])
                state = feed_forward(self._norm(state, layer["feed_norm"]), state, layer)
            # summed up in the model's type, as everything that isn't multiplied
            state = F.rms_norm(state, (self.d_model,), self.final_norm, self.eps)
            return state if self.fusion is None else self.fusion(state, image_features, image_attention_mask)

    def _norm(self, state: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(state, (self.d_model,), weight, self.eps).to(self.dtype)

    def _bias(self, mask: Tensor) -> Tensor:
        """T5's position bias, and the mask value on padding: (rows or 1, heads, text, text)."""
        text, attention = mask.shape[1], self._first_attention
        buckets = attention._relative_position_bucket(
            torch.arange(1 - text, text, device=mask.device),
            bidirectional=True,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        by_distance = attention.relative_attention_bias(buckets).T.to(self.dtype)  # (heads, 2 * text - 1)
        position = torch.arange(text, device=mask.device)
        bias = by_distance[:, position - position[:, None] + text - 1][None]
        if self.device.type == "cpu" and bool(mask.all()):  # a GPU would have to be waited for
            return bias
        return bias.masked_fill(mask[:, None, None] == 0, torch.finfo(self.dtype).min)


class _FusionWeights:
    """`GatedFusion`, its products in the encoder's dtype; gate and sum in the model's."""

    def __init__(self, fusion: GatedFusion, encoder: EncoderWeights):
        self.module, self.dtype = fusion, encoder.dtype
        self.image, self.image_bias = self._linear(fusion.image_proj, encoder)
        self.query, self.query_bias = self._linear(fusion.q_proj, encoder)
        self.key, self.key_bias = self._linear(fusion.k_proj, encoder)
        self.value, self.value_bias = self._linear(fusion.v_proj, encoder)
        self.out, self.out_bias = self._linear(fusion.out_proj, encoder)
        if fusion.gate_proj is not None:
            self.gate, self.gate_bias = self._linear(fusion.gate_proj, encoder)

    @staticmethod
    def _linear(linear: nn.Linear, encoder: EncoderWeights) -> tuple[Matrix, Tensor]:
        return encoder.read(linear.weight)[0], linear.bias.detach().to(encoder.dtype)

    def __call__(self, state: Tensor, image_features: Tensor | None, image_attention_mask: Tensor | None) -> Tensor:
        features, mask = self.module._with_zero_patch(state.to(self.dtype), image_features, image_attention_mask)
        image = multiply(features, self.image) + self.image_bias
        text = state.to(self.dtype)
        heads = [
            self.module._split_heads(multiply(source, matrix) + bias)
            for source, matrix, bias in (
                (text, self.query, self.query_bias),
                (image, self.key, self.key_bias),
                (image, self.value, self.value_bias),
            )
        ]
        found = F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)
        found = multiply(found, self.out) + self.out_bias
        if self.module.gate_proj is None:
            return state + found
        gate = torch.sigmoid((multiply(torch.cat([text, found], dim=-1), self.gate) + self.gate_bias).to(state.dtype))
        return (1 - gate) * state + gate * found
