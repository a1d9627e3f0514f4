"""Training, timed in two arms that take turns: the published recipe's way, and this package's.

`original` pads sources and targets to 512, counts padding in the loss, computes in fp32 with materialised attention,
takes samples as they come in batches of the recipe's size, reads features from a float32 array in memory and updates
weights tensor by tensor. `ours` is `StageTrainer`: batches of like lengths, a loss without idle logits, fused
attention and optimiser, features from a cache on disk; bf16 on a GPU.

A run of ours takes batches of an epoch, evenly from short to long, and samples are counted by the arithmetic that they
ask for: one sample is one of mean cost. The original pads every sample to the same size, so that a few tell its rate.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mmcot.training.benchmark import measure
from mmcot.training.benchmark.inputs import (
    FEATURES,
    ORIGINAL_PATCHES,
    TRAIN_SIZE,
    Samples,
    draw_lengths,
    make_features,
    make_model,
    make_problems,
    make_tokenizer,
    write_features,
)

PADDED = 512  # tokens of a source and a target in the original
RECIPE_BATCH = {"cpu": 4, "cuda": 8}
LOSS_BATCH = 2  # of the comparison of losses


class OriginalTraining:
    """The published recipe's training step on our network."""

    name = "original"

    def __init__(
        self,
        shape: str,
        samples: Samples,
        features: torch.Tensor,
        device: torch.device,
        batch_size: int,
        kind: str = "vit",
    ):
        self.samples, self.device, self.batch_size = samples, device, batch_size
        self.features = as_the_original_has_them(features, kind)
        self.model = make_model(shape, attention="eager", features=kind, loss_on_padding=True).to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5, weight_decay=0.01, foreach=False)

    def step(self, numbers: list[int]) -> torch.Tensor:
        rows = [self.samples[number] for number in numbers]
        pad = np.zeros((2, len(rows), PADDED), dtype=np.int64)
        mask = np.zeros((len(rows), PADDED), dtype=np.int64)
        labels = np.full((len(rows), PADDED), -100)
        for i, row in enumerate(rows):
            pad[0, i, : len(row["input_ids"])] = row["input_ids"]
            mask[i, : len(row["input_ids"])] = 1
            labels[i, : len(row["labels"][:PADDED])] = row["labels"][:PADDED]
        blank = torch.zeros_like(self.features[0])
        keys = [row["image_keys"] for row in rows]
        images = torch.stack([self.features[int(key[0].split()[1])] if key else blank for key in keys])
        batch = {
            "input_ids": torch.from_numpy(pad[0]),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),  # the network counts padding: loss_on_padding
            "image_features": images,
        }
        batch = {name: value.to(self.device) for name, value in batch.items()}
        loss = self.model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def run(self, batches: list[list[int]]) -> dict:
        """Trains on the batches; what was done, and the time it took."""
        count = sum(map(len, batches))
        spent = measure.seconds(lambda: [self.step(batch) for batch in batches], self.device)
        return {"samples": count, "seconds": spent, "padded_tokens": 2 * PADDED * count}

    def release(self) -> None:
        release(self.optimizer)

    def batches(self, turn: int, steps: int) -> list[list[int]]:
        """As they come; others each turn."""
        first = turn * steps * self.batch_size
        numbers = [(first + i) % len(self.samples) for i in range(steps * self.batch_size)]
        return [numbers[i : i + self.batch_size] for i in range(0, len(numbers), self.batch_size)]


def release(optimizer) -> None:
    """Gives up gradients and the optimiser's state, so that one arm's are not in the way of another's."""
    optimizer.zero_grad()
    optimizer.state.clear()
    torch.cuda.empty_cache()


def as_the_original_has_them(features: torch.Tensor, kind: str) -> torch.Tensor:
    """(pictures, patches, width): ResNet's one vector repeated, the others as they are."""
    return features.repeat(1, ORIGINAL_PATCHES[kind], 1) if kind in ORIGINAL_PATCHES else features


