"""Training, timed in arms that take turns: the published recipe's way, and this package's.

`original` pads sources and targets to 512, counts padding in the loss, computes in fp32 with materialised attention,
takes samples as they come in batches of the recipe's size, reads features from a float32 array in memory and updates
weights tensor by tensor. `ours` is `StageTrainer.train` with a run's own training arguments.

A run of ours takes batches of an epoch, evenly from short to long, and samples are counted by the arithmetic that they
ask for: one sample is one of mean cost. The original pads every sample to the same size, so that a few tell its rate.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback

from mmcot.training.benchmark import measure
from mmcot.training.benchmark.inputs import FEATURES, TRAIN_SIZE, Setting, make_model
from mmcot.training.stages.batches import LengthBatchSampler
from mmcot.training.stages.fit import training_arguments
from mmcot.training.stages.recipe import from_dict
from mmcot.training.stages.samples import StageCollator
from mmcot.training.stages.trainer import StageTrainer

PADDED = 512  # tokens of a source and a target in the original
RECIPE_BATCH = {"cpu": 4, "cuda": 8}


class OriginalTraining:
    """The published recipe's training step on our network."""

    def __init__(self, shape: str, setting: Setting, device: torch.device, batch_size: int, steps: int = 1):
        self.setting, self.device, self.batch_size, self.steps = setting, device, batch_size, steps
        self.features = setting.original_features()
        self.model = make_model(shape, attention="eager", features=setting.kind, loss_on_padding=True).to(device)
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5, weight_decay=0.01, foreach=False)

    def run(self, turn: int) -> dict:
        count = self.steps * self.batch_size
        numbers = [(turn * count + i) % len(self.setting.rows) for i in range(count)]
        batches = [numbers[i : i + self.batch_size] for i in range(0, count, self.batch_size)]
        reading = {"count": count, "seconds": measure.seconds(lambda: [*map(self.step, batches)], self.device)}
        self.optimizer.state.clear()  # not in the way of the other arms
        return reading

    def step(self, numbers: list[int]) -> float:
        rows = [self.setting.rows[number] for number in numbers]
        ids = torch.zeros(len(rows), PADDED, dtype=torch.long)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, -100)  # the network counts padding: loss_on_padding
        for i, row in enumerate(rows):
            source, target = torch.tensor(row["input_ids"]), torch.tensor(row["labels"][:PADDED])
            ids[i, : len(source)], mask[i, : len(source)], labels[i, : len(target)] = source, 1, target
        images = self.setting.original_images([row["id"] for row in rows], self.features)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "image_features": images}
        loss = self.model(**{name: value.to(self.device) for name, value in batch.items()}, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


class _Batches(list):
    """Batches in a given order, as accelerate takes them for a batch sampler."""

    batch_size, drop_last = None, False


class TimedTrainer(StageTrainer):
    """Trains on the batches that it is given, and keeps of each step its samples, its loss and when it began."""

    def __init__(self, *args, batches: list[list[int]], **kwargs):
        self.given = _Batches(batches)
        self.taken: list[tuple[int, torch.Tensor, float]] = []
        super().__init__(*args, **kwargs)

    def get_train_dataloader(self):
        loader = torch.utils.data.DataLoader(
            self.train_dataset,
            batch_sampler=self.given,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def training_step(self, model, inputs, *args, **kwargs):
        measure.synchronize(self.args.device)
        began = time.perf_counter()
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.taken.append((len(inputs["input_ids"]), loss, began))
        return loss


def timed_training(
    model, setting: Setting, batches: list[list[int]], world: int = 1, **settings: Any
) -> tuple[dict, TimedTrainer]:
    """A run's training on given batches (those of all `world` processes), with a run's own training arguments.

    Returns:
        a reading of the samples after the first step, which warms up; and the trainer.
    """
    with tempfile.TemporaryDirectory(prefix="mmcot-benchmark-") as folder:
        values = {"max_steps": len(batches) // world, "save_strategy": "no", "logging_strategy": "no", **settings}
        recipe = from_dict({"output_dir": folder, "disable_tqdm": True, **values})
        trainer = TimedTrainer(
            model=model,
            args=training_arguments(recipe, Path(folder), has_eval=False),
            train_dataset=setting.samples,
            processing_class=setting.processor,
            data_collator=StageCollator(setting.processor, setting.cache, with_images=model.config.has_fusion),
            batches=batches,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    measure.synchronize(trainer.args.device)
    spent = time.perf_counter() - trainer.taken[1][2]
    trainer.unwrap()
    return {"count": sum(count for count, *_ in trainer.taken[1:]), "seconds": spent}, trainer


def batches_of_epoch(setting: Setting, samples: int, epoch: int, **batching: int) -> list[list[int]]:
    """Batches of an epoch that come to about as many samples, spread evenly from short to long.

    Args:
        batching: `batch_size` or `tokens_per_batch` of `LengthBatchSampler`.
    """
    lengths = [[row[name] for row in setting.rows] for name in ("length", "target_length")]
    sampler = LengthBatchSampler(*lengths, **batching)
    sampler.set_epoch(epoch)
    whole = sorted(sampler, key=lambda batch: sum(max(column[number] for number in batch) for column in lengths))
    count = max(1, min(len(whole), round(samples / len(setting.rows) * len(whole))))
    return [whole[i] for i in ((np.arange(count) + 0.5) * len(whole) / count).astype(int)]


def benchmark_training(shape: str, device: torch.device, options) -> dict:
    """The figures of `mmcot benchmark train`."""
    with tempfile.TemporaryDirectory(prefix="mmcot-benchmark-") as folder:
        setting = Setting(options.pool, options.pictures, Path(folder), options.features)
        batch = options.batch_size or RECIPE_BATCH[device.type]
        costs = sample_costs(shape, setting)
        settings = {"use_cpu": device.type == "cpu", "dataloader_num_workers": 0 if device.type == "cpu" else 4}

        def ours(name: str, compiled: bool = False, **batching: int) -> measure.Arm:
            model = make_model(shape, features=options.features)
            if compiled:
                compile_blocks(model)

            def run(turn: int) -> dict:
                # a warm-up may be short, but graphs are compiled for all kinds of batches
                samples = options.samples if turn or compiled else max(1, options.samples // 4)
                batches = batches_of_epoch(setting, samples, turn, **batching)
                reading, trainer = timed_training(model, setting, [batches[len(batches) // 2], *batches], **settings)
                cost = sum(costs[number] for batch in batches for number in batch)
                # samples of mean cost; a pass backward costs two forward
                return {**reading, "count": cost / costs.mean(), "flops": 3 * cost, "bf16": trainer.args.bf16}

            return measure.Arm(name, run, model)

        original = OriginalTraining(shape, setting, device, batch, options.original_steps)
        arms = [measure.Arm("original", original.run, original.model), ours("ours, same batch", batch_size=batch)]
        # compiling the large shape takes longer than all that is measured
        for tokens in options.tokens_per_batch[: 1 if shape == "large" else None]:
            arms.append(ours(f"ours, {tokens} tokens a batch", tokens_per_batch=tokens))
        if options.compile and shape != "large":
            tokens = options.tokens_per_batch[-1]
            arms.append(ours(f"ours, {tokens} tokens a batch, compiled", compiled=True, tokens_per_batch=tokens))
        # before and after the arms: another program may have had the device
        before = {dtype: measure.peak_flops(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
        found, failed = measure.take_turns(arms, options.repeats, device, options.deadline)
    result = {"batch_size": batch, "features": options.features, "arms": found, "failed": failed}
    names = [name for name in found if name != "original"]
    for name in names:
        readings = found[name]["readings"]
        dtype = torch.bfloat16 if readings[0]["bf16"] else torch.float32
        peak = max(before[dtype], measure.peak_flops(device, dtype))
        found[name]["share_of_peak"] = measure.spread([r["flops"] / r["seconds"] / peak for r in readings])
        found[name]["precision"] = str(dtype).removeprefix("torch.")
    best = max((found[name]["per_second"]["median"] for name in names), default=float("nan"))
    return {**result, "both_stages_20_epochs_minutes": 2 * 20 * TRAIN_SIZE / best / 60}


def sample_costs(shape: str, setting: Setting) -> np.ndarray:
    """Floating-point operations of a forward pass over each sample alone."""
    operations: Callable = measure.forward_flops(lambda: make_model(shape, features=setting.kind))
    patches = FEATURES[setting.kind][0]
    rows = setting.rows
    return np.array([operations(r["length"], r["target_length"], patches * len(r["image_keys"])) for r in rows])


def compile_blocks(model) -> None:
    # Graphs are few: a first and a later block of encoder and decoder, with a mask and without. But PyTorch counts
    # those of all models in the process, and stops compiling at eight.
    torch._dynamo.config.recompile_limit = 64
    for block in (*model.encoder.block, *model.decoder.block):
        block.compile(dynamic=True)
