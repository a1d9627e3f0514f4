"""Write a two-stage repository as ONNX graphs: backbone, and an encoder with fusion and a decoder for each stage.

    python examples/onnx_export.py runs/quiz/hub onnx/quiz          # --int8 for dynamic quantisation
    python examples/onnx_answer.py onnx/quiz "What colour is it?" red blue --image quiz/images/1.png

Needs `pip install onnx onnxscript onnxruntime`. Batch, text length and number of patches may vary. Texts that are too
long aren't shortened by these graphs: keep questions within `max_source_length`.
"""

import argparse
import json
import logging
from pathlib import Path

import torch
from torch.export import Dim
from torch_export import Decoder, Encoder
from transformers import AutoModel, AutoProcessor

OPTIONS = ("option_prefix_ids", "option_letter_ids", "answer_suffix_ids")


class Vision(torch.nn.Module):
    """Patch features of pictures that the image processor has brought to one size."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model.get_image_features(pixel_values).pooler_output


def export(model, folder: Path, pixels: tuple[int, ...]) -> None:
    """Writes the graphs of an `MMCoTModel`; `pixels` is the shape of one preprocessed picture."""
    batch, length, target, patches = (Dim(name, min=1, max=4096) for name in ("batch", "length", "target", "patches"))
    text = {"input_ids": torch.ones(2, 7, dtype=torch.long), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    width, hidden = model.rationale.config.image_feature_size, torch.randn(2, 7, model.rationale.config.d_model)
    images = {"image_features": torch.randn(2, 5, width), "image_attention_mask": torch.ones(2, 5, dtype=torch.bool)}
    decoder = {"decoder_input_ids": torch.ones(2, 3, dtype=torch.long), "encoder_hidden_states": hidden}
    decoder |= {"attention_mask": text["attention_mask"]}
    axes = {"attention_mask": {0: batch, 1: length}, "encoder_hidden_states": {0: batch, 1: length}}
    axes |= {"input_ids": {0: batch, 1: length}, "decoder_input_ids": {0: batch, 1: target}}
    axes |= {name: {0: batch, 1: patches} for name in images} | {"pixel_values": {0: batch}}
    parts = {"vision": (Vision(model), {"pixel_values": torch.randn(2, *pixels)}, "image_features")}
    for stage in ("rationale", "answer"):
        network = model.get_stage(stage)
        parts[f"{stage}_encoder"] = (Encoder(network), {**text, **images}, "encoder_hidden_states")
        parts[f"{stage}_decoder"] = (Decoder(network), decoder, "logits")
    folder.mkdir(parents=True, exist_ok=True)
    for name, (part, inputs, output) in parts.items():
        dynamic = {key: axes[key] for key in inputs}
        file = folder / f"{name}.onnx"
        with torch.no_grad():
            exported = torch.export.export(part.eval(), (), inputs, dynamic_shapes=dynamic)
        torch.onnx.export(exported, (), file, kwargs=inputs, output_names=[output], external_data=False, verbose=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository")
    parser.add_argument("output", type=Path)
    parser.add_argument("--int8", action="store_true", help="quantise the weights of all text graphs to eight bits")
    args = parser.parse_args()
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    plain = {"attn_implementation": "eager"}  # the graph of fused attention can't be decomposed
    model = AutoModel.from_pretrained(args.repository, trust_remote_code=True, **plain).eval()
    processor = AutoProcessor.from_pretrained(args.repository, trust_remote_code=True)
    if not hasattr(model, "rationale") or processor.image_processor is None:
        parser.error(f"{args.repository} has one stage or no backbone; this exports two stages that see pictures")
    size = processor.image_processor.size
    export(model, args.output, (3, size["height"], size["width"]))
    processor.save_pretrained(args.output)
    options = {name: getattr(model.config, name) for name in OPTIONS}
    options |= {"max_new_tokens": model.generation_config.max_new_tokens}
    names = ("decoder_start_token_id", "eos_token_id", "image_feature_size")
    options |= {name: getattr(model.rationale.config, name) for name in names}
    (args.output / "options.json").write_text(json.dumps(options))
    if args.int8:
        from onnxruntime.quantization import quantize_dynamic

        for file in args.output.glob("*coder.onnx"):
            quantize_dynamic(file, file)


if __name__ == "__main__":
    main()
