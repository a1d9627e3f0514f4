"""Training steps on a CPU: the same sums as PyTorch's and T5's own, by ways that cost it less.

Measured on two cores with AMX, half of a step's time went to three things that have nothing to do with the network:
random numbers for dropout, drawn one by one; tensors of all logits, several at a time, in float32; and memory that is
given back to the system and asked for again at each step, page by page.
"""

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers.loss.loss_utils import ForMaskedLMLoss
from transformers.models.t5 import modeling_t5

from mmcot.modeling_mmcot import MMCoTForConditionalGeneration

BEFORE_PROJECTIONS = {modeling_t5.T5LayerSelfAttention, modeling_t5.T5LayerCrossAttention, modeling_t5.T5LayerFF}
ROWS = 256  # of logits that are in memory in float32 at a time
KEPT_ROWS = 4096  # of probabilities that are, for the gradients


class CpuStep(TorchFunctionMode):
    """A context for forward and backward pass of a training step, in which dropout, attention with dropout or a learnt
    bias, T5's norms and feed-forward parts, and the loss of a network's labels are computed here.

    A copy of a module that is made or pickled meanwhile is an ordinary one.

    Args:
        model: what is trained; it may have adapters.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.ways: list[tuple[nn.Module, str, Any]] = []  # of modules: what takes the place of a method
        self.changed: list[list[tuple[nn.Module, str, Any]]] = []  # by each time that it was entered
        loss = LabelledLoss()
        for module in model.modules():
            if isinstance(module, MMCoTForConditionalGeneration):
                self.ways.append((module, "labelled_loss", loss))
            elif type(module) in (modeling_t5.T5DenseActDense, modeling_t5.T5DenseGatedActDense):
                self.ways.append((module, "forward", MethodType(feed_forward, module)))
            elif type(module) in BEFORE_PROJECTIONS and type(module.layer_norm) is modeling_t5.T5LayerNorm:
                self.ways.append((module.layer_norm, "forward", MethodType(norm, module.layer_norm)))

    def __enter__(self):
        # no hooks of others, and no loss of theirs
        changed = [way for way in self.ways if way[1] not in vars(way[0]) and _has_usual_loss(way[0])]
        self.changed.append(changed)
        for module, name, way in changed:
            setattr(module, name, way)
            module.__getstate__ = partial(_usual_state, module, name)  # what copies and pickles are made of
        return super().__enter__()

    def __exit__(self, *error):
        for module, name, _ in self.changed.pop():
            delattr(module, name)
            del module.__getstate__
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.dropout:
            return _dropout_as_called(*args, **kwargs)
        if func is F.scaled_dot_product_attention and _is_slow(*args, **kwargs):
            return attention(*args, **kwargs)
        return func(*args, **kwargs)


def _usual_state(module: nn.Module, name: str) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key not in (name, "__getstate__")}


def _has_usual_loss(module: nn.Module) -> bool:
    return not isinstance(module, MMCoTForConditionalGeneration) or module.loss_function is ForMaskedLMLoss


def can_step(model: nn.Module) -> bool:
    """Whether a network may be trained within `CpuStep`: not with gradient checkpointing, which computes parts again
    during the pass backward, where PyTorch knows of no such context: with other values dropped."""
    return not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def feed_forward(self, hidden_states: Tensor) -> Tensor:
    """T5's, which under autocast brings its widest states to float32 before autocast brings them back."""
    if not torch.is_autocast_enabled("cpu"):  # float16 weights have float32 ones among them
        return type(self).forward(self, hidden_states)
    if isinstance(self, modeling_t5.T5DenseActDense):
        inner = self.act(self.wi(hidden_states))
    else:
        inner = self.act(self.wi_0(hidden_states)) * self.wi_1(hidden_states)
    return self.wo(self.dropout(inner))


def norm(self, hidden_states: Tensor) -> Tensor:
    """T5's before projections: in float32, brought to autocast's dtype once and not by each of them."""
    on = torch.is_autocast_enabled("cpu") and hidden_states.dtype == self.weight.dtype == torch.float32
    dtype = torch.get_autocast_dtype("cpu") if on else self.weight.dtype
    return _Norm.apply(hidden_states, self.weight, self.variance_epsilon, dtype)


