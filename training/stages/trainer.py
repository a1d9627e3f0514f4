"""`StageTrainer`: transformers' `Seq2SeqTrainer` with what a stage needs beyond it."""

import numpy as np
from torch.utils.data import DataLoader, Dataset
from transformers import Seq2SeqTrainer

from mmcot.training.inference.generation import use_engine
from mmcot.training.stages.batches import LengthBatchSampler


class StageTrainer(Seq2SeqTrainer):
    """Trains a stage on samples with the columns `length` and `target_length`.

    With `train_sampling_strategy="group_by_length"` batches come from `LengthBatchSampler`; every other strategy is
    transformers' own. Training steps make no logits where there is no label.

    Args:
        position_bias_lr: learning rate of T5's relative position biases, as a multiple of the others'. Adam moves a
            weight by about the learning rate a step, and these biases have to reach several units before a head
            attends by position: a network from scratch waits long for them. 1 for networks that are pretrained.
        tokens_per_batch: source plus target tokens of a process's batch, on average, in place of
            `per_device_train_batch_size` samples.
    """

    def __init__(self, *args, position_bias_lr: float = 1.0, tokens_per_batch: int | None = None, **kwargs):
        self.position_bias_lr = position_bias_lr
        self.tokens_per_batch = tokens_per_batch
        super().__init__(*args, **kwargs)
        use_engine(self.model)  # evaluation generates as prediction does

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        if self.position_bias_lr == 1.0:
            return optimizer
        named = (self.model if model is None else model).named_parameters()
        biases = {id(weight) for name, weight in named if "relative_attention_bias" in name}
        for group in list(optimizer.param_groups):
            own = [weight for weight in group["params"] if id(weight) in biases]
            if own:
                group["params"] = [weight for weight in group["params"] if id(weight) not in biases]
                rest = {name: value for name, value in group.items() if name != "params"}
                optimizer.add_param_group({**rest, "params": own, "lr": group["lr"] * self.position_bias_lr})
        return optimizer

    def get_train_dataloader(self) -> DataLoader:
        if self.args.train_sampling_strategy != "group_by_length":
            return super().get_train_dataloader()
        sampler = LengthBatchSampler(
            _column(self.train_dataset, "length"),
            _column(self.train_dataset, "target_length"),
            batch_size=self._train_batch_size,
            tokens_per_batch=self.tokens_per_batch,
            num_processes=self.args.world_size,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )
        workers = self.args.dataloader_num_workers
        return self.accelerator.prepare(
            DataLoader(
                self.train_dataset,
                batch_sampler=sampler,
                collate_fn=self.data_collator,
                num_workers=workers,
                pin_memory=self.args.dataloader_pin_memory,
                persistent_workers=self.args.dataloader_persistent_workers,
                prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            )
        )

    def prediction_step(self, *args, **kwargs):
        with self.accelerator.autocast():  # generation too, in the precision of training
            return super().prediction_step(*args, **kwargs)

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training and self.label_smoother is None and self.compute_loss_func is None:
            inputs = {**inputs, "skip_logits": True}
        return super().compute_loss(model, inputs, *args, **kwargs)


def _column(samples: Dataset, name: str) -> np.ndarray:
    """A column of numbers at once; `datasets` would give them to numpy one by one, at 20 µs each."""
    if hasattr(samples, "with_format"):
        samples = samples.with_format("numpy")
    return np.asarray(samples[name][:])
