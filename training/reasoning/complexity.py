"""Complexity-based prompting (Fu et al. 2022, arXiv 2210.00720): the training problems with the most reasoning steps
are the demonstrations, and of several sampled rationales those with the most steps vote."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.reasoning import auto_cot
from mmcot.training.reasoning.calls import Caller
from mmcot.training.reasoning.demonstrations import rationale_of
from mmcot.training.reasoning.methods import Selection, Settings
from mmcot.training.reasoning.texts import steps_of, vote

VOTING_SHARE = 0.5  # of the samples, the most complex ones; the paper takes 30 to 40 of 50


def prepare(train: Sequence[Mapping[str, Any]], settings: Settings, caller: Caller) -> Selection:
    """The `settings.shots` problems with the longest gold rationales, by steps, then by length."""
    shown = [{**problem, "rationale": rationale_of(problem)} for problem in train if rationale_of(problem)]
    if not shown:
        raise UserError("complexity: the training problems have no rationales; give --demonstrations FILE")
    shown.sort(key=lambda problem: (-steps_of(problem["rationale"]), -len(problem["rationale"]), problem["id"]))
    return Selection(shown[: settings.shots])


work = auto_cot.work


def vote_among(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The vote of the most complex samples."""
    ranked = sorted(samples, key=lambda sample: -steps_of(sample["rationale"]))  # stable: earlier samples first
    return vote(ranked[: max(1, round(VOTING_SHARE * len(ranked)))])