class OurTraining:
    """`StageTrainer`'s steps, on batches as an epoch has them."""

    def __init__(
        self,
        name: str,
        shape: str,
        samples: Samples,
        cache,
        processor,
        device: torch.device,
        folder: Path,
        batch_size: int = 8,
        tokens_per_batch: int | None = None,
        bf16: bool = False,
        compiled: bool = False,
        checkpointing: bool = False,
        **model_settings,
    ):
        from transformers import Seq2SeqTrainingArguments

        from mmcot.training.stages.samples import StageCollator
        from mmcot.training.stages.trainer import StageTrainer

        self.name, self.samples, self.device, self.compiled = name, samples, device, compiled
        self.model = make_model(shape, **model_settings)
        if compiled:
            # Graphs are few: a first and a later block of encoder and decoder, with a mask and without. But PyTorch
            # counts those of all models in the process, and stops compiling at eight.
            torch._dynamo.config.recompile_limit = 64
            for block in (*self.model.encoder.block, *self.model.decoder.block):
                block.compile(dynamic=True)
        with_images = self.model.config.image_feature_size is not None
        self.trainer = StageTrainer(
            model=self.model,
            args=Seq2SeqTrainingArguments(
                output_dir=str(folder / "trainer"),
                per_device_train_batch_size=batch_size,
                train_sampling_strategy="group_by_length",
                learning_rate=5e-5,
                weight_decay=0.01,
                optim="adamw_torch_fused",
                bf16=bf16,
                use_cpu=device.type == "cpu",
                remove_unused_columns=False,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=samples,
            processing_class=processor,
            data_collator=StageCollator(processor, cache, with_images=with_images),
            tokens_per_batch=tokens_per_batch,
        )
        self.collate = self.trainer.data_collator
        self.sampler = self.trainer.get_train_dataloader().batch_sampler
        if checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.trainer.accelerator.prepare_model(self.model)  # which is where bf16 comes in
        self.trainer.create_optimizer()
        self.model.train()

    def batches(self, turn: int, samples: int) -> list[list[int]]:
        """Batches of an epoch that come to about as many samples, spread evenly from short to long."""
        self.sampler.set_epoch(turn)
        epoch = sorted(self.sampler, key=lambda batch: self._padded(batch) / len(batch))
        count = max(1, min(len(epoch), round(samples / len(self.samples) * len(epoch))))
        places = ((np.arange(count) + 0.5) * len(epoch) / count).astype(int)
        return [epoch[place] for place in places]

    def _padded(self, batch: list[int]) -> int:
        rows = [self.samples[number] for number in batch]
        return len(rows) * (max(row["length"] for row in rows) + max(row["target_length"] for row in rows))

    def step(self, inputs: dict) -> torch.Tensor:
        inputs = {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}
        count = (inputs["labels"] != -100).sum()
        loss = self.trainer.training_step(self.model, inputs, count)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        return loss

    def run(self, batches: list[list[int]]) -> dict:
        """Trains on the batches; `stalled` is the time spent waiting for the next one to be read and padded."""
        workers = 4 if self.device.type == "cuda" else 0
        loader = torch.utils.data.DataLoader(
            self.samples,
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
        )
        inputs, stalled = iter(loader), 0.0
        first = next(inputs)  # processes that read are started once an epoch, not timed here
        measure.synchronize(self.device)
        start = time.perf_counter()
        while first is not None:
            self.step(first)
            waiting = time.perf_counter()
            first = next(inputs, None)
            stalled += time.perf_counter() - waiting
        measure.synchronize(self.device)
        return {
            "samples": sum(map(len, batches)),
            "seconds": time.perf_counter() - start,
            "padded_tokens": sum(self._padded(batch) for batch in batches),
            "stalled": stalled,
        }

    def release(self) -> None:
        release(self.trainer.optimizer)

    def collation_share(self, reading: dict) -> float:
        """Time that one process needs to read and pad a batch, as a share of the step: how many keep up with it."""
        batches = self.batches(0, reading["samples"])[:8]
        spent = measure.seconds(lambda: [self.collate([self.samples[i] for i in b]) for b in batches], self.device)
        return spent / sum(map(len, batches)) * reading["samples"] / reading["seconds"]


def setting(count: int, pictures: int, folder: Path, kind: str = "vit"):
    """Processor, samples, features as an array and as a cache, problems."""
    from mmcot.processing import MMCoTProcessor

    tokenizer, words = make_tokenizer()
    processor = MMCoTProcessor(None, tokenizer)
    problems = make_problems(draw_lengths(count), processor, words)
    samples = Samples(problems, processor, "rationale", pictures)
    features = make_features(pictures, kind)
    return processor, samples, features, write_features(folder / "features", features), problems


def benchmark_training(shape: str, device: torch.device, options) -> dict:
    """The figures of `mmcot benchmark train`; see `add_arguments` in `benchmark.py` for the options."""
    with tempfile.TemporaryDirectory(prefix="mmcot-benchmark-") as folder:
        folder = Path(folder)
        kind = options.features
        processor, samples, features, cache, _ = setting(options.pool, options.pictures, folder, kind)
        gpu, batch = device.type == "cuda", options.batch_size or RECIPE_BATCH[device.type]
        result = {"shape": shape, "stage": "rationale", "batch_size": batch, "features": kind}
        own = {"shape": shape, "samples": samples, "cache": cache, "processor": processor, "device": device}
        own.update(folder=folder, features=kind)
        if options.loss_steps:
            original = OriginalTraining(shape, samples, features, device, LOSS_BATCH, kind)
            ours = OurTraining("ours", **own, batch_size=LOSS_BATCH)
            result["loss_curves"] = loss_curves(original, ours, options.loss_steps)
            del original, ours
        original = OriginalTraining(shape, samples, features, device, batch, kind)
        own["bf16"] = gpu
        ours = [OurTraining("ours, same batch", **own, batch_size=batch)]
        # compiling the large shape takes longer than all that is measured
        compiled, tokens_per_batch = options.compile, options.tokens_per_batch
        if shape == "large":
            compiled, tokens_per_batch = False, tokens_per_batch[:1]
        if compiled:
            ours.append(OurTraining("ours, same batch, compiled", **own, batch_size=batch, compiled=True))
        if gpu:  # the smallest memory
            ours.append(OurTraining("ours, same batch, checkpointing", **own, batch_size=batch, checkpointing=True))
        for tokens in tokens_per_batch:
            ours.append(OurTraining(f"ours, {tokens} tokens a batch", **own, tokens_per_batch=tokens))
        if compiled:
            tokens = tokens_per_batch[-1]
            ours.append(
                OurTraining(f"ours, {tokens} tokens a batch, compiled", **own, tokens_per_batch=tokens, compiled=True)
            )
        dtypes = {"original": torch.float32, "ours": torch.bfloat16 if gpu else torch.float32}
        before = {name: measure.peak_flops(device, dtype) for name, dtype in dtypes.items()}
        readings, failed = take_turns(original, ours, samples, device, options)
        # another program may have had the device during one measurement
        peaks = {name: max(before[name], measure.peak_flops(device, dtype)) for name, dtype in dtypes.items()}
        result["arms"] = {name: summary(name, taken, peaks) for name, taken in readings.items()}
        for arm in ours:
            if arm.name in readings:
                taken = readings[arm.name]
                result["arms"][arm.name]["ratio"] = ratio(taken, readings[original.name])
                result["arms"][arm.name]["collation_share"] = arm.collation_share(taken[-1])
        if failed:
            result["failed"] = failed
        best = max((n for n in readings if n != original.name), key=lambda n: result["arms"][n]["ratio"]["median"])
        result["best"], result["ratio"] = best, result["arms"][best]["ratio"]
        if ours[0].name in readings:
            result["ratio_same_batch"] = result["arms"][ours[0].name]["ratio"]
        best_rate = result["arms"][best]["samples_per_second"]["median"]
        result["both_stages_20_epochs_minutes"] = 2 * 20 * TRAIN_SIZE / best_rate / 60
        result["peak_flops"] = peaks
    return result


def take_turns(original, ours, samples, device, options) -> tuple[dict[str, list[dict]], dict[str, str]]:
    """Readings of each arm; the first of each is warm-up and left out. Arms that fail are named."""
    readings, failed = {arm.name: [] for arm in (original, *ours)}, {}
    costs = [row_flops(original.model.config, row, options.features) for row in samples.rows]
    mean_cost = sum(costs) / len(costs)
    for turn in range(options.repeats + 1):
        if turn > 1 and measure.too_late(options.deadline):
            break
        for arm in (original, *ours) if turn % 2 else (*ours, original):
            if arm.name in failed:
                continue
            if arm is original:
                batches = arm.batches(turn, options.original_steps)
            else:
                # graphs are compiled in the warm-up: it has to see all kinds of batches
                batches = arm.batches(turn, options.samples if turn or arm.compiled else options.samples // 4)
            try:
                with measure.PeakMemory(device, arm.model) as memory:
                    reading = arm.run(batches)
                if device.type == "cuda":
                    arm.release()
            except RuntimeError as error:  # torch.OutOfMemoryError, or a graph that doesn't compile
                if arm is original:
                    raise
                failed[arm.name] = str(error).strip().partition("\n")[0]
                readings.pop(arm.name)
                arm.model.to("cpu")
                arm.release()
                continue
            reading["peak_memory"] = memory.bytes
            numbers = [number for batch in batches for number in batch]
            rows = [samples[number] for number in numbers]
            reading["real_tokens"] = sum(row["length"] + row["target_length"] for row in rows)
            reading["flops"] = 3 * sum(costs[number] for number in numbers)
            # of mean cost; those of the original all cost the same
            reading["mean_samples"] = len(rows) if arm is original else reading["flops"] / 3 / mean_cost
            if turn:
                readings[arm.name].append(reading)
    return readings, failed


def row_flops(config, row: dict, features: str = "vit") -> int:
    patches = FEATURES[features][0] * len(row["image_keys"])
    return measure.forward_flops(config, row["length"], row["target_length"], patches)


def ratio(taken: list[dict], original: list[dict]) -> dict[str, float]:
    """Samples a second over the original's, pair by pair."""
    pairs = zip(taken, original, strict=True)
    return measure.spread([rate(own) / rate(other) for own, other in pairs])


def rate(reading: dict) -> float:
    """Samples of mean cost a second."""
    return reading["mean_samples"] / reading["seconds"]


def summary(name: str, taken: list[dict], peaks: dict[str, float]) -> dict:
    """What an arm's readings come to."""
    rates = [rate(reading) for reading in taken]
    peak = peaks["original" if name == "original" else "ours"]
    result = {
        "samples_per_second": measure.spread(rates),
        "seconds_per_epoch": measure.spread([TRAIN_SIZE / rate for rate in rates]),
        "real_tokens_per_second": measure.spread([r["real_tokens"] / r["seconds"] for r in taken]),
        "padded_tokens_per_second": measure.spread([r["padded_tokens"] / r["seconds"] for r in taken]),
        "flops_utilisation_of_real_tokens": measure.spread([r["flops"] / r["seconds"] / peak for r in taken]),
        "peak_memory_bytes": max((r["peak_memory"] for r in taken if r["peak_memory"]), default=None),
        "samples_timed": sum(r["samples"] for r in taken),
        "repeats": len(taken),
        "warm_up": "a run before the first repeat, left out",
    }
    if "stalled" in taken[0]:
        result["stalled_share"] = measure.spread([r["stalled"] / r["seconds"] for r in taken])
    return result


def loss_curves(original: OriginalTraining, ours: OurTraining, steps: int) -> dict:
    """Losses of both arms over the same batches, in fp32, without dropout, padding left out of the loss in both."""
    original.model.config.loss_on_padding = False
    for arm in (original, ours):
        for module in arm.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "dropout", None), float):  # of attention
                module.dropout = 0.0
    curves = {"original": [], "ours": []}
    for numbers in ours.batches(0, steps * LOSS_BATCH)[:steps]:
        curves["original"].append(original.step(numbers).item())
        inputs = ours.trainer._prepare_inputs(ours.collate([ours.samples[number] for number in numbers]))
        curves["ours"].append(ours.step(inputs).item())
    apart = max(abs(a - b) / abs(a) for a, b in zip(curves["original"], curves["ours"], strict=True))
    return {**curves, "largest_relative_difference": apart}
