"""Batches of like lengths: nothing lost, little padded, even between processes, new in every epoch."""

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard

from mmcot.training.stages.batches import LengthBatchSampler, padded_share


@pytest.fixture
def lengths():
    draw = np.random.default_rng(0)
    return draw.integers(20, 300, 1000), draw.integers(5, 200, 1000)


def tokens(sampler, batch):
    return len(batch) * (sampler.source_lengths[batch].max() + sampler.target_lengths[batch].max())


@pytest.mark.parametrize("settings", [{"batch_size": 8}, {"batch_size": 7}, {"tokens_per_batch": 3000}])
@pytest.mark.parametrize("num_processes", [1, 3])
def test_every_sample_is_there_once_and_each_process_has_as_many_batches(lengths, settings, num_processes):
    sampler = LengthBatchSampler(*lengths, **settings, num_processes=num_processes)
    parts = [list(BatchSamplerShard(sampler, num_processes, rank)) for rank in range(num_processes)]
    assert sorted(sample for part in parts for batch in part for sample in batch) == list(range(1000))
    assert {len(part) for part in parts} == {len(sampler) // num_processes}
    if "batch_size" in settings:
        assert max(len(batch) for part in parts for batch in part) <= settings["batch_size"]


@pytest.mark.parametrize("count", [12726, 9])
@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("num_processes", [2, 4, 8])
def test_batches_are_never_larger_than_asked_nor_empty(count, batch_size, num_processes):
    """ScienceQA's training split among others; samples come twice only where batches outnumber samples."""
    draw = np.random.default_rng(count)
    lengths = draw.integers(20, 300, count), draw.integers(5, 200, count)
    sampler = LengthBatchSampler(*lengths, batch_size=batch_size, num_processes=num_processes)
    sizes = [len(batch) for batch in sampler]
    assert max(sizes) <= batch_size and min(sizes) >= 1 and len(sizes) == len(sampler)
    assert len(sizes) % num_processes == 0 and len(sizes) - num_processes < count / batch_size
    times = np.bincount(sum(sampler, []), minlength=count)
    assert times.min() == 1 and times.max() <= 2 and times.sum() == max(count, len(sizes))


def test_little_is_padded(lengths):
    draw = np.random.default_rng(1)
    unsorted = [draw.permutation(1000)[:8] for _ in range(100)]
    sampler = LengthBatchSampler(*lengths, batch_size=8)
    real = sampler.costs[np.concatenate(unsorted)].sum()
    assert 1 - real / sum(tokens(sampler, batch) for batch in unsorted) > 0.35
    assert padded_share(sampler) < 0.15


def test_with_a_token_budget_batches_cost_about_the_same(lengths):
    sampler = LengthBatchSampler(*lengths, tokens_per_batch=4000)
    costs = np.array([tokens(sampler, batch) for batch in sampler])
    assert costs.mean() == pytest.approx(4000, rel=0.25) and costs.max() < 1.5 * costs.mean()
    sizes = [len(batch) for batch in sampler]
    assert max(sizes) > 3 * min(sizes)


def test_processes_get_batches_of_like_cost_at_each_step(lengths):
    sampler = LengthBatchSampler(*lengths, batch_size=8, num_processes=2)
    costs = np.array([tokens(sampler, batch) for batch in sampler]).reshape(-1, 2)
    apart = np.abs(costs[:, 0] - costs[:, 1]).mean()
    assert apart < 0.5 * np.abs(costs[:, 0] - np.roll(costs[:, 1], 1)).mean()


def test_epochs_differ_and_come_again(lengths):
    sampler = LengthBatchSampler(*lengths, batch_size=8)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first and len(list(sampler)) == len(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first


@pytest.mark.parametrize("count", [1, 5])
def test_few_samples_and_one_giant(count):
    sampler = LengthBatchSampler([4000] + [10] * (count - 1), [5] * count, tokens_per_batch=30)
    assert sorted(sum(sampler, [])) == list(range(count)) and all(sampler)


def test_too_few_samples_for_the_processes():
    with pytest.raises(ValueError, match="2 samples are too few for 4 processes"):
        LengthBatchSampler([3, 4], [1, 1], num_processes=4)
