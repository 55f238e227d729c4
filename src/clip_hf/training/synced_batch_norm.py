"""Batch norm over the images of all devices, which makes a ResNet's training, too, that of one process.

`torch.nn.SyncBatchNorm` serves GPUs alone, and moves its running statistics again where the gradient cache computes a
chunk a second time.

Shapes: B images of a device's chunk, C channels, H and W pixels, R ranks.
"""

import torch
from torch import Tensor, nn

from clip_hf.distributed import all_gather, world_size
from clip_hf.model.chunked_embedding_clip_hf import is_recomputing
from clip_hf.model.modeling_clip_hf_resnet import ClipHfBatchNorm2d


class SyncedBatchNorm2d(ClipHfBatchNorm2d):
    """`ClipHfBatchNorm2d` that normalises a chunk of all ranks at a time, which must be of one size."""

    momentum: float
    num_batches_tracked: Tensor
    running_mean: Tensor
    running_var: Tensor

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Returns (B, C, H, W), normalised, for (B, C, H, W)."""
        if not self.training or world_size() == 1:
            return super().forward(hidden_states)
        values = hidden_states.float()
        moments = torch.stack(torch.var_mean(values, (0, 2, 3), correction=0))
        variances, means = all_gather(moments[None]).unbind(1)  # (R, C) each
        mean = means.mean(0)
        variance = (variances + (means - mean) ** 2).mean(0)
        if not is_recomputing():
            self._move_running_statistics(mean, variance, values.numel() // len(mean) * world_size())
        gain = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * gain
        return (values * gain[:, None, None] + shift[:, None, None]).to(hidden_states.dtype)

    @torch.no_grad()
    def _move_running_statistics(self, mean: Tensor, variance: Tensor, num_values: int) -> None:
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * num_values / (num_values - 1), self.momentum)


def synchronize_batch_norm(model: nn.Module) -> None:
    """Makes each batch norm of the model a `SyncedBatchNorm2d`, its tensors left as they are.

    Args:
        model: with a ResNet.
    """
    for module in model.modules():
        if isinstance(module, ClipHfBatchNorm2d):
            module.__class__ = SyncedBatchNorm2d
