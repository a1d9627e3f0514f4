"""Training steps on a CPU: other ways to the same sums, gradients and shares of dropout."""

import copy
import ctypes
import math
from types import SimpleNamespace

import pytest
import torch
from tiny_models import VOCAB, image_inputs, text_inputs, tiny_model
from torch import nn
from torch.nn import functional as F
from transformers import Seq2SeqTrainingArguments

from mmcot.training.stages import cpu_steps
from mmcot.training.stages.cpu_steps import CpuStep, LabelledLoss, attention, can_step, dropout, keep_freed_memory
from mmcot.training.stages.trainer import StageTrainer


def inputs(**others):
    labels = torch.randint(2, VOCAB, (3, 6), generator=torch.Generator().manual_seed(3))
    labels[1, 4:] = -100
    return {**text_inputs(), **image_inputs(), "labels": labels, "skip_logits": True, **others}


def loss_and_gradients(model, given, context=None, autocast=False):
    model.zero_grad()
    with context or torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(**given).loss
        loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return loss.detach(), {name: gradient.clone() for name, gradient in gradients.items()}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "scale_decoder_outputs": False},
        {"loss_on_padding": True},
    ],
    ids=["T5", "FLAN-T5", "padding"],
)
@pytest.mark.parametrize("items", [None, 7], ids=["mean", "accumulated"])
def test_loss_and_gradients_are_the_networks(fields, items):
    model = tiny_model(dropout_rate=0.0, **fields).train()
    given = inputs(num_items_in_batch=items)
    expected, gradients = loss_and_gradients(model, given)
    found, own = loss_and_gradients(model, given, CpuStep(model))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_in_bfloat16_they_are_as_near_to_float32_as_autocasts():
    model = tiny_model(dropout_rate=0.0).train()
    whole, gradients = loss_and_gradients(model, inputs())
    plain, of_autocast = loss_and_gradients(model, inputs(), autocast=True)
    loss, own = loss_and_gradients(model, inputs(), CpuStep(model), autocast=True)
    assert plain != whole and loss.dtype == torch.float32 and abs(loss - whole) < 0.02
    for name, gradient in gradients.items():
        assert own[name].dtype == torch.float32
        error, usual = ((found[name] - gradient).norm() for found in (own, of_autocast))
        assert error < 1.5 * usual + 0.01 * gradient.norm() + 1e-5, name


def test_the_network_is_as_before_afterwards():
    model = tiny_model(dropout_rate=0.1).train()
    step = CpuStep(model)
    for _ in range(2):
        with step:
            assert isinstance(model.labelled_loss, LabelledLoss)
            assert "forward" in vars(model.decoder.block[0].layer[0].layer_norm)
    assert all(not {"forward", "labelled_loss"} & set(vars(module)) for module in model.modules())
    with pytest.raises(ZeroDivisionError), step:
        raise ZeroDivisionError
    assert all("forward" not in vars(module) for module in model.modules())


def test_copies_made_meanwhile_are_ordinary_ones(tmp_path):
    """As of an average of the weights over steps."""
    model = tiny_model(dropout_rate=0.0).train()
    with CpuStep(model), CpuStep(model):
        copied = copy.deepcopy(model)
        torch.save(model, tmp_path / "model.pt")
    saved = torch.load(tmp_path / "model.pt", weights_only=False)
    expected, _ = loss_and_gradients(model, inputs())
    for other in (model, copied, saved):
        own = {"forward", "labelled_loss", "__getstate__"}
        assert all(not own & set(vars(module)) for module in other.modules())
        assert other(**inputs()).loss == expected


def test_entered_twice_it_leaves_nothing_behind():
    step = CpuStep(model := tiny_model())
    with step, step:
        pass
    assert all(not {"forward", "labelled_loss"} & set(vars(module)) for module in model.modules())


def test_not_with_gradient_checkpointing(tmp_path):
    """What is computed again in the pass backward would drop other values there."""
    model = tiny_model(dropout_rate=0.1).train()
    trainer = StageTrainer(model, Seq2SeqTrainingArguments(str(tmp_path), use_cpu=True))
    assert can_step(model) and isinstance(trainer._quick_step(model), CpuStep)
    torch.manual_seed(0)
    _, expected = loss_and_gradients(model, inputs())
    model.gradient_checkpointing_enable()
    assert not can_step(model) and not isinstance(trainer._quick_step(model), CpuStep)
    torch.manual_seed(0)
    _, found = loss_and_gradients(model, inputs(), trainer._quick_step(model))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_a_loss_of_the_users_is_theirs():
    model = tiny_model().train()
    model.loss_function = lambda logits, labels, size, **_: logits.sum() * 0 + 42.0
    with CpuStep(model):
        assert model(**inputs()).loss == 42.0
    model = tiny_model().train()
    model.lm_head.register_forward_hook(lambda module, given, output: output * 0)
    with CpuStep(model):
        loss = model(**inputs()).loss.item()
    assert loss == pytest.approx(math.log(VOCAB))


