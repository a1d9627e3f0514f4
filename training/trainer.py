"""`Seq2SeqTrainer` with what a stage needs beyond it."""

from transformers import Seq2SeqTrainer


class StageTrainer(Seq2SeqTrainer):
    """Trains a stage.

    Args:
        position_bias_lr: learning rate of T5's relative position biases, as a multiple of the others'. Adam moves a
            weight by about the learning rate a step, and these biases have to reach several units before a head
            attends by position: a network from scratch waits long for them. 1 for networks that are pretrained.
    """

    def __init__(self, *args, position_bias_lr: float = 1.0, **kwargs):
        self.position_bias_lr = position_bias_lr
        super().__init__(*args, **kwargs)

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
