"""`StageTrainer`: transformers' `Seq2SeqTrainer` with what a stage needs beyond it."""

import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Seq2SeqTrainer, TrainerCallback

from mmcot.training.common import UserError
from mmcot.training.data.batched import read_column
from mmcot.training.inference.generation import use_engine
from mmcot.training.stages.batches import LengthBatchSampler
from mmcot.training.stages.cpu_steps import CpuStep, can_step, keep_freed_memory


class StageTrainer(Seq2SeqTrainer):
    """Trains a stage on samples with the columns `length` and `target_length`.

    With `train_sampling_strategy="group_by_length"` batches come from `LengthBatchSampler`; every other strategy is
    transformers' own. Training steps make no logits where there is no label. A loss that isn't finite ends the
    training.

    Args:
        position_bias_lr: learning rate of T5's relative position biases, as a multiple of the others'. Adam moves a
            weight by about the learning rate a step, and these biases have to reach several units before a head
            attends by position: a network from scratch waits long for them. 1 for networks that are pretrained.
        tokens_per_batch: source plus target tokens of a process's batch, on average, in place of
            `per_device_train_batch_size` samples.
        dropout_passes: forward passes a step, whose probabilities are averaged before the loss.
    """

    def __init__(
        self,
        *args,
        position_bias_lr: float = 1.0,
        tokens_per_batch: int | None = None,
        dropout_passes: int = 1,
        **kwargs,
    ):
        self.position_bias_lr = position_bias_lr
        self.dropout_passes = dropout_passes
        self.tokens_per_batch = tokens_per_batch
        self._cpu_step: CpuStep | None = None
        super().__init__(*args, **kwargs)
        self.add_callback(_Resumption())
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

    def _determine_best_metric(self, metrics, trial) -> bool:
        """As inherited; of checkpoints that the metric can't tell apart, as with few validation questions, the one of
        the lowest validation loss is the best, not the first."""
        if super()._determine_best_metric(metrics, trial):
            return True
        name, state = f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}", self.state
        if state.best_global_step is None or metrics.get(name) != state.best_metric:
            return False
        losses = {entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry}
        if not metrics.get("eval_loss", math.inf) < losses.get(state.best_global_step, -math.inf):
            return False
        state.best_global_step = state.global_step
        return True

    def train(self, *args, **kwargs):
        try:
            with keep_freed_memory() if self.args.device.type == "cpu" else nullcontext():
                return super().train(*args, **kwargs)
        finally:
            self._cpu_step = None  # the network may be another one the next time

    def training_step(self, model, inputs, *args, **kwargs):
        with self._quick_step(model):
            loss = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            ids = ", ".join(self._ids_of(inputs))
            raise UserError(
                f"the loss isn't finite ({loss.item()}) at step {self.state.global_step + 1}, on the samples {ids}: "
                "lower learning_rate, give bf16=false fp16=false, or look at these samples; the last whole checkpoint "
                "is kept"
            )
        return loss

    def _quick_step(self, model):
        """On a CPU `CpuStep`, unless PyTorch compiles the network and brings its own kernels, or parts of it are
        computed twice."""
        if self.args.device.type != "cpu" or self.args.torch_compile or not can_step(model):
            return nullcontext()
        if self._cpu_step is None:
            self._cpu_step = CpuStep(model)
        return self._cpu_step

    def _ids_of(self, inputs) -> list[str]:
        """Ids of the problems in a batch, known again by their tokens: batches themselves carry no text."""
        if isinstance(self.train_dataset, torch.utils.data.IterableDataset):
            return ["of this batch"]  # which a stream doesn't give twice
        pad, ids = self.processing_class.tokenizer.pad_token_id, []
        wanted = {tuple(token for token in row if token != pad) for row in inputs["input_ids"].tolist()}
        columns = (read_column(self.train_dataset, name) for name in ("id", "input_ids"))
        for id_, tokens in zip(*columns, strict=True):
            if tuple(token for token in tokens if token != pad) in wanted:
                ids.append(str(id_))
        return ids

    def unwrap(self) -> torch.nn.Module:
        """The network as it was before training, so that it can be trained again.

        accelerate leaves its autocast in the network's forward, and a mark for which the next trainer, of another
        precision perhaps, would leave it there; without the autocast but with the mark, it would train without one.
        """
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        for name in ("forward", "_is_accelerate_prepared"):
            vars(model).pop(name, None)
        return model

    def _issue_warnings_after_load(self, load_result) -> None:
        """Without the tied weights, which lie in the checkpoint once and aren't missing."""
        tied = set(getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", ()))
        missing = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))

    def compute_loss(self, model, inputs, *args, **kwargs):
        if self.dropout_passes > 1 and model.training:
            return self._loss_of_passes(model, inputs, **kwargs)
        if self.label_smoother is not None and "labels" in inputs:
            inputs = self._for_smoothing(inputs)
        elif model.training and self.compute_loss_func is None:
            inputs = {**inputs, "skip_logits": True}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _loss_of_passes(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy of the mean of several passes' probabilities, which dropout makes differ."""
        labels, passes = inputs["labels"], self.dropout_passes
        repeated = {name: value.repeat(passes, *[1] * (value.dim() - 1)) for name, value in inputs.items()}
        outputs = model(**repeated)
        mean = outputs.logits.float().log_softmax(-1).unflatten(0, (passes, -1)).logsumexp(0) - math.log(passes)
        stage = self.accelerator.unwrap_model(self.model)
        if stage.config.loss_on_padding:
            labels = labels.masked_fill(labels == -100, stage.config.pad_token_id)
        loss = torch.nn.functional.nll_loss(
            mean.flatten(0, 1), labels.flatten(), reduction="mean" if num_items_in_batch is None else "sum"
        )
        if num_items_in_batch is not None:
            loss = loss / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _for_smoothing(self, inputs):
        """The Trainer takes a smoothed loss from logits by itself, and keeps the labels from the model: which then
        needs the decoder's inputs, and can't count padding."""
        stage = self.accelerator.unwrap_model(self.model)
        labels = inputs["labels"]
        if stage.config.loss_on_padding:
            labels = labels.masked_fill(labels == -100, stage.config.pad_token_id)
        return {**inputs, "labels": labels, "decoder_input_ids": stage._shift_right(labels)}


class _Resumption(TrainerCallback):
    """What goes on from a checkpoint as if it hadn't been interrupted, beyond what transformers and accelerate do."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.best_model_checkpoint is not None:  # the run's folder may have been moved meanwhile
            state.best_model_checkpoint = str(Path(args.output_dir) / Path(state.best_model_checkpoint).name)

    # accelerate tells samplers the epoch, but for several processes that go on within one: the batches that are
    # skipped then lie one wrapper deeper, and the order of epoch 0 would come again
    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        epoch, queue, seen = int(state.epoch or 0), [train_dataloader], set()
        while queue:
            sampler = queue.pop()
            if sampler is None or id(sampler) in seen:
                continue
            seen.add(id(sampler))
            if sampler is not train_dataloader and hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            queue += [getattr(sampler, name, None) for name in ("batch_sampler", "sampler")]


def _column(samples: Dataset, name: str) -> np.ndarray:
    """A column of numbers at once; `datasets` would give them to numpy one by one, at 20 µs each."""
    if hasattr(samples, "with_format"):
        samples = samples.with_format("numpy")
    return np.asarray(samples[name][:])
