"""Several vision backbones as one: their patches stand one after the other, each in columns of its own.

With zeros in the other columns, the fusion's one projection of the image is a projection for each backbone.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import can_return_tuple

from .configuration_mmcot import MMCoTBackbonesConfig
from .errors_mmcot import ModelError
from .vision_mmcot import build_vision, get_image_features, vision_feature_size


class MMCoTBackbones(PreTrainedModel):
    """Backbones that look at the same pixels, each brought to its own mean, deviation and size."""

    config: MMCoTBackbonesConfig
    config_class = MMCoTBackbonesConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: Any):
        super().__init__(config)
        if len(config.backbones) < 2:
            raise ModelError(
                f"vision_config has {len(config.backbones)} backbones: give two or more, or the one itself"
            )
        backbones = [build_vision(backbone) for backbone in config.backbones]
        self.backbones = nn.ModuleList(backbones)
        self.widths = list(map(vision_feature_size, backbones, config.vision_features))
        config.hidden_size = sum(self.widths)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> BaseModelOutput:
        """Runs all of them.

        Args:
            pixel_values: (images, 3, H, W), by the image processor that `pixel_scales` and `pixel_shifts` begin from.
            pixel_mask: (images, H, W), for those that take one.

        Returns:
            `last_hidden_state` (images, patches of all, `hidden_size`).
        """
        features, before = [], 0
        for number, backbone in enumerate(self.backbones):
            width = self.widths[number]
            pixels = self._pixels_for(number, pixel_values)
            feature = self.config.vision_features[number]
            found = get_image_features(cast(PreTrainedModel, backbone), pixels, pixel_mask, None, feature, width)
            columns = (before, sum(self.widths) - before - width)
            features.append(F.pad(cast(Tensor, found.pooler_output), columns))
            before += width
        return BaseModelOutput(last_hidden_state=torch.cat(features, dim=1))

    def _pixels_for(self, number: int, pixel_values: Tensor) -> Tensor:
        scale, shift = (
            pixel_values.new_tensor(values[number])[:, None, None]
            for values in (self.config.pixel_scales, self.config.pixel_shifts)
        )
        pixels = pixel_values * scale + shift
        size = self.config.image_sizes[number]
        if size is not None and list(pixels.shape[-2:]) != list(size):
            # in float32, as CPUs have no antialiasing in less
            pixels = F.interpolate(pixels.float(), tuple(size), mode="bicubic", antialias=True).to(pixel_values.dtype)
        return pixels


__all__ = ["MMCoTBackbones"]
