"""PromptPG (Lu et al. 2022, arXiv 2209.14610): a small policy learns which demonstrations help a question.

The policy is one linear layer over frozen sentence embeddings: the score of a candidate for a question is the
product of their projections, and demonstrations are drawn from the softmax over all candidates. It is trained with
REINFORCE: the reward of a draw is 1 if the model then answers right, else -1. Candidates and the questions of the
reward are disjoint parts of the *training* split (a validation set of its own), so that no question that is measured
is ever seen.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from mmcot.training.common import UserError
from mmcot.training.reasoning import few_shot_cot
from mmcot.training.reasoning.calls import Caller
from mmcot.training.reasoning.methods import Selection, Settings

CANDIDATES, QUESTIONS, EPOCHS, BATCH = (
    20,
    64,
    5,
    16,
)  # the paper: 20 candidates, 160 questions, 30 epochs, batches of 20
WIDTH, LEARNING_RATE = 128, 1e-3


class Policy(torch.nn.Module):
    """Which candidates a question wants: log-probabilities (questions, candidates) from embeddings (…, size)."""

    def __init__(self, size: int, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.linear = torch.nn.Linear(size, WIDTH)

    def forward(self, questions: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        return (self.linear(questions) @ self.linear(candidates).T).log_softmax(-1)


def prepare(train: Sequence[Mapping[str, Any]], settings: Settings, caller: Caller) -> Selection:
    """Trains the policy; each question then gets the candidates that the policy likes best."""
    order = random.Random(settings.seed).sample(range(len(train)), len(train))
    candidates = [dict(train[i]) for i in order[:CANDIDATES]]
    questions = [train[i] for i in order[CANDIDATES : CANDIDATES + QUESTIONS]]
    if len(candidates) < settings.shots or not questions:
        raise UserError(f"promptpg needs more than {CANDIDATES} training problems, and there are {len(train)}")
    asked, offered = (_embed(problems, settings) for problems in (questions, candidates))
    policy = train_policy(questions, asked, candidates, offered, settings, caller)

    def choose(problems: Sequence[Mapping[str, Any]]) -> list[tuple]:
        with torch.no_grad():
            best = policy(_embed(problems, settings), offered).topk(settings.shots).indices.tolist()
        return [tuple(candidates[i] for i in row) for row in best]

    return Selection(candidates, choose)


def train_policy(questions, asked, candidates, offered, settings: Settings, caller: Caller) -> Policy:
    """REINFORCE over `EPOCHS` passes through the questions, whose embeddings are `asked` (questions, size).

    Draws come from a generator of their own, so that the same seed and answers train the same policy.
    """
    policy = Policy(asked.shape[1], settings.seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=LEARNING_RATE)
    draw = torch.Generator().manual_seed(settings.seed)
    for epoch in range(EPOCHS):
        for start in range(0, len(questions), BATCH):
            numbers = range(start, min(start + BATCH, len(questions)))
            log_probs = policy(asked[numbers.start : numbers.stop], offered)  # (batch, candidates)
            drawn = torch.multinomial(log_probs.exp(), settings.shots, generator=draw)  # (batch, shots)
            works = {}
            for row, number in enumerate(numbers):
                shots = tuple(candidates[i] for i in drawn[row].tolist())
                name = f"promptpg/{epoch}/{questions[number]['id']}"
                own = replace(settings, demonstrations=shots, temperature=0.0)
                works[name] = few_shot_cot.work(questions[number], own)
            results = caller.run(works.items())
            right = [
                results[name]["answer"] == questions[number]["answer"]
                for name, number in zip(works, numbers, strict=True)
            ]
            rewards = torch.tensor([1.0 if one else -1.0 for one in right])
            loss = -(rewards * log_probs.gather(1, drawn).sum(1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return policy.eval()


# asked with the demonstrations that the policy has chosen
work = few_shot_cot.work


def _embed(problems: Sequence[Mapping[str, Any]], settings: Settings) -> torch.Tensor:
    """Embeddings of the questions, (problems, size)."""
    from mmcot.training.evaluation.similarity import embed

    if settings.embedding_model is None:
        raise UserError("promptpg compares questions: name a sentence-transformers model (--embedding-model)")
    return torch.as_tensor(embed([problem["question"] for problem in problems], settings.embedding_model))
