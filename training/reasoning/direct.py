"""Direct answering: the answer at once, without a rationale; zero-shot or with demonstrations (Brown et al. 2020)."""

from mmcot.training.reasoning.calls import Work
from mmcot.training.reasoning.few_shot_prompt import build_few_shot_prompt
from mmcot.training.reasoning.methods import Settings, own_words
from mmcot.training.reasoning.texts import problem_fields, read_answer, templates

FORMAT = "QCM-A"


def work(problem, settings: Settings, sample: int = 0) -> Work:
    if settings.demonstrations:
        prompt = build_few_shot_prompt(settings.demonstrations, problem, FORMAT, use_caption=settings.use_caption)
    else:
        prompt = templates()["direct"]["ask"].format(**problem_fields(problem, settings.use_caption))
    if settings.score_options:
        return (yield from settings.scored(problem, f"{prompt} The answer is (", "", sample))
    completion = yield settings.request(problem, prompt, sample, max_new_tokens=16)
    return settings.answered(problem, completion, "", read_answer(own_words(completion.text), problem))
