"""Small random models of two stages and of one, whose outputs differ from problem to problem."""

import torch

from mmcot import MMCoTConfig, MMCoTForConditionalGeneration, MMCoTProcessor
from mmcot.vision_mmcot import build_vision

SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
VISION = {
    "model_type": "vit",
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 64,
    "patch_size": 16,
}


def make_stage(processor, seed, **settings):
    torch.manual_seed(seed)
    defaults = {"vision_config": VISION, "max_source_length": 200, "vocab_size": len(processor.tokenizer)}
    model = MMCoTForConditionalGeneration(MMCoTConfig(**{**SIZES, **defaults, **settings}))
    with torch.no_grad():  # an untrained decoder repeats one token; larger weights make outputs that differ
        for name, weight in model.named_parameters():
            if "vision" not in name and weight.dim() > 1:
                weight.mul_(2.0)
    if model.encoder.vision is not None:  # both stages read one backbone
        torch.manual_seed(99)
        model.encoder.vision = build_vision(model.config.vision_config)
        model.train()
    return model.eval()


def one_stage(processor, answer_format, **settings):
    """A one-stage model and its processor."""
    own = MMCoTProcessor(
        processor.image_processor,
        processor.tokenizer,
        rationale_format=None,
        answer_format=answer_format,
        max_source_length=200,
    )
    model = make_stage(processor, 3, prompt_format=answer_format, **settings)
    model.processor = own
    return model, own
