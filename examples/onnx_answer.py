"""Answer a question with onnxruntime, from the graphs that `onnx_export.py` wrote; no network of torch is loaded.

    python examples/onnx_answer.py onnx/quiz "What colour is the circle?" red blue green --image quiz/images/1.png

Rationale greedily, options by the answer stage's probabilities of their letters: what `model.generate` gives.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from transformers import AutoProcessor

GRAPHS = ("vision", "rationale_encoder", "rationale_decoder", "answer_encoder", "answer_decoder")


class OnnxModel:
    """The two stages of a folder; one question at a time."""

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        self.processor = AutoProcessor.from_pretrained(str(folder), trust_remote_code=True)
        self.options = json.loads((folder / "options.json").read_text())
        self.graphs = {name: InferenceSession(folder / f"{name}.onnx") for name in GRAPHS}

    def __call__(self, problem: dict) -> dict:
        """As the pipeline: rationale, answer, answer_text and the scores of the options."""
        options, inputs = self.options, {name: value.numpy() for name, value in self.processor([problem]).items()}
        features, mask = self.features(inputs)
        ids = self.rationale_ids(inputs["input_ids"], features, mask)
        source = np.concatenate([inputs["answer_input_ids"][0], ids, options["answer_suffix_ids"]])[None]
        hidden, text_mask = self.encode("answer", source, features, mask)
        start = [options["decoder_start_token_id"], *options["option_prefix_ids"]]
        logits = self.decode("answer", start, hidden, text_mask)[options["option_letter_ids"]][
            : len(problem["choices"])
        ]
        log_probs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        output = {"rationale_ids": [ids.tolist()], "option_log_probs": log_probs[None]}
        return self.processor.post_process(output, [problem])[0]

    def features(self, inputs: dict) -> tuple[np.ndarray, np.ndarray]:
        """Patch features (1, patches, width) and their mask; a question without a picture has one patch of zeros."""
        if "pixel_values" not in inputs or not inputs["image_attention_mask"].any():
            return np.zeros((1, 1, self.options["image_feature_size"]), np.float32), np.ones((1, 1), bool)
        pixels = inputs["pixel_values"].reshape(-1, *inputs["pixel_values"].shape[-3:])
        features = self.graphs["vision"].run(None, {"pixel_values": pixels})[0]
        features = features.reshape(1, -1, features.shape[-1])  # the patches of several pictures, one after the other
        return features, np.ones(features.shape[:2], bool)

    def encode(self, stage: str, ids: np.ndarray, features, mask):
        text_mask = np.ones_like(ids)
        feeds = {"input_ids": ids, "attention_mask": text_mask, "image_features": features}
        return self.graphs[f"{stage}_encoder"].run(None, {**feeds, "image_attention_mask": mask})[0], text_mask

    def decode(self, stage: str, ids, hidden, text_mask) -> np.ndarray:
        """Logits (vocabulary) of the token after `ids`."""
        feeds = {"decoder_input_ids": np.array([ids]), "encoder_hidden_states": hidden, "attention_mask": text_mask}
        return self.graphs[f"{stage}_decoder"].run(None, feeds)[0][0, -1]

    def rationale_ids(self, source, features, mask) -> np.ndarray:
        hidden, text_mask = self.encode("rationale", source, features, mask)
        ids, end = [self.options["decoder_start_token_id"]], self.options["eos_token_id"]
        while len(ids) <= self.options["max_new_tokens"] and ids[-1] != end:
            ids.append(int(self.decode("rationale", ids, hidden, text_mask).argmax()))
        return np.array([token for token in ids[1:] if token not in (ids[0], end)], dtype=np.int64)  # text alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("question")
    parser.add_argument("choices", nargs="+")
    parser.add_argument("--context", default="")
    parser.add_argument("--image")
    args = parser.parse_args()
    problem = {name: getattr(args, name) for name in ("question", "choices", "context", "image")}
    print(json.dumps(OnnxModel(args.folder)(problem), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
