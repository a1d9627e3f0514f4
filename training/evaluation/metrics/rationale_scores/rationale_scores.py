"""ROUGE-L, BLEU and sentence similarity of rationales, standard and as the Multimodal-CoT paper computes them."""

import datasets
import evaluate

from mmcot.training.evaluation.rationales import rationale_scores
from mmcot.training.evaluation.similarity import similarities

_DESCRIPTION = """
Scores in % of written rationales against reference texts: `rougeL` (rouge_score, with stemming), `rougeL_original`
(the package `rouge` 1.0.1 with its arguments swapped, as in the paper's evaluation), `bleu1` and `bleu4` (unsmoothed,
split at white space and full stops, averaged over pairs) and, if a model is given, `similarity` (cosine of sentence
embeddings).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: the written rationales.
    references: the reference texts, one each; a pair with an empty reference counts for `similarity` only.
    similarity_model: folder of a sentence-transformers model.

Returns:
    `rougeL`, `rougeL_original`, `bleu1`, `bleu4` and, with a model, `similarity`.

Example:
    >>> metric = evaluate.load(metric_path("rationale_scores"))
    >>> metric.compute(predictions=["Water freezes at 0 C."], references=["Water freezes at 0 C."])["bleu4"]
    100.0
"""

_CITATION = """
@article{zhang2023multimodal,
  title={Multimodal Chain-of-Thought Reasoning in Language Models},
  author={Zhang, Zhuosheng and Zhang, Aston and Li, Mu and Zhao, Hai and Karypis, George and Smola, Alex},
  journal={arXiv preprint arXiv:2302.00923},
  year={2023}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class RationaleScores(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, similarity_model=None):
        scores = rationale_scores(predictions, references)
        if similarity_model is not None:
            scores["similarity"] = sum(similarities(predictions, references, similarity_model)) / len(predictions)
        return {name: 100 * score for name, score in scores.items()}
