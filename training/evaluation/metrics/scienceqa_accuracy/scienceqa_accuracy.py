"""Accuracy in the nine columns of ScienceQA's table, with 95 % intervals."""

import datasets
import evaluate

from mmcot.training.evaluation.accuracy import accuracy_table

_DESCRIPTION = """
Accuracy (%) on multiple-choice science questions: by subject (NAT, SOC, LAN), by context (TXT, IMG, NO), by grade
(G1-6, G7-12) and on all (Avg), with n and Wilson's 95 % interval. A column whose fields are missing is left out.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: index of the chosen option a question; -1 for an answer that could not be parsed (it is wrong).
    references: index of the right option a question.
    problems: optional, one dict a question in the same order, with what is known of `subject` ("natural science",
        ...), `grade` ("grade1" to "grade12"), `context` or `has_hint`, `image` or `has_image`.

Returns:
    `accuracy`, `n` and `ci95` ([low, high]), each a dict by column, and `unparsable`, a count.

Example:
    >>> metric = evaluate.load(metric_path("scienceqa_accuracy"))
    >>> metric.compute(predictions=[1, 0], references=[1, 2])["accuracy"]
    {'Avg': 50.0}
"""

_CITATION = """
@inproceedings{lu2022learn,
  title={Learn to Explain: Multimodal Reasoning via Thought Chains for Science Question Answering},
  author={Lu, Pan and Mishra, Swaroop and Xia, Tony and Qiu, Liang and Chang, Kai-Wei and Zhu, Song-Chun and
          Tafjord, Oyvind and Clark, Peter and Kalyan, Ashwin},
  booktitle={NeurIPS},
  year={2022}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ScienceqaAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, problems=None):
        correct = [chosen == right for chosen, right in zip(predictions, references, strict=True)]
        table = accuracy_table([{}] * len(correct) if problems is None else problems, correct)
        return {**table, "unparsable": sum(chosen < 0 for chosen in predictions)}
