"""Export a stage's encoder with fusion, and its decoder, by `torch.export`: graphs without Python.

    python examples/torch_export.py runs/quiz/hub exported/quiz --stage rationale

Batch, text length and number of patches stay free. `torch.export.load("encoder.pt2").module()` loads one; the way from
question to answer by such graphs is in onnx_answer.py.
"""

import argparse
from pathlib import Path

import torch
from torch.export import Dim
from transformers import AutoModel


class Encoder(torch.nn.Module):
    def __init__(self, stage):
        super().__init__()
        self.encoder = stage.get_encoder()

    def forward(self, input_ids, attention_mask, image_features, image_attention_mask):
        return self.encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_features=image_features,
            image_attention_mask=image_attention_mask,
            return_dict=True,
        ).last_hidden_state


class Decoder(torch.nn.Module):
    def __init__(self, stage):
        super().__init__()
        self.stage = stage

    def forward(self, decoder_input_ids, encoder_hidden_states, attention_mask):
        return self.stage(
            decoder_input_ids=decoder_input_ids,
            encoder_outputs=(encoder_hidden_states,),
            attention_mask=attention_mask,
            use_cache=False,
            return_dict=True,
        ).logits


def export(stage) -> dict[str, torch.export.ExportedProgram]:
    """`encoder` and `decoder` of an `MMCoTForConditionalGeneration` whose image features are given from outside."""
    batch, length, target, patches = (Dim(name, min=1, max=4096) for name in ("batch", "length", "target", "patches"))
    ids, width = torch.ones(2, 7, dtype=torch.long), stage.config.image_feature_size
    encoder = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "image_features": torch.randn(2, 5, width)}
    encoder["image_attention_mask"] = torch.ones(2, 5, dtype=torch.bool)
    decoder = {
        "decoder_input_ids": torch.ones(2, 3, dtype=torch.long),
        "encoder_hidden_states": torch.randn(2, 7, stage.config.d_model),
    }
    decoder["attention_mask"] = torch.ones_like(ids)
    of_text, of_image, of_target = {0: batch, 1: length}, {0: batch, 1: patches}, {0: batch, 1: target}
    axes = {"input_ids": of_text, "attention_mask": of_text, "encoder_hidden_states": of_text}
    axes |= {"image_features": of_image, "image_attention_mask": of_image, "decoder_input_ids": of_target}

    def exported(part, inputs):
        dynamic = {name: axes[name] for name in inputs}
        with torch.no_grad():
            return torch.export.export(part.eval(), (), inputs, dynamic_shapes=dynamic)

    return {"encoder": exported(Encoder(stage), encoder), "decoder": exported(Decoder(stage), decoder)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository")
    parser.add_argument("output", type=Path)
    parser.add_argument("--stage", choices=("rationale", "answer"), default="rationale")
    args = parser.parse_args()
    model = AutoModel.from_pretrained(args.repository, trust_remote_code=True).eval()
    if not hasattr(model, "rationale") or not model.rationale.config.has_fusion:
        parser.error(f"{args.repository} has one stage or reads text alone; this exports two that see pictures")
    args.output.mkdir(parents=True, exist_ok=True)
    for name, program in export(model.get_stage(args.stage)).items():
        torch.export.save(program, args.output / f"{name}.pt2")
        print(args.output / f"{name}.pt2")


if __name__ == "__main__":
    main()
