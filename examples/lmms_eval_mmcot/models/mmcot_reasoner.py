"""Multimodal-CoT in lmms-eval (0.7), on its multiple-choice tasks (scienceqa, scienceqa_img, ai2d, mmmu, …).

    export LMMS_EVAL_PLUGINS=lmms_eval_mmcot PYTHONPATH=examples
    python -m lmms_eval --model mmcot_reasoner --model_args pretrained=your-name/quiz,revision=COMMIT \\
        --tasks scienceqa_img --batch_size 16 --force_simple

and on my-questions.jsonl of the folder where this is started, which other models can then answer too:

    … --tasks own_questions --include_path examples/lmms_eval_mmcot/tasks

The model reads a question's parts (question, options, context, pictures), not the harness' prompt: they are taken from
the task's document. It answers with the option's letter.
"""

import ast
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.api.registry import register_model
from tqdm import tqdm
from transformers import pipeline

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@register_model("mmcot_reasoner")
class MMCoTReasoner(lmms):
    def __init__(
        self, pretrained: str, revision: str | None = None, batch_size: int = 16, device: str = "cpu", **options
    ):
        super().__init__()
        place = {"model": pretrained, "revision": revision, "device": device}
        self.answer = pipeline("multimodal-cot", trust_remote_code=True, **place)
        self.size, self.options = int(batch_size), options

    def generate_until(self, requests) -> list[str]:
        problems = [self.problem(*request.args) for request in requests]
        answered = self.answer(iter(problems), batch_size=self.size, **self.options)
        return [result["answer"] for result in tqdm(answered, total=len(problems), desc="mmcot")]

    def problem(self, contexts, gen_kwargs, doc_to_visual, doc_id, task: str, split: str) -> dict[str, Any]:
        """The document of a request as a problem."""
        doc = self.task_dict[task][split][doc_id]
        return {
            "question": doc["question"],
            "choices": choices_of(doc),
            "context": doc.get("hint") or doc.get("context") or "",
            "images": list(doc_to_visual(doc) or []),
        }

    def loglikelihood(self, requests):
        raise NotImplementedError("the tasks that ask for an answer are meant (output_type: generate_until)")

    def generate_until_multi_round(self, requests):
        raise NotImplementedError("one question, one answer")


def choices_of(doc: dict[str, Any]) -> list[str]:
    """The options of a document, under the names that the tasks have for them."""
    found = doc.get("choices") or doc.get("options")
    if isinstance(found, str):  # MMMU writes a list as text
        found = ast.literal_eval(found)
    if not found:
        found = [doc[letter] for letter in LETTERS if doc.get(letter)]
    if not found:
        raise ValueError(
            f"no options in the document (its fields: {', '.join(doc)}): a multiple-choice task is needed"
        )
    return list(found)
