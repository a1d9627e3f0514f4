"""A model's fingerprint: which weights and settings answered, whatever the folder was called."""

import hashlib
import json
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

# settings of a network that the weights' shapes don't tell
SETTINGS = ("num_heads", "feed_forward_proj", "layer_norm_epsilon", "relative_attention_max_distance")
SETTINGS += ("fusion_num_heads", "fusion_gate", "vision_feature", "max_source_length", "source_truncation")
PIECE = 2**18
SAMPLED = 4096  # values of a tensor that are hashed one by one, beside the sum of all


def model_fingerprint(model) -> str:
    """32 hexadecimal digits that change with any weight, and with the configuration of the network.

    The bits of each tensor are added up, which reads memory once and doesn't depend on threads or device; evenly
    spaced values are hashed as they are.
    """
    configs = [model.config, *(getattr(model.config, f"{stage}_config", None) for stage in ("rationale", "answer"))]
    settings = [[str(getattr(config, name, None)) for name in SETTINGS] for config in configs]
    digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=16)
    parts = (_plain_parts(name, weight) for name, weight in sorted(model.state_dict().items()))
    for name, tensor in chain.from_iterable(parts):
        if tensor.is_meta:  # offloaded: not here to be read
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            continue
        bits = tensor.detach().contiguous().flatten().view(torch.uint8)
        size = next(size for size in (4, 2, 1) if len(bits) % size == 0)
        values = bits.view({4: torch.int32, 2: torch.int16, 1: torch.uint8}[size])
        sample = values[:: max(1, len(values) // SAMPLED)].cpu()
        # piece by piece in a processor's caches: sooner than one sum, which widens number by number
        pieces = values.split(PIECE) if values.device.type == "cpu" else (values,)
        total = sum(int(piece.long().sum()) for piece in pieces)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {total}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def _plain_parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A weight by its name; of one that is quantised (torchao's), the tensors that it is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield from _plain_parts(f"{name}.{part}", getattr(tensor, part))