def test_float16_weights_have_float32_ones_among_them():
    model = tiny_model().half().train()
    dense = model.encoder.block[0].layer[1].DenseReluDense
    dense.wo.float()
    state = torch.randn(2, 3, model.config.d_model).half()
    with CpuStep(model):
        assert dense(state).isfinite().all()


def test_modules_with_hooks_of_others_are_left_alone():
    model = tiny_model().train()
    module = model.encoder.block[0].layer[1].DenseReluDense
    module.forward = own = module.forward
    with CpuStep(model):
        assert module.forward is own
    assert vars(module)["forward"] is own


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_sets_its_share_to_zero_and_scales_the_rest(share, dtype):
    state = torch.ones(401, 499, dtype=dtype, requires_grad=True)
    torch.manual_seed(0)
    found = dropout(state, share)
    assert found.dtype == dtype
    zeros = (found == 0).float().mean()
    assert zeros == pytest.approx(share, abs=5 * (share * (1 - share) / state.numel()) ** 0.5)
    kept = found[found != 0]
    assert (kept == kept[0]).all() and kept[0].item() == pytest.approx(1 / (1 - share), rel=0.005)
    found.sum().backward()
    assert torch.equal(state.grad, found.detach())
    torch.manual_seed(0)
    assert torch.equal(dropout(state, share), found), "not PyTorch's random numbers, which checkpoints keep"
    assert not torch.equal(dropout(state, share), found)
    neighbours = (found[:, :-1] == 0).float() * (found[:, 1:] == 0).float()  # two values of one number drawn
    assert neighbours.mean() == pytest.approx(share**2, abs=0.005)


def test_dropout_of_a_network_is_taken_here_and_only_while_training(monkeypatch):
    taken = []
    monkeypatch.setattr(cpu_steps, "dropout", lambda state, share: taken.append(share) or state)
    model = tiny_model(dropout_rate=0.25).train()
    with CpuStep(model):
        model(**inputs())
    # of each stack: before and after the layers, attentions and their outputs, both of feed-forward
    assert taken and set(taken) == {0.25}
    count = len(taken)
    with CpuStep(model.eval()):
        model(**inputs())
    assert len(taken) == count
    monkeypatch.undo()
    assert not dropout(torch.ones(9), 0.999999).any()
    with CpuStep(model):  # where PyTorch's own says something else
        with pytest.raises(ValueError, match="probability"):
            F.dropout(torch.ones(2), 1.5)
        assert not F.dropout(torch.ones(4), 1.0).any()


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("with_bias", [True, False])
def test_attention_is_pytorchs(scale, with_bias):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 5, 8)
    bias = torch.randn(1, 4, 5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf")) if with_bias else None
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    torch.testing.assert_close(attention(query, key, value, bias, scale=scale), expected)


def test_losses_of_many_labels_are_made_piece_by_piece(monkeypatch):
    monkeypatch.setattr(cpu_steps, "ROWS", 3)
    monkeypatch.setattr(cpu_steps, "KEPT_ROWS", 7)
    torch.manual_seed(0)
    head = nn.Linear(8, 32, bias=False)
    states, labels = torch.randn(20, 8, requires_grad=True), torch.randint(0, 32, (20,))
    loss = LabelledLoss()
    for count in (20, 9, 20):  # the memory that is kept is larger than what is asked for
        for parameter in (states, head.weight):
            parameter.grad = None
        expected = F.cross_entropy(head(states[:count]), labels[:count])
        wanted = torch.autograd.grad(expected, (states, head.weight))
        found = loss(head, states[:count], labels[:count])
        found.backward()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close((states.grad, head.weight.grad), wanted)


def test_a_frozen_head_and_one_with_an_adapter():
    torch.manual_seed(0)
    states, labels = torch.randn(5, 8, requires_grad=True), torch.arange(5)
    head = nn.Linear(8, 32, bias=False).requires_grad_(False)
    LabelledLoss()(head, states, labels).backward()
    assert states.grad.any() and head.weight.grad is None

    class Adapter(nn.Linear):
        def forward(self, state):
            return super().forward(state) + 1000 * F.one_hot(torch.tensor(0), 32)

    assert LabelledLoss()(Adapter(8, 32, bias=False), states, labels) > 700


def test_memory_is_kept_in_the_context_alone(monkeypatch):
    calls = []
    library = SimpleNamespace(mallopt=lambda *call: calls.append(call), malloc_trim=lambda pad: calls.append("trim"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(cpu_steps.platform, "libc_ver", lambda: ("glibc", "2.36"))
    with keep_freed_memory():
        assert (-1, -1) in calls and "trim" not in calls
    assert calls[-1] == "trim" and (-4, 65536) in calls
    calls.clear()
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    with keep_freed_memory():
        assert not calls
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    monkeypatch.setattr(cpu_steps.platform, "libc_ver", lambda: ("", ""))
    with keep_freed_memory():
        assert not calls
