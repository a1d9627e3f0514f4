"""What evaluation while training measures: ROUGE-L of rationales, accuracy of answers."""

from collections.abc import Callable

import numpy as np


def metrics_of(stage: str, processor) -> Callable[..., dict[str, float]]:
    """`compute_metrics` of a stage's Trainer; predictions are token ids, generated or forced.

    Rationales: `rougeL` in %, of the samples whose target has more than its label ("Solution:"). Answers: `accuracy`
    in %, where an answer that can't be parsed counts as wrong.
    """

    def texts(ids) -> list[str]:
        # gathered batches are padded with -100, which no tokenizer decodes
        ids = np.where(np.asarray(ids) < 0, processor.tokenizer.pad_token_id, ids)
        return processor.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def rouge(prediction) -> dict[str, float]:
        from mmcot.training.evaluation.rationales import rouge_l

        pairs = zip(texts(prediction.predictions), texts(prediction.label_ids), strict=True)
        scores = [rouge_l(text, label) for text, label in pairs if has_rationale(label)]
        return {"rougeL": 100 * sum(scores) / len(scores)} if scores else {}

    def accuracy(prediction) -> dict[str, float]:
        from mmcot.processing import parse_answer

        pairs = zip(texts(prediction.predictions), texts(prediction.label_ids), strict=True)
        right = [
            parse_answer(text, 26) is not None and parse_answer(text, 26) == parse_answer(label, 26)
            for text, label in pairs
        ]
        return {"accuracy": 100 * sum(right) / len(right)}

    return rouge if stage == "rationale" else accuracy


def has_rationale(target: str) -> bool:
    """Whether a target says more than "Solution:", which is all that a problem without a solution leaves."""
    return bool(target.replace("Solution:", "").strip(" ."))


def most_probable(logits, labels):
    """Logits become the ids that the Trainer gathers: the most probable at each position that has a label."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    return logits.argmax(-1).masked_fill(labels == -100, -100)
