"""A plain T5 in onnxruntime, for `mmcot benchmark peers`: encoder, keys and values of the source, one decoder step.

Float32 as exported, int8 by onnxruntime's own dynamic quantisation. Caches stay in the runtime between steps.
"""

import logging
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

PRECISIONS = ("float32", "int8")
OPSET = 17


class _Encoder(nn.Module):
    """ids, mask (rows, text) → what each decoder layer attends to: keys and values (rows, heads, text, width)."""

    def __init__(self, model):
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder
        self.heads = model.config.num_heads

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        hidden = self.encoder(input_ids=ids, attention_mask=mask, return_dict=True)[0]
        found = []
        for block in self.decoder.block:
            over = block.layer[1].EncDecAttention
            found += [_split(linear(hidden), self.heads) for linear in (over.k, over.v)]
        return tuple(found)


class _Step(nn.Module):
    """ids (rows, count), mask (rows, text), own keys and values (rows, heads, past, width) and those of the source, a
    layer each → the most probable next token (rows,), own keys and values with the new ones."""

    def __init__(self, model, longest: int):
        super().__init__()
        self.decoder, self.lm_head = model.decoder, model.lm_head
        self.heads, self.scale = model.config.num_heads, model.config.d_model**-0.5
        attention = model.decoder.block[0].layer[0].SelfAttention
        with torch.no_grad():  # (heads, query, key)
            self.register_buffer("bias", attention.compute_bias(longest, longest)[0])

    def forward(self, ids: Tensor, mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        state = self.decoder.embed_tokens(ids)
        own, cross = past[: len(past) // 2], past[len(past) // 2 :]
        begin, count = own[0].shape[2], ids.shape[1]
        bias = self.bias[:, begin : begin + count, : begin + count][None]
        back = torch.arange(begin + count)[None] - torch.arange(begin, begin + count)[:, None]
        bias = bias + (back > 0).float() * torch.finfo(torch.float32).min
        padding = (1.0 - mask[:, None, None].float()) * torch.finfo(torch.float32).min
        present = []
        for number, block in enumerate(self.decoder.block):
            layer = block.layer[0]
            normed, attention = layer.layer_norm(state), layer.SelfAttention
            key, value = (
                torch.cat([before, _split(linear(normed), self.heads)], dim=2)
                for before, linear in zip(own[2 * number : 2 * number + 2], (attention.k, attention.v), strict=True)
            )
            present += [key, value]
            state = state + attention.o(_attend(_split(attention.q(normed), self.heads), key, value, bias))
            layer = block.layer[1]
            query = _split(layer.EncDecAttention.q(layer.layer_norm(state)), self.heads)
            found = _attend(query, *cross[2 * number : 2 * number + 2], padding)
            state = state + layer.EncDecAttention.o(found)
            state = block.layer[2](state)
        state = self.decoder.final_layer_norm(state[:, -1]) * self.scale
        return self.lm_head(state).argmax(-1), *present


def _split(state: Tensor, heads: int) -> Tensor:
    return state.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.transpose(-1, -2) + mask
    return (F.softmax(scores, dim=-1) @ value).transpose(1, 2).flatten(2)


def export(model, folder: Path, longest: int) -> None:
    """Writes a `T5ForConditionalGeneration` to `encoder-<precision>.onnx` and `step-<precision>.onnx` in a folder.

    Args:
        longest: tokens that are written at most.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    layers, heads, width = model.config.num_decoder_layers, model.config.num_heads, model.config.d_kv
    ids, mask = torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    own = [torch.zeros(2, heads, 3, width)] * (2 * layers)
    cross = [torch.zeros(2, heads, 5, width)] * (2 * layers)
    names = _names(layers)
    sizes = {"ids": {0: "rows", 1: "count"}, "mask": {0: "rows", 1: "text"}, "next": {0: "rows"}}
    for place, length in (("own", "past"), ("cross", "text"), ("present", "written")):
        sizes |= {name: {0: "rows", 2: length} for name in names[place]}
    parts = {
        "encoder": (_Encoder(model), (ids, mask), ["ids", "mask"], names["cross"]),
        "step": (
            _Step(model, longest),
            (ids[:, :1], mask, *own, *cross),
            ["ids", "mask", *names["own"], *names["cross"]],
            ["next", *names["present"]],
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger()  # onnxruntime recommends a preparation there, each time
    with torch.no_grad(), warnings.catch_warnings(), _level(logger, logging.ERROR):
        warnings.simplefilter("ignore")
        for part, (network, example, inputs, outputs) in parts.items():
            torch.onnx.export(
                network.eval(),
                example,
                folder / f"{part}-float32.onnx",
                input_names=inputs,
                output_names=outputs,
                dynamic_axes={name: sizes[name] for name in (*inputs, *outputs)},
                opset_version=OPSET,
                dynamo=False,  # torch's newer exporter needs a package more
            )
            source, target = (str(folder / f"{part}-{precision}.onnx") for precision in PRECISIONS)
            quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=True)


@contextmanager
def _level(logger: logging.Logger, level: int):
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def _names(layers: int) -> dict[str, list[str]]:
    kinds = [f"{number}.{kind}" for number in range(layers) for kind in ("key", "value")]
    return {place: [f"{place}.{kind}" for kind in kinds] for place in ("own", "cross", "present")}


class OnnxNetwork:
    """One exported T5.

    Args:
        folder: of `export`.
        precision: one of `PRECISIONS`.
        threads: of an operation.
    """

    def __init__(self, folder: Path, precision: str, config, threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self.encoder, self.step = (
            onnxruntime.InferenceSession(
                str(folder / f"{part}-{precision}.onnx"), options, providers=["CPUExecutionProvider"]
            )
            for part in ("encoder", "step")
        )
        self.value = onnxruntime.OrtValue.ortvalue_from_numpy
        self.names, self.start = _names(config.num_decoder_layers), config.decoder_start_token_id
        self.empty = (config.num_heads, 0, config.d_kv)

    def generate(self, ids: np.ndarray, mask: np.ndarray, prefix: list[int], count: int) -> np.ndarray:
        """`count` tokens (rows, count) behind the start token and `prefix`."""
        rows, names = len(ids), self.names
        given = {"ids": self.value(ids), "mask": self.value(mask)}
        cross = dict(zip(names["cross"], self.encoder.run_with_ort_values(names["cross"], given), strict=True))
        empty = self.value(np.zeros((rows, *self.empty), dtype=np.float32))
        own = [empty] * len(names["own"])
        tokens, written = np.tile(np.array([[self.start, *prefix]]), (rows, 1)), []
        for _ in range(count):
            given = {"ids": self.value(tokens), "mask": self.value(mask), **cross}
            given |= dict(zip(names["own"], own, strict=True))
            found, *own = self.step.run_with_ort_values(["next", *names["present"]], given)
            tokens = found.numpy()[:, None]
            written.append(tokens)
        return np.concatenate(written, axis=1)