class _Norm(torch.autograd.Function):
    """`weight * x / sqrt(mean(x²) + eps)`, in a dtype."""

    @staticmethod
    def forward(ctx, state: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = state.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(wide.shape[-1])
        scale = scale.add_(eps).rsqrt_()
        normed = wide * scale
        ctx.save_for_backward(normed, weight, scale)
        ctx.dtype = state.dtype
        return (normed * weight).to(dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        normed, weight, scale = ctx.saved_tensors
        gradient = gradient.to(normed.dtype)
        product = gradient * normed
        of_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
        mean = (product * weight).mean(-1, keepdim=True)
        of_state = torch.addcmul(gradient * weight, normed, mean, value=-1).mul_(scale)
        return of_state.to(ctx.dtype), of_weight, None, None


def dropout(state: Tensor, share: float) -> Tensor:
    """`F.dropout` of a state while training: 16 random bits decide on each value, four from each number drawn.

    Args:
        share: to be set to 0, as near as 16 bits come to it.
    """
    numbers = torch.empty(-(-state.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = numbers.view(torch.int16)[: state.numel()].view(state.shape)
    return state * (bits >= min(round(share * 2**16), 2**16 - 1) - 2**15).to(state.dtype).mul_(1 / (1 - share))


def _dropout_as_called(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or not 0 < p < 1 or inplace or not input.is_floating_point() or input.device.type != "cpu":
        return F.dropout(input, p, training, inplace)
    return dropout(input, p)


def _is_slow(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False) -> bool:
    """Whether PyTorch takes its slow way on a CPU: with dropout, or a bias that is learnt, as T5's is."""
    if is_causal or enable_gqa or query.device.type != "cpu" or query.dtype == torch.float64:
        return False
    if attn_mask is None:
        return dropout_p > 0
    return attn_mask.is_floating_point() and (dropout_p > 0 or attn_mask.requires_grad)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention` of neither causal nor grouped queries, the bias added and softmax taken in
    float32. A query that sees no key gets the mean of all values, not zeros: there is none here."""
    scores = query @ key.transpose(-1, -2)
    if scale != 1.0:
        scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores.float() if attn_mask is None else scores + attn_mask.float()
    shares = scores.softmax(-1).to(value.dtype)
    return (dropout(shares, dropout_p) if dropout_p > 0 else shares) @ value


def _is_plain(head: nn.Module) -> bool:
    """Whether a head is a product with its weights and nothing else."""
    hooks = head._forward_hooks or head._forward_pre_hooks or head._backward_hooks or head._backward_pre_hooks
    return type(head) is nn.Linear and head.bias is None and not hooks and "forward" not in vars(head)


class LabelledLoss:
    """Cross-entropy of states that have a label each, without a tensor of all logits in float32.

    Called as `loss(lm_head, states (labels, d_model), labels (labels,), num_items_in_batch)`: the sum divided by
    `num_items_in_batch`, or the mean where that is None. Keeps the memory of its largest call.
    """

    def __init__(self):
        self.kept: dict[str, Tensor] = {}

    def __call__(self, lm_head: nn.Module, states: Tensor, labels: Tensor, num_items_in_batch=None) -> Tensor:
        if _is_plain(lm_head) and states.device.type == "cpu":
            weight = lm_head.weight
            if torch.is_autocast_enabled("cpu"):
                states, weight = (part.to(torch.get_autocast_dtype("cpu")) for part in (states, weight))
            with torch.autocast("cpu", enabled=False):
                loss = _SummedLoss.apply(states, weight, labels, self)
        else:  # adapters and other heads
            loss = F.cross_entropy(lm_head(states).float(), labels, reduction="sum")
        return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    def memory(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        kept = self.kept.get(name)
        if kept is None or kept.dtype != dtype or kept.shape[1] != columns or len(kept) < rows:
            self.kept[name] = torch.empty(rows, columns, dtype=dtype)
        return self.kept[name][:rows]


class _SummedLoss(torch.autograd.Function):
    """Summed cross-entropy; its gradients are made with it, as long as the probabilities are there."""

    @staticmethod
    def forward(ctx, states: Tensor, weight: Tensor, labels: Tensor, owner: LabelledLoss) -> Tensor:
        with_gradients = [ctx.needs_input_grad[0], ctx.needs_input_grad[1]]
        of_states = torch.empty_like(states) if with_gradients[0] else None
        of_weight = None
        loss = states.new_zeros((), dtype=torch.float32)
        for first in range(0, len(labels), KEPT_ROWS):
            rows = slice(first, first + KEPT_ROWS)
            own, wanted = states[rows], labels[rows, None]
            # the gradient of the logits: each word's probability, less 1 at the label
            probabilities = owner.memory("probabilities", len(own), len(weight), states.dtype)
            for start in range(0, len(own), ROWS):
                part = slice(start, start + ROWS)
                logits = torch.mm(own[part], weight.T, out=probabilities[part])
                whole = owner.memory("whole", len(logits), len(weight), torch.float32)
                torch.log_softmax(logits, -1, dtype=torch.float32, out=whole)
                found = whole.gather(1, wanted[part])
                loss -= found.sum()
                logits.copy_(whole.exp_()).scatter_(1, wanted[part], found.expm1().to(logits.dtype))
            if with_gradients[0]:
                torch.mm(probabilities, weight, out=of_states[rows])
            if with_gradients[1]:
                gradient = probabilities.T @ own
                of_weight = gradient if of_weight is None else of_weight.float().add_(gradient)
        ctx.save_for_backward(of_states, of_weight)
        return loss

    @staticmethod
    def backward(ctx, gradient: Tensor):
        of_states, of_weight = ctx.saved_tensors
        return *(None if own is None else own * gradient for own in (of_states, of_weight)), None, None


# of glibc's mallopt: names, values while memory is kept, and those that it comes to by itself
_KEPT = {"M_TRIM_THRESHOLD": (-1, -1, 64 * 2**20), "M_MMAP_MAX": (-4, 0, 65536), "M_MMAP_THRESHOLD": (-3, None, 2**25)}


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """A context in which memory that is freed stays with the process, where its C library is glibc and the environment
    (`MALLOC_…`, `GLIBC_TUNABLES`) doesn't say otherwise. A page that the system gives takes it microseconds."""
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if told or platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    for number, kept, _ in _KEPT.values():
        if kept is not None:
            library.mallopt(number, kept)
    try:
        yield
    finally:
        for number, _, usual in _KEPT.values():
            library.mallopt(number, usual)
        library.malloc_trim(0)
