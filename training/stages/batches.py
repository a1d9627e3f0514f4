"""Batches of like lengths, so that little of a training step is spent on padding."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from mmcot.training.common import UserError

WINDOW_BATCHES = 128  # as many batches are sorted together; more pad less, fewer mix samples more freely


class LengthBatchSampler:
    """Yields batches of sample numbers whose sources and targets are of like length, in an order drawn each epoch.

    Samples are shuffled and taken in windows of about `WINDOW_BATCHES` batches. Each window is halved again and again,
    by source or by target length, whichever leaves less padding, until its parts are batches: of `batch_size` samples
    at most, or, with `tokens_per_batch`, of equally many tokens, so that long samples come in small batches, short
    ones in large, and all cost about the same.

    Of every `num_processes` batches in a row each process takes one; they are neighbours of nearly equal cost. There
    is a whole number of such rows, as many in every epoch, so that accelerate's `BatchSamplerShard` shares them out as
    they are. Where that takes more batches than there are samples, some samples drawn anew each epoch come twice.

    Args:
        source_lengths, target_lengths: tokens of each sample.
        batch_size: samples in a batch at most, where `tokens_per_batch` is None.
        tokens_per_batch: source plus target tokens in a batch, on average.
        num_processes: that share the work.
        seed: of the order; `set_epoch` draws another one.

    Raises:
        UserError: fewer samples than processes.
    """

    drop_last = False
    batch_size = None  # batches vary, which accelerate must know

    @property
    def sampler(self) -> "LengthBatchSampler":
        """Itself: where accelerate looks for `set_epoch`."""
        return self

    def __init__(
        self,
        source_lengths: Sequence[int],
        target_lengths: Sequence[int],
        batch_size: int = 8,
        tokens_per_batch: int | None = None,
        num_processes: int = 1,
        seed: int = 0,
    ):
        self.source_lengths = np.asarray(source_lengths, dtype=np.int64)
        self.target_lengths = np.asarray(target_lengths, dtype=np.int64)
        if len(self.source_lengths) != len(self.target_lengths):
            raise ValueError(
                f"{len(self.source_lengths)} source lengths, but {len(self.target_lengths)} target lengths"
            )
        self.by_tokens = tokens_per_batch is not None
        self.most = batch_size
        self.num_processes, self.seed, self.epoch = num_processes, seed, 0
        self.costs = self.source_lengths + self.target_lengths
        count = len(self.costs)
        if 0 < count < num_processes:
            raise UserError(f"{count} samples are too few for {num_processes} processes")
        if self.by_tokens:  # every process as many batches, and no empty one
            batches = math.ceil(self.costs.sum() / tokens_per_batch)
            self.num_steps = max(1, min(math.ceil(batches / num_processes), count // num_processes)) if count else 0
        else:
            self.num_steps = math.ceil(math.ceil(count / batch_size) / num_processes)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_steps * self.num_processes

    def __iter__(self) -> Iterator[list[int]]:
        draw = np.random.default_rng((self.seed, self.epoch))
        order = draw.permutation(len(self.costs))
        if len(order) < len(self):  # by_tokens never
            order = np.concatenate([order, draw.choice(order, len(self) - len(order), replace=False)])
        windows = min(self.num_steps, max(1, round(len(self) / WINDOW_BATCHES)))
        shares = np.array(
            [self.num_steps * (i + 1) // windows * self.num_processes for i in range(windows)], dtype=int
        )
        # as large a part of the samples as of the batches: at least one a batch, at most `most`
        ends = [len(order) * int(share) // max(1, len(self)) for share in shares]
        steps = []
        for part, count in zip(np.split(order, ends[:-1]), np.diff(shares, prepend=0).tolist(), strict=True):
            batches = self._cut(part, count)
            steps += [batches[i : i + self.num_processes] for i in range(0, len(batches), self.num_processes)]
        for step in draw.permutation(len(steps)):
            for batch in steps[step]:
                yield batch.tolist()

    def _cut(self, samples: np.ndarray, count: int) -> list[np.ndarray]:
        """`count` batches, none empty: halved again and again, by source or target length, whichever pads less."""
        if count == 1:
            return [samples]
        left = count // 2
        halves = []
        for lengths in (self.source_lengths, self.target_lengths):
            ordered = samples[np.argsort(lengths[samples], kind="stable")]
            if not self.by_tokens:
                end = len(samples) * left // count
            else:
                running = np.cumsum(self.costs[ordered])
                end = int(np.searchsorted(running, running[-1] * left / count))
            end = min(max(end, left), len(samples) - (count - left))
            halves.append((self._padded(ordered[:end]) + self._padded(ordered[end:]), ordered[:end], ordered[end:]))
        _, first, second = min(halves, key=lambda half: half[0])
        return self._cut(first, left) + self._cut(second, count - left)

    def _padded(self, samples: np.ndarray) -> int:
        """Tokens that the samples take as one batch."""
        return len(samples) * int(self.source_lengths[samples].max() + self.target_lengths[samples].max())


def padded_share(sampler: LengthBatchSampler) -> float:
    """Share of padding among the tokens that the batches take."""
    real = padded = 0
    for batch in sampler:
        for lengths in (sampler.source_lengths[batch], sampler.target_lengths[batch]):
            real += int(lengths.sum())
            padded += int(lengths.max()) * len(batch)
    return 1 - real / padded
