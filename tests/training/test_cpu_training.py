"""Fast dropout drops as much, and changes nothing else."""

import torch
from torch import nn

from mmcot import MMCoTConfig, MMCoTForConditionalGeneration
from mmcot.training.cpu_training import FastDropout, dropout, fast_dropout, keep_mask


def network(dropout_rate=0.1):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return MMCoTForConditionalGeneration(
        MMCoTConfig(**sizes, image_feature_size=12, dropout_rate=dropout_rate)
    ).train()


def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 64, (3, 9), generator=generator)
    mask = torch.arange(9) < torch.tensor([[9], [6], [3]])
    labels = torch.randint(2, 64, (3, 5), generator=generator)
    labels[1, 3:] = -100
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def test_share_scale_and_gradient():
    torch.manual_seed(0)
    values = torch.ones(400, 1001, requires_grad=True)
    dropped = dropout(values, 0.1)
    kept = dropped != 0
    assert abs(kept.float().mean() - 0.9) < 0.003
    assert torch.allclose(dropped[kept], torch.tensor(1 / 0.9))
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach())


def test_masks_follow_pytorchs_random_state():
    torch.manual_seed(3)
    first, second = keep_mask(torch.Size([50, 50]), 0.5), keep_mask(torch.Size([50, 50]), 0.5)
    torch.manual_seed(3)
    assert torch.equal(keep_mask(torch.Size([50, 50]), 0.5), first) and not torch.equal(first, second)


def test_without_dropout_losses_and_gradients_are_the_same():
    model = network(dropout_rate=0.0)
    loss = model(**batch()).loss
    loss.backward()
    gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    model.zero_grad()
    with fast_dropout(model):
        # p this small drops nothing, but takes the way of dropout through attention
        for module in model.modules():
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 1e-9
        fast = model(**batch()).loss
        fast.backward()
    assert torch.allclose(loss, fast, atol=1e-6)
    for one, other in zip(gradients, (w.grad for w in model.parameters() if w.grad is not None), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_model_is_as_before_afterwards():
    model = network()
    kinds = [type(module) for module in model.modules()]
    with fast_dropout(model):
        assert any(type(module) is FastDropout for module in model.modules())
        assert model.encoder.config._attn_implementation == "mmcot_cpu_training"
        torch.manual_seed(0)
        one = model(**batch()).loss
        torch.manual_seed(0)
        assert model(**batch()).loss == one != model(**batch()).loss
    assert [type(module) for module in model.modules()] == kinds
    assert model.decoder.config._attn_implementation == "sdpa"
    assert nn.Dropout in kinds


def test_loss_alone_equals_loss_with_logits():
    for settings in ({}, {"loss_on_padding": True}):
        model = network(dropout_rate=0.0)
        model.config.loss_on_padding = bool(settings)
        whole, alone = model(**batch()), model(**batch(), skip_logits=True)
        assert alone.logits is None and torch.allclose(whole.loss, alone.loss, atol=1e-6)
        counted = model(**batch(), skip_logits=True, num_items_in_batch=torch.tensor(7)).loss
        assert torch.allclose(model(**batch(), num_items_in_batch=torch.tensor(7)).loss, counted, atol=1e-6)
