"""Plan-based rationales (T-SciQ, Wang et al. 2023, arXiv 2305.03453): the teacher plans, then carries the plan out."""

from mmcot.training.reasoning.calls import Work
from mmcot.training.reasoning.methods import Settings, own_words
from mmcot.training.reasoning.texts import problem_fields, read_answer, templates


def work(problem, settings: Settings, sample: int = 0) -> Work:
    texts, fields = templates()["plan"], problem_fields(problem, settings.use_caption)
    plan = own_words((yield settings.request(problem, texts["plan"].format(**fields), sample, step="plan")).text)
    prompt = texts["execute"].format(plan=plan, **fields)
    completion = yield settings.request(problem, prompt, sample, step="execute")
    text = own_words(completion.text)
    return settings.answered(problem, completion, text, read_answer(text, problem))
