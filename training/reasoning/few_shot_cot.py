"""Few-shot chain-of-thought (Wei et al. 2022, arXiv 2201.11903): demonstrations with their rationales.

`prompt_format` says where the rationale stands: QCM-LEA before the answer, as Wei et al. have it; QCM-ALE behind it,
as Lu et al. (NeurIPS 2022) asked GPT-3.5 on ScienceQA (two demonstrations: 75.17 %).
"""

from mmcot.training.reasoning.calls import Work
from mmcot.training.reasoning.few_shot_prompt import build_few_shot_prompt
from mmcot.training.reasoning.methods import Settings, own_words, without_answer
from mmcot.training.reasoning.texts import read_answer


def work(problem, settings: Settings, sample: int = 0) -> Work:
    prompt = build_few_shot_prompt(
        settings.demonstrations, problem, settings.prompt_format, use_caption=settings.use_caption
    )
    completion = yield settings.request(problem, prompt, sample)
    text = own_words(completion.text)
    answer = read_answer(text, problem)
    if settings.score_options:
        return (yield from settings.scored(problem, f"{prompt} {without_answer(text)} The answer is (", text, sample))
    return settings.answered(problem, completion, text, answer)
