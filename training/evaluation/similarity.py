"""Cosine similarity of sentence embeddings, the paper's third measure of a rationale.

The paper uses all-MiniLM-L6-v2. Its folder, any other of the sentence-transformers layout with a transformer, a
pooling and nothing after it but normalisation, or the folder of a plain transformer (then: mean pooling) is read with
transformers alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path

POOLINGS = ("mean", "cls", "max")


def similarities(
    predictions: Sequence[str], references: Sequence[str], model: str | Path, *, batch_size: int = 64
) -> list[float]:
    """Cosine of the embeddings of each pair, in [-1, 1]; every pair counts, also those with an empty text.

    Args:
        model: a model's folder, or its name on the Hub.

    Raises:
        FileNotFoundError: there is no such folder, nor such a model on the Hub within reach.
        ValueError: the model needs more than pooling and normalisation.
    """
    pairs = list(zip(predictions, references, strict=True))
    texts = sorted({text for pair in pairs for text in pair}, key=len)  # each once, batches of equal length
    rows = dict(zip(texts, embed(texts, model, batch_size=batch_size), strict=True))
    return [float(rows[prediction] @ rows[reference]) for prediction, reference in pairs]


def embed(texts: Sequence[str], model: str | Path, *, batch_size: int = 64):
    """Unit-length sentence embeddings, a float32 tensor (texts, width) on the CPU."""
    import torch
    from tqdm import tqdm
    from transformers import AutoModel, AutoTokenizer

    folder = _locate(model)
    transformer, pooling, options = _layout(folder)
    tokenizer = AutoTokenizer.from_pretrained(transformer)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = AutoModel.from_pretrained(transformer, dtype=torch.float32).eval().to(device)
    positions = getattr(network.config, "max_position_embeddings", None) or tokenizer.model_max_length
    max_length = options.get("max_seq_length") or min(positions, tokenizer.model_max_length)
    if options.get("do_lower_case"):
        texts = [text.lower() for text in texts]
    embeddings = []
    starts = range(0, len(texts), batch_size)
    for start in tqdm(starts, desc="sentence embeddings", disable=len(starts) < 10):
        batch = tokenizer(
            list(texts[start : start + batch_size]),
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        ).to(device)
        with torch.inference_mode():
            hidden = network(**batch).last_hidden_state  # (B, T, width)
        embeddings.append(torch.nn.functional.normalize(_pool(hidden, batch["attention_mask"], pooling), dim=-1).cpu())
    return torch.cat(embeddings)


def _pool(hidden, attention_mask, pooling: str):
    """(B, T, width), (B, T) -> (B, width)."""
    if pooling == "cls":
        first = attention_mask.argmax(dim=1)  # not 0 where padding is on the left
        return hidden[range(len(hidden)), first]
    mask = attention_mask.unsqueeze(-1).bool()
    if pooling == "max":
        return hidden.masked_fill(~mask, float("-inf")).amax(dim=1)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _locate(model: str | Path) -> Path:
    folder = Path(model)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(model), allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except Exception as error:
        raise FileNotFoundError(f"{model} is neither a model's folder nor to be had from the Hub ({error})") from error


def _layout(folder: Path) -> tuple[Path, str, dict]:
    """The transformer's folder, the pooling, and the options of a sentence-transformers folder."""
    if not (folder / "modules.json").is_file():
        return folder, "mean", {}
    transformer, pooling = folder, "mean"
    for module in json.loads((folder / "modules.json").read_text()):
        kind, path = module["type"].rsplit(".", 1)[-1], folder / module["path"]
        if kind == "Transformer":
            transformer = path
        elif kind == "Pooling":
            config = json.loads((path / "config.json").read_text())
            prefix = "pooling_mode_"  # older folders have a flag a mode: pooling_mode_mean_tokens
            flags = [name[len(prefix) :] for name, on in config.items() if name.startswith(prefix) and on is True]
            modes = config.get("pooling_mode") or [
                {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}.get(flag, flag) for flag in flags
            ]
            modes = [modes] if isinstance(modes, str) else modes
            if len(modes) != 1 or modes[0] not in POOLINGS:
                raise ValueError(f"{folder}: pooling {'+'.join(modes)} is not supported; {', '.join(POOLINGS)} are")
            pooling = modes[0]
        elif kind != "Normalize":
            raise ValueError(f"{folder}: a model with a {kind} module is not supported")
    options = transformer / "sentence_bert_config.json"
    return transformer, pooling, json.loads(options.read_text()) if options.is_file() else {}
