"""The fusion against `nn.MultiheadAttention`, and the equivalences that the package builds on."""

import pytest
import torch
from torch import nn

from mmcot.fusion_mmcot import GatedFusion

D, W = 16, 6


@pytest.fixture
def fusion() -> GatedFusion:
    torch.manual_seed(0)
    return GatedFusion(D, W)


@pytest.fixture
def text() -> torch.Tensor:
    return torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("heads", [1, 4])
def test_equals_multihead_attention_and_a_gate(text, heads):
    torch.manual_seed(0)
    fusion = GatedFusion(D, W, num_heads=heads)
    image = torch.randn(2, 7, W)
    attention = nn.MultiheadAttention(D, heads, batch_first=True)
    parts = [fusion.q_proj, fusion.k_proj, fusion.v_proj]
    attention.in_proj_weight.data = torch.cat([part.weight for part in parts])
    attention.in_proj_bias.data = torch.cat([part.bias for part in parts])
    attention.out_proj.load_state_dict(fusion.out_proj.state_dict())
    projected = fusion.image_proj(image)
    found, weights = attention(text, projected, projected, average_attn_weights=False)
    gate = torch.sigmoid(fusion.gate_proj(torch.cat([text, found], -1)))

    fused, got_weights, got_gate = fusion(text, image, output_attentions=True)
    torch.testing.assert_close(fused, (1 - gate) * text + gate * found)
    torch.testing.assert_close(got_weights, weights)
    torch.testing.assert_close(got_gate, gate)


@pytest.mark.parametrize("masked", [False, True])
def test_both_attention_paths_agree(fusion, text, masked):
    image = torch.randn(2, 7, W)
    mask = torch.tensor([[True] * 4 + [False] * 3, [False] * 7]) if masked else None
    fast, no_weights, no_gate = fusion(text, image, mask)
    explicit, weights, _ = fusion(text, image, mask, output_attentions=True)
    torch.testing.assert_close(fast, explicit)
    assert no_weights is None and no_gate is None
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 1, 5))


def test_repeated_patches_equal_one(fusion, text):
    """The original repeats one ResNet vector 512 times."""
    vector = torch.randn(2, 1, W)
    torch.testing.assert_close(fusion(text, vector)[0], fusion(text, vector.expand(-1, 512, -1))[0])


@pytest.mark.parametrize("gate", ["sigmoid", "tanh", "none"])
def test_no_image_is_a_zero_patch_with_less_arithmetic(text, gate):
    torch.manual_seed(0)
    fusion = GatedFusion(D, W, gate=gate)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.normal_()  # biases too
        short, _, _ = fusion(text)
    zeros, _, _ = fusion(text, torch.zeros(2, 3, W))
    torch.testing.assert_close(short, zeros)
    fusion(text)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in fusion.parameters())


def test_no_image_is_a_block_of_zero_patches(fusion, text):
    """The original feeds a block of zeros for a question without an image."""
    block = fusion(text, torch.zeros(2, 100, W))[0]
    torch.testing.assert_close(fusion(text)[0], block)
    torch.testing.assert_close(fusion(text, torch.zeros(2, 1, W))[0], block)
    torch.testing.assert_close(fusion(text, torch.zeros(2, 0, W))[0], block)
    nowhere = torch.zeros(2, 9, dtype=torch.bool)
    torch.testing.assert_close(fusion(text, torch.full((2, 9, W), torch.nan), nowhere)[0], block)
    assert not torch.allclose(block, text)  # and it isn't "no fusion": the projections' biases act


def test_masked_patches_are_not_seen(fusion, text):
    image = torch.randn(2, 7, W)
    mask = torch.arange(7)[None] < torch.tensor([[7], [3]])
    image[1, 3:] = torch.inf
    fused = fusion(text, image, mask)[0]
    torch.testing.assert_close(fused[:1], fusion(text[:1], image[:1])[0])
    torch.testing.assert_close(fused[1:], fusion(text[1:], image[1:, :3])[0])


def test_a_tanh_gate_begins_with_the_text_alone(text):
    fusion = GatedFusion(D, W, gate="tanh")
    image = torch.randn(2, 3, W)
    fused, _, gate = fusion(text, image, output_attentions=True)
    torch.testing.assert_close(fused, text)
    assert gate.shape == text.shape and not gate.any()
    fusion.gate_scale.data.fill_(0.5)
    summed = GatedFusion(D, W, gate="none")
    summed.load_state_dict({name: value for name, value in fusion.state_dict().items() if name != "gate_scale"})
    share = torch.tensor(0.5).tanh()
    torch.testing.assert_close(fusion(text, image)[0], text + share * (summed(text, image)[0] - text))


def test_without_a_gate_the_two_are_summed(text):
    fusion = GatedFusion(D, W, gate="none")
    assert not any("gate" in name for name, _ in fusion.named_parameters())
    gated = GatedFusion(D, W)
    gated.load_state_dict(fusion.state_dict(), strict=False)
    gated.gate_proj.weight.data.zero_()
    gated.gate_proj.bias.data.fill_(100.0)  # a gate that lets only the image through
    image = torch.randn(2, 3, W)
    torch.testing.assert_close(fusion(text, image)[0], text + gated(text, image)[0])


@pytest.mark.parametrize(
    ("features", "mask", "message"),
    [
        (torch.zeros(2, 3, W + 1), None, rf"\(2, 3, {W + 1}\).*patches, {W}"),
        (torch.zeros(2, W), None, r"\(2, 6\)"),
        (torch.zeros(2, 3, W), torch.ones(2, 4), r"\(2, 4\).*\(2, 3\)"),
    ],
)
def test_wrong_shapes_are_named(fusion, text, features, mask, message):
    with pytest.raises(ValueError, match=message):
        fusion(text, features, mask)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="3 heads"):
        GatedFusion(D, W, num_heads=3)
