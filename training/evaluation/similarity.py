"""Cosine similarity of sentence embeddings, the paper's third measure of a rationale (with all-MiniLM-L6-v2)."""

from collections.abc import Sequence
from pathlib import Path

from mmcot.training.common import MissingFileError, UserError


def similarities(
    predictions: Sequence[str], references: Sequence[str], model: str | Path, *, batch_size: int = 64
) -> list[float]:
    """Cosine of the embeddings of each pair, in [-1, 1]; every pair counts, also those with an empty text.

    Args:
        model: a sentence-transformers model: its folder, or its name on the Hub.

    Raises:
        MissingFileError: there is no such folder, nor such a model on the Hub within reach.
        UserError: sentence-transformers isn't installed.
    """
    pairs = list(zip(predictions, references, strict=True))
    texts = sorted({text for pair in pairs for text in pair}, key=len)  # each once
    rows = dict(zip(texts, embed(texts, model, batch_size=batch_size), strict=True))
    return [float(rows[prediction] @ rows[reference]) for prediction, reference in pairs]


def embed(texts: Sequence[str], model: str | Path, *, batch_size: int = 64):
    """Unit-length sentence embeddings, a float32 tensor (texts, width) on the CPU."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError("sentence embeddings need an extra: pip install 'mmcot[similarity]'") from None
    try:
        encoder = SentenceTransformer(str(model), trust_remote_code=False)
    except Exception as error:  # no network, no such model, no such folder: one line for all
        reason = str(error).strip().partition("\n")[0]
        raise MissingFileError(f"{model}: no sentence-transformers model is to be had from here ({reason})") from error
    encoder.eval()
    embeddings = encoder.encode(
        list(texts), batch_size=batch_size, normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False
    )
    return embeddings.float().cpu().clone()  # made in inference mode, and PromptPG learns from it
