"""What training is compared with: a loop in the manner of ACE's, on the CPU in float32.

As published and as its authors' code is described: the samples' poses and calibrations lie beside their features and
are gathered in every iteration, 1×1 convolutions read the batch as fake images of 16 × 32 cells, masks pick the valid
predictions and the others, the host reads numbers off the loss, AdamW steps tensor by tensor, and an epoch's order is
one permutation. Equal to ours in head, batch, loss and samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cadloc.head_config import AceHead
from cadloc.loss_config import ReprojectionLoss
from cadloc.samples import Samples

CELLS = (16, 32)
"""Rows and columns of a fake image; a batch is a multiple of their product."""

_LARGEST_SCALE, _SMALLEST_SCALE = 4.0, 0.01


class FakeImageHead(nn.Module):
    """ACE's head as 1×1 convolutions: features (I, C, 16, 32) become scene coordinates (I, 3, 16, 32)."""

    def __init__(self, dimensions: int, config: AceHead, mean: Tensor) -> None:
        super().__init__()
        width = config.width
        self.skip = nn.Identity() if dimensions == width else nn.Conv2d(dimensions, width, 1)
        self.first = nn.ModuleList(nn.Conv2d(before, width, 1) for before in (dimensions, width, width))
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(3)) for _ in range(config.blocks)
        )
        self.last = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(2))
        self.read_out = nn.Conv2d(width, 4, 1)
        self.register_buffer("mean", mean.reshape(1, 3, 1, 1))
        self.register_buffer("beta", torch.tensor([math.log(2) / (1 - 1 / _LARGEST_SCALE)]))

    def forward(self, features: Tensor) -> Tensor:
        """Coordinates (I, 3, 16, 32) in `cad`, metres."""
        x = self.skip(features) + _through(self.first, features)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleList)
            x = x + _through(block, x)
        raw = self.read_out(_through(self.last, x))
        assert isinstance(self.beta, Tensor)
        h = nn.functional.softplus(raw[:, 3:], beta=self.beta.item()) + 1 / _LARGEST_SCALE
        coordinates: Tensor = raw[:, :3] / h.clamp(max=1 / _SMALLEST_SCALE) + self.mean
        return coordinates


class AceLoop:
    """Steps of such a loop; `step` returns what the host logs of it."""

    def __init__(self, samples: Samples, config: AceHead, batch_size: int, iterations: int = 25_000) -> None:
        view = samples.view.long()
        self._features = samples.features.clone()
        self._pixels = samples.pixels.clone()
        self._cam_from_cad, self._intrinsics = samples.cam_from_cad[view], samples.intrinsics[view]
        self._inverse_intrinsics = torch.linalg.inv(samples.intrinsics)[view]
        centres = torch.linalg.inv(samples.cam_from_cad)[:, :3, 3]
        torch.manual_seed(0)
        self._head = FakeImageHead(samples.dimensions, config, centres[view].mean(dim=0))
        self._batch_size, self._iterations, self._loss = batch_size, iterations, ReprojectionLoss()
        self._optimizer = torch.optim.AdamW(self._head.parameters(), lr=5e-4, foreach=False, fused=False)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, max_lr=5e-3, total_steps=iterations, cycle_momentum=False
        )
        self._generator = torch.Generator().manual_seed(0)
        self._order, self._place = torch.empty(0, dtype=torch.int64), 0

    def step(self, iteration: int) -> float:
        """One update; the batch's mean loss."""
        chosen = self._chosen()
        features = self._features[chosen].float()
        pixels, cam_from_cad = self._pixels[chosen], self._cam_from_cad[chosen]
        intrinsics, inverse_intrinsics = self._intrinsics[chosen], self._inverse_intrinsics[chosen]

        images = features.reshape(-1, *CELLS, features.shape[1]).permute(0, 3, 1, 2)
        predicted = self._head(images).permute(0, 2, 3, 1).flatten(0, 2)
        ones = torch.ones_like(predicted[:, :1])
        points_cam = torch.bmm(cam_from_cad, torch.cat([predicted, ones], dim=1)[:, :, None])[:, :3]
        projected = torch.bmm(intrinsics, points_cam)
        projected[:, 2].clamp_(min=self._loss.depth_min_m)
        errors_px = torch.norm(projected[:, :2, 0] / projected[:, 2:, 0] - pixels, dim=1, p=1)
        targets = self._loss.depth_target_m * torch.bmm(inverse_intrinsics, torch.cat([pixels, ones], 1)[:, :, None])
        loss, valid_share = self._masked(points_cam[..., 0], targets[..., 0], errors_px, iteration)

        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._schedule.step()
        return float(loss.item()) + 0.0 * valid_share

    def _masked(self, points_cam: Tensor, targets: Tensor, errors_px: Tensor, iteration: int) -> tuple[Tensor, float]:
        """The loss, with valid and invalid predictions picked by masks; and the share of valid ones, for the log."""
        loss = self._loss
        invalid = (points_cam[:, 2] < loss.depth_min_m) | (points_cam[:, 2] > loss.depth_max_m)
        valid = ~(invalid | (errors_px > loss.hard_clamp_px))
        tau = loss.soft_clamp_px * math.sqrt(1 - (iteration / self._iterations) ** 2) + loss.soft_clamp_min_px
        of_valid = (tau * torch.tanh(errors_px[valid] / tau)).sum()
        of_others = (points_cam[~valid] - targets[~valid]).abs().sum()
        return (of_valid + of_others) / self._batch_size, float(valid.sum().item()) / self._batch_size

    def _chosen(self) -> Tensor:
        """The next batch's samples, of an order drawn anew in every epoch."""
        if self._place + self._batch_size > len(self._order):
            self._order, self._place = torch.randperm(len(self._features), generator=self._generator), 0
        self._place += self._batch_size
        return self._order[self._place - self._batch_size : self._place]


def _through(layers: nn.ModuleList, values: Tensor) -> Tensor:
    for layer in layers:
        values = nn.functional.relu(layer(values))
    return values
