"""Batch normalisation where several processes share one step of pre-training (`cadloc.workers`).

Nothing of the result but rounding depends on their number: losses see the features of the whole batch, batch
normalisation its statistics, and every process the mean gradient. The exception is a batch that is encoded in pieces
(`Regression.images_at_once`): batch normalisation sees a piece of every process. The gradients of the `small` encoder
are 3 MB per step.
"""

from __future__ import annotations

from torch import Tensor, nn

from cadloc.workers import Workers


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the parts of all workers, which must be of one size.

    `torch.nn.SyncBatchNorm` does the same for GPUs only.
    """

    def __init__(self, own: nn.BatchNorm2d, workers: Workers) -> None:
        super().__init__(own.num_features, own.eps, own.momentum, own.affine, own.track_running_stats)
        self.load_state_dict(own.state_dict())
        self._workers = workers

    def forward(self, input: Tensor) -> Tensor:
        """Normalised (B, C, H, W); in training with the statistics of all workers' batches."""
        if not self.training:
            return super().forward(input)
        input = input.float()  # autocast may have made it shorter
        mean = self._workers.mean(input.mean((0, 2, 3)))
        centred = input - mean[:, None, None]
        variance = self._workers.mean(centred.square().mean((0, 2, 3)))
        self._remember(mean.detach(), variance.detach(), input.numel() // self.num_features * self._workers.size)
        normalised = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            normalised = normalised * self.weight[:, None, None] + self.bias[:, None, None]
        return normalised

    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)


def share_batch_norms(module: nn.Module, workers: Workers) -> None:
    """Replaces every batch normalisation below `module` by one over all workers; alone nothing changes."""
    if workers.size == 1:
        return
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, SharedBatchNorm(child, workers))
