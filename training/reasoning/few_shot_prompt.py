"""The few-shot prompt of ScienceQA's GPT-3 baselines, byte for byte that of the original's builder.

Lu et al. (NeurIPS 2022) asked GPT-3.5 so, with two demonstrations in the format QCM-ALE (75.17 % on the test split);
amazon-science/mm-cot keeps the builder in `utils_prompt.py` (`build_prompt`). Unlike the training prompts, new lines
stay, and the answer's letter has no parentheses.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from mmcot.processing import option_letter
from mmcot.processing.prompts_mmcot import INPUT_FORMATS, OUTPUT_FORMATS, SEGMENTS, prompt_fields, split_format


def build_few_shot_prompt(
    demonstrations: Iterable[Mapping[str, Any]],
    problem: Mapping[str, Any],
    prompt_format: str = "QCM-ALE",
    *,
    use_caption: bool = False,
) -> str:
    """Solved problems, then one to solve.

    Args:
        demonstrations: problems with their answers; see `build_prompt` for the keys. None at all is zero-shot.
        problem: the question.
        prompt_format: one of `PROMPT_FORMATS`, such as "QCM-ALE" (the answer, then lecture and explanation).
        use_caption: captions join the contexts.

    Returns:
        the examples, an empty line between them. The last one ends in "Answer:" (output A) or "Solution:".

    Raises:
        ProblemError: no such format, or a demonstration without an answer.
    """
    examples = [_example(shot, prompt_format, use_caption, solved=True) for shot in demonstrations]
    return "\n\n".join([*examples, _example(problem, prompt_format, use_caption, solved=False)])


def _example(problem: Mapping[str, Any], prompt_format: str, use_caption: bool, solved: bool) -> str:
    layout, output = split_format(prompt_format)
    fields = prompt_fields(problem, use_caption)
    segments = INPUT_FORMATS[layout]
    if solved or "A" in segments:
        fields["answer"] = option_letter(int(problem["answer"]))
    lines = [SEGMENTS[kind].format(**fields) for kind in segments]
    if solved:
        closing = "" if output in ("E", "LE") else "Answer: "
        lines.append(closing + OUTPUT_FORMATS[output].format(**fields))
    else:
        lines.append("Answer:" if output == "A" else "Solution:")
    text = "\n".join(lines).replace("  ", " ").strip()
    return text.replace("BECAUSE:", "").strip() if text.endswith("BECAUSE:") else text
