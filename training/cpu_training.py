"""Dropout that is fast on a CPU.

PyTorch draws dropout's masks number by number on one core, about 10 ns each, and with dropout its fused attention
falls back to separate steps. In a small T5 that takes a fifth of a training step. Here a mask takes 16 bits of a fast
generator for each number (the probability is exact to 1 in 65,536), seeded from PyTorch's own.
"""

from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

ATTENTION = "mmcot_cpu_training"


def keep_mask(shape: torch.Size, p: float) -> Tensor:
    """A boolean mask, True with probability 1 - p; it follows from PyTorch's random state."""
    seed = int(torch.randint(2**62, ()))
    count = shape.numel()
    bits = np.random.Generator(np.random.SFC64(seed)).integers(2**64, size=-(-count // 4), dtype=np.uint64)
    return (torch.from_numpy(bits.view(np.int16)[:count]) >= round(p * 2**16) - 2**15).view(shape)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, p: float) -> Tensor:
        ctx.p = p
        kept = keep_mask(values.shape, p)
        ctx.save_for_backward(kept)
        return (values * kept).mul_(1 / (1 - p))

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(1 / (1 - ctx.p)), None


def dropout(values: Tensor, p: float) -> Tensor:
    """As `torch.nn.functional.dropout` in training."""
    return _Dropout.apply(values, p) if 0 < p < 1 and values.device.type == "cpu" else nn.functional.dropout(values, p)


class FastDropout(nn.Dropout):
    """`nn.Dropout` by `dropout`."""

    def forward(self, values: Tensor) -> Tensor:
        return dropout(values, self.p) if self.training and self.p else values


def attention_forward(module, query, key, value, attention_mask, dropout: float = 0.0, position_bias=None, **kwargs):
    """T5's attention: fused without dropout, else the same steps with a fast mask."""
    from transformers.integrations.sdpa_attention import create_position_bias_mask, sdpa_attention_forward

    if not dropout or position_bias is None or query.device.type != "cpu":
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, position_bias=position_bias, **kwargs
        )
    causal = module.is_causal and attention_mask is None and query.shape[2] > 1
    bias = create_position_bias_mask(position_bias, attention_mask, causal, query, key)
    rows, heads, text, width = query.shape
    bias = bias.expand(rows, heads, text, key.shape[2]).reshape(rows * heads, text, -1)
    flat = [states.reshape(rows * heads, -1, width) for states in (query, key, value)]
    weights = torch.baddbmm(bias, flat[0], flat[1].transpose(1, 2), alpha=kwargs.get("scaling") or 1.0).softmax(-1)
    found = torch.bmm(_Dropout.apply(weights, dropout), flat[2])
    return found.view(rows, heads, text, width).transpose(1, 2).contiguous(), None


@contextmanager
def fast_dropout(model):
    """Within the block the T5 stacks of `model` drop out the fast way; outside they are as they were."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attention_forward)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    stacks = [model.encoder, model.decoder]
    layers = [m for stack in stacks for m in stack.modules() if type(m) is nn.Dropout]
    before = {id(m): m.config._attn_implementation for m in (model, *stacks)}
    for layer in layers:
        layer.__class__ = FastDropout
    for part in (model, *stacks):
        if before[id(part)] == "sdpa":
            part.config._attn_implementation_internal = ATTENTION
    try:
        yield model
    finally:
        for layer in layers:
            layer.__class__ = nn.Dropout
        for part in (model, *stacks):
            part.config._attn_implementation_internal = before[id(part)]
