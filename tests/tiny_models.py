"""Tiny networks and inputs that the model tests share."""

import torch
from transformers import ViTConfig

from mmcot import MMCoTConfig, MMCoTForConditionalGeneration

VOCAB = 64
WIDTH = 12  # of an image feature
IMAGE = 8  # pixels a side
T5 = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


def vision_config(**fields) -> ViTConfig:
    """Four patches and a class token of width 16, from 8 x 8 pixels."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTConfig(**sizes, image_size=IMAGE, patch_size=4, **fields)


def tiny_config(**fields) -> MMCoTConfig:
    """With image features from outside, unless a backbone is given."""
    if fields.get("vision_config") is None:
        fields.setdefault("image_feature_size", WIDTH)
    return MMCoTConfig(**(T5 | fields))


def tiny_model(seed: int = 0, **fields) -> MMCoTForConditionalGeneration:
    torch.manual_seed(seed)
    return MMCoTForConditionalGeneration(tiny_config(**fields)).eval()


def text_inputs(batch: int = 3, length: int = 7, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random text, right-padded raggedly: row i has i ids less than the first."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCAB, (batch, length), generator=generator)
    mask = torch.arange(length) < length - torch.arange(batch)[:, None]
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}


def image_inputs(batch: int = 3, patches: int = 5, seed: int = 2) -> dict[str, torch.Tensor]:
    """Random features: all patches in row 0, fewer in row 1, none in the last."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, patches, dtype=torch.bool)
    mask[1:, patches // 2 :] = False
    mask[-1] = False
    features = torch.randn(batch, patches, WIDTH, generator=generator)
    return {"image_features": features, "image_attention_mask": mask}


def labels(batch: int = 3, length: int = 6, seed: int = 3) -> torch.Tensor:
    """Random targets whose padding is -100."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCAB, (batch, length), generator=generator)
    return ids.masked_fill(torch.arange(length) >= length - torch.arange(batch)[:, None], -100)
