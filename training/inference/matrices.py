"""Matrices that a state is multiplied with while answering: plain tensors, or int8 with a scale for each row."""

import functools
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcot.training.inference.precision import cpu_flags, has_native_bf16

FEW_ROWS = 256  # up to here a CPU multiplies faster with the weights on the left


INT8_ENGINES = ("fbgemm", "qnnpack", "onednn")  # of x86; of Arm; of x86, slower on few rows


def int8_engine() -> str | None:
    """Which of `INT8_ENGINES` multiplies here; None if none does."""
    engines = set(torch.backends.quantized.supported_engines)
    if not hasattr(torch, "quantize_per_channel"):
        engines &= {"onednn"}
    return next((name for name in INT8_ENGINES if name in engines), None)


@functools.lru_cache(maxsize=1)
def _activation_bits() -> int:
    """Without VNNI a processor adds two products in 16 bits, which overflow unless an activation has 7 bits."""
    return 8 if "avx512_vnni" in cpu_flags() else 7


def _activation_range(nonnegative: bool) -> tuple[int, int]:
    """The largest step from zero, and where zero lies."""
    bits = _activation_bits()
    return (2**bits - 1, 0) if nonnegative else (2 ** (bits - 1) - 1, 2 ** (bits - 1))


class Int8Matrix:
    """A linear layer's weights in int8, a scale for each output; states are brought to int8 row by row.

    A row's result doesn't depend on the others beside it, but for a rounding where it is alone, or with QNNPACK.

    Args:
        weight (out, in): float.
        bias (out,): added in float, or None.
        engine: PyTorch's kernels, one of `INT8_ENGINES`; default: the first that is there.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, engine: str | None = None):
        self.engine = engine or int8_engine()
        self.bias = None if bias is None else bias.detach().float()
        weight = weight.detach()
        weight = weight.float() if type(weight) is Tensor else weight.dequantize()  # torchao's are tensors of tensors
        self.scales = (weight.abs().amax(1) / 127).clamp(min=1e-12)
        if self.engine == "onednn":
            whole = (weight / self.scales[:, None]).round().to(torch.int8)
            self.packed = torch.ops.onednn.qlinear_prepack(whole, None)
            self.zeros = torch.zeros(len(weight), dtype=torch.int32)
            return
        zeros = torch.zeros(len(weight), dtype=torch.long)
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = self.engine
        try:
            with warnings.catch_warnings():  # tensors that know they are quantised will go: then oneDNN takes over
                warnings.filterwarnings("ignore", message=".*quantize_per_channel.*")
                whole = torch.quantize_per_channel(weight, self.scales.double(), zeros, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(whole, None)
        finally:
            torch.backends.quantized.engine = before

    def __call__(self, state: Tensor, nonnegative: bool = False) -> Tensor:
        """State (…, in) times the matrix: (…, out), float32.

        Args:
            nonnegative: the state has no values below 0 (behind ReLU), and keeps one bit more.
        """
        if state.dtype != torch.float32:
            state = state.float()
        if state.numel() == state.shape[-1] and self.engine == "fbgemm":
            return self._of_one(state, nonnegative)
        largest = (state if nonnegative else state.abs()).amax(-1, keepdim=True).clamp_(min=1e-12)  # of each row
        top, zero = _activation_range(nonnegative)
        if self.engine == "fbgemm":
            multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
            found = multiply(state / largest, 1 / top, zero, self.packed)
        elif self.engine == "onednn":
            whole = (state * (top / largest)).round_().add_(zero).to(torch.uint8)
            of_output = (None, 1.0, 0, torch.float32, "none", [], "")  # no bias; scale, zero, dtype; nothing behind
            multiply = torch.ops.onednn.qlinear_pointwise
            found = multiply(whole, 1 / top, zero, self.packed, self.scales, self.zeros, *of_output)
        else:
            found = torch.ops.quantized.linear_dynamic(state / largest, self.packed)
        found = found.mul_(largest)
        return found if self.bias is None else found.add_(self.bias)

    def _of_one(self, state: Tensor, nonnegative: bool) -> Tensor:
        """The same for one row, whose scale is a number, in fewer calls."""
        top, zero = _activation_range(nonnegative)
        largest = max(torch.linalg.vector_norm(state, float("inf")).item(), 1e-12)
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        found = multiply(state, largest / top, zero, self.packed)
        return found if self.bias is None else found.add_(self.bias)


class PackedMatrix:
    """A linear layer's weights in the blocks that oneDNN's products on x86 read. Otherwise they are brought into them
    at each product, which for one row in bfloat16 takes more than half of its time.

    Args:
        weight (out, in): float32 or bfloat16; the copy doesn't change with it.
    """

    def __init__(self, weight: Tensor):
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACKED_FOR_ROWS)

    def __call__(self, state: Tensor, nonnegative: bool = False) -> Tensor:
        """State (…, in) times the matrix: (…, out), in the weights' dtype."""
        return torch.ops.mkldnn._linear_pointwise.default(state, self.packed, None, "none", [], "")


