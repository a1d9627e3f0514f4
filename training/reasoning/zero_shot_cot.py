"""Zero-shot chain-of-thought (Kojima et al. 2022, arXiv 2205.11916): "Let's think step by step", then a second call
that reads the answer off."""

from mmcot.training.reasoning.calls import Work
from mmcot.training.reasoning.methods import Settings, own_words
from mmcot.training.reasoning.texts import problem_fields, read_answer, templates


def work(problem, settings: Settings, sample: int = 0) -> Work:
    texts, fields = templates()["zero-shot-cot"], problem_fields(problem, settings.use_caption)
    reason = texts["reason"].format(**fields)
    rationale = own_words((yield settings.request(problem, reason, sample, step="reason")).text)
    extract = texts["extract"].format(reason=reason, rationale=rationale, **fields)
    if settings.score_options:
        return (yield from settings.scored(problem, f"{extract} (", rationale, sample))
    completion = yield settings.request(problem, extract, sample, step="extract", max_new_tokens=16, greedy=True)
    return settings.answered(problem, completion, rationale, read_answer(completion.text, problem, begun=True))
