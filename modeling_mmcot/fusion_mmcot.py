"""The gated fusion of text and image features, the only network that Multimodal-CoT adds to T5.

Section 4.2 of arXiv 2302.00923; the arithmetic agrees with `T5ForMultimodalGeneration` of amazon-science/mm-cot, whose
`nn.MultiheadAttention` is four linear layers here, so that adapters and quantisation can replace each of them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors_mmcot import ModelError


class GatedFusion(nn.Module):
    """Each token attends to the image's patches; a gate mixes what it finds into the token.

    `V' = W_v V`, `A = MultiHeadAttention(q=H, k=V', v=V')`, `g = sigmoid(W_g [H; A])`, `H' = (1 - g) * H + g * A`.

    Args:
        hidden_size: width of the text's hidden states.
        image_size: width of the image features.
        num_heads: attention heads; must divide `hidden_size`.
        gate: "sigmoid" as above; "tanh": `H' = H + tanh(a) * A` with one learnt number, which begins at 0, so that a
            pretrained T5 begins as it is (Flamingo, arXiv 2204.14198, section 2.2); "none": `H' = H + A`.
    """

    def __init__(self, hidden_size: int, image_size: int, num_heads: int = 1, gate: str = "sigmoid"):
        super().__init__()
        if hidden_size % num_heads:
            raise ModelError(f"{num_heads} heads don't divide a hidden size of {hidden_size}")
        self.num_heads = num_heads
        self.image_size = image_size
        self.image_proj = nn.Linear(image_size, hidden_size)
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        self.gate_proj = nn.Linear(2 * hidden_size, hidden_size) if gate == "sigmoid" else None
        self.gate_scale = nn.Parameter(torch.zeros(1)) if gate == "tanh" else None

    def forward(
        self,
        hidden_states: Tensor,
        image_features: Tensor | None = None,
        image_attention_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Fuse the two.

        Args:
            hidden_states: (batch, length, hidden_size).
            image_features: (batch, patches, image_size); none means no image.
            image_attention_mask: (batch, patches), False where there is no patch. A row without any has no image.
            output_attentions: return the attention and the gate too.

        Returns:
            Fused states (batch, length, hidden_size); attention (batch, heads, length, patches) and gate (batch, text,
            hidden_size), or None. No image is one all-zero patch, which equals the original's block of zero patches:
            attention over equal keys is attention over one of them.

        Raises:
            ModelError: features or mask are of another shape.
        """
        features, mask = self._with_zero_patch(hidden_states, image_features, image_attention_mask)
        image = self.image_proj(features)  # (B, P, D)
        query = self._split_heads(self.q_proj(hidden_states))  # (B, heads, T, D / heads)
        key = self._split_heads(self.k_proj(image))  # (B, heads, P, D / heads)
        value = self._split_heads(self.v_proj(image))
        attention = None
        if output_attentions:
            scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (B, heads, T, P)
            if mask is not None:
                scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            attention = scores.softmax(-1)
            found = attention @ value
        else:
            # not by `attn_implementation`: the one head is too wide for the kernels of flash and flex attention
            found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        found = self.out_proj(found.transpose(1, 2).flatten(2))  # (B, T, D)
        if self.gate_proj is not None:
            gate = torch.sigmoid(self.gate_proj(torch.cat([hidden_states, found], dim=-1)))
            fused = (1 - gate) * hidden_states + gate * found
        elif self.gate_scale is not None:
            gate = self.gate_scale.tanh().to(found.dtype).expand_as(found)
            fused = hidden_states + gate * found
        else:
            return hidden_states + found, attention, None
        return fused, attention, gate if output_attentions else None

    def _split_heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, n, D / heads)

    def _with_zero_patch(self, hidden_states, features, mask) -> tuple[Tensor, Tensor | None]:
        """Features in the text's type, and their mask (B, 1, 1, P); a row without an image has one all-zero patch."""
        if features is None or features.shape[1] == 0:
            return hidden_states.new_zeros(hidden_states.shape[0], 1, self.image_size), None
        if features.dim() != 3 or features.shape[-1] != self.image_size:
            raise ModelError(
                f"image_features are {tuple(features.shape)}; these weights take (batch, patches, {self.image_size})"
            )
        features = features.to(hidden_states)
        if mask is None:
            return features, None
        if mask.shape != features.shape[:2]:
            raise ModelError(
                f"image_attention_mask is {tuple(mask.shape)}, but there are {tuple(features.shape[:2])} patches"
            )
        mask = mask.to(device=features.device, dtype=torch.bool)
        features = features.masked_fill(~mask[..., None], 0)  # padding may hold anything, even NaN
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        return features, (mask | (first & ~mask.any(-1, keepdim=True)))[:, None, None]


__all__ = ["GatedFusion"]