PACKED_FOR_ROWS = 32  # the blocks for so many are as good for one and for thousands; those for one are not
LARGEST_PACKED = 500_000_000  # parameters of a network, each stage's own, of which float32 copies are made beside it


def packs(model, dtype: torch.dtype, asked: bool | None = None) -> bool:
    """Whether a network's matrices are packed: where oneDNN reads them so, and a copy is made anyway, since the dtype
    isn't the weights', or is worth it.

    Args:
        dtype: to compute in.
        asked: whether there is enough to do that a copy is worth it; default: only where one is made anyway.
    """
    weight = model.lm_head.weight
    if weight.device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return False
    if "fbgemm" not in torch.backends.quantized.supported_engines or not torch.backends.mkldnn.is_available():
        return False  # Arm's are laid out otherwise
    if dtype == torch.bfloat16 and not has_native_bf16("cpu"):
        return False
    if asked is None or dtype != weight.dtype:
        return dtype != weight.dtype
    return asked and model.num_parameters() <= LARGEST_PACKED


Matrix = Tensor | Int8Matrix | PackedMatrix


def multiply(state: Tensor, matrix: Matrix, nonnegative: bool = False) -> Tensor:
    """State (…, in) times a matrix (out, in): (…, out)."""
    if not isinstance(matrix, Tensor):
        return matrix(state, nonnegative)
    if state.device.type == "cpu" and state.dim() == 2 and len(state) <= FEW_ROWS:
        if len(state) == 1 and state.dtype == torch.bfloat16:
            return torch.mv(matrix, state[0])[None]
        # for a handful of rows it also matters how they lie
        return (matrix @ (state.contiguous() if len(state) <= 16 else state).T).T
    return F.linear(state, matrix)


def read_matrices(weights: list[Tensor], dtype: torch.dtype, packed: bool = False) -> tuple[Matrix, ...]:
    """Weights of linear layers that read the same state, in a dtype; joined to one where that is faster.

    On a CPU they are the model's own, without a copy, unless the dtype differs or they are packed.
    """
    weights = [weight.detach() for weight in weights]
    if dtype == torch.int8:
        return (Int8Matrix(torch.cat(weights)),)
    weights = [weight.to(dtype) for weight in weights]
    if packed:
        return (PackedMatrix(torch.cat(weights)),)
    if len(weights) == 1 or weights[0].device.type == "cpu":
        return tuple(weights)
    return (torch.cat(weights),)


def multiply_each(state: Tensor, matrices: tuple[Matrix, ...], parts: int = 1, nonnegative: bool = False):
    """The state (…, in) times each of `parts` matrices, which may be joined: (…, out) each."""
    if len(matrices) < parts:
        return multiply(state, matrices[0], nonnegative).chunk(parts, dim=-1)
    return tuple(multiply(state, matrix, nonnegative) for matrix in matrices)


class Int8Linear(nn.Module):
    """In place of an `nn.Linear`, where other code than ours runs the network."""

    weight = None  # T5 looks at its type

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.matrix = Int8Matrix(linear.weight, linear.bias)

    def forward(self, state: Tensor) -> Tensor:
        return self.matrix(state).to(state.dtype)
