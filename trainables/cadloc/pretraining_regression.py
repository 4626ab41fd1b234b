"""Pre-training by scene coordinates of many buildings at once: how ACE's encoder was made.

A shared encoder, one small head per building (Brachmann et al., CVPR 2023, section 3.3). A step sees several views of
several buildings; each head gets the cells of all its views together, so the gradient of a single view weighs little.
Views beyond what fits are encoded piece by piece without a graph and once more for their gradients, as in GradCache
(Gao et al., 2021), here by checkpointing; losses, heads and results are those of one pass, but batch normalisation
sees a piece at a time: one of each worker's. Heads start anew from time to time: what only they know is lost, what the
features tell stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cadloc.contract import Fault, InputError
from cadloc.encoders.images import features_of
from cadloc.geometry import Array
from cadloc.head_config import AceHead
from cadloc.heads import build
from cadloc.heads.ace import AcePerceptron
from cadloc.loss_config import ReprojectionLoss
from cadloc.losses.coordinate import CoordinatePhase
from cadloc.losses.phase import Phase, Prediction
from cadloc.losses.reprojection import ReprojectionPhase
from cadloc.pretraining_config import Regression
from cadloc.pretraining_contrast import at_cells
from cadloc.pretraining_objective import Material, Objective, Trainee, Update, as_images, device_of
from cadloc.pretraining_pairs import PooledBuilding, WarpedView, drawn_about, grid_of, plain_views, points_of
from cadloc.pretraining_photos import photographed
from cadloc.samples import Batch

_TRIES = 50
_SALT_HEAD, _SALT_TURN = 1_009, 100_003


@dataclass(frozen=True)
class Taken:
    """One picture (H, W, 3) of building `owner`, and m of its cells: flat indices (m,), pixels (m, 2), the points
    (m, 3) they see; `cam_from_cad` (4, 4) and `intrinsics` (3, 3) are the picture's."""

    owner: int
    picture: NDArray[np.uint8]
    cells: NDArray[np.int_]
    pixels: Array
    points_cad: Array
    cam_from_cad: Array
    intrinsics: Array


@dataclass(frozen=True)
class Views:
    """A worker's pictures, and the buildings that any worker's pictures show."""

    taken: list[Taken]
    owners: list[int]


class SceneCoordinates(Objective):
    """Draws views, and lets each building's head say where their cells lie."""

    def __init__(self, method: Regression, material: Material) -> None:
        super().__init__()
        self._method, self._material = method, material
        self._slots = material.workers.share(method.images, "method.images")
        self.heads = nn.ModuleList()

    def prepare(self, dimensions: int, device: str) -> None:
        """Makes the heads; each measures from the middle of its building's cameras."""
        self._dimensions = dimensions
        for index, building in enumerate(self._material.buildings):
            head = self._new_head(index, 0)
            head.centre.copy_(torch.from_numpy(building.cad_from_cam[:, :3, 3].mean(axis=0)))
            self.heads.append(head.to(device))

    def begin(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Starts heads anew whose time has come; their times are spread evenly."""
        period, count = self._method.head_reset, len(self.heads)
        if not period or not step:
            return
        for index, head in enumerate(self.heads):
            turn, left = divmod(step + index * period // count, period)
            if left == 0:
                fresh = dict(self._new_head(index, turn).named_parameters())
                for name, parameter in head.named_parameters():
                    parameter.data.copy_(fresh[name].data)
                    optimizer.state.pop(parameter, None)

    def draw(self, step: int) -> Views:
        """This worker's views of the step; a building's views follow one another."""
        method, buildings = self._method, self._material.buildings
        groups = -(-method.images // method.images_per_building)
        chosen = [int(i) for i in self._material.generator(step).permutation(len(buildings))[:groups]]
        owners = [chosen[slot // method.images_per_building % len(chosen)] for slot in range(method.images)]
        taken = [self._take(owners[slot], step, slot) for slot in self._slots]
        return Views(taken, sorted(set(owners)))

    def loss(self, encoder: Trainee, drawn: Views, update: Update) -> Tensor:
        """Mean loss over all cells; all updates but the last move the heads alone."""
        images = as_images([taken.picture for taken in drawn.taken], device_of(encoder))
        features = encoded(encoder, images, self._method.images_at_once, self._material.config.precision)
        rows = at_cells(features, [taken.cells for taken in drawn.taken])
        rows = rows.reshape(len(drawn.taken), self._method.cells, -1)
        for _ in range(self._method.head_updates - 1):
            update(self._loss_of_heads(rows.detach(), drawn), self.active(drawn))
        return self._loss_of_heads(rows, drawn)

    def active(self, drawn: Views) -> list[nn.Parameter]:
        """The parameters of the heads whose buildings the step shows."""
        return [parameter for owner in drawn.owners for parameter in self.heads[owner].parameters()]

    def _loss_of_heads(self, rows: Tensor, drawn: Views) -> Tensor:
        """Of features (images, m, C): every image has as many cells, so the mean over images is that over cells."""
        by_owner: dict[int, list[int]] = defaultdict(list)
        for place, taken in enumerate(drawn.taken):
            by_owner[taken.owner].append(place)
        total = rows.new_zeros(())
        for owner, places in by_owner.items():
            batch = _batch(rows[places].flatten(0, 1), [drawn.taken[place] for place in places])
            predicted = Prediction(self.heads[owner](batch.features).coordinates)
            total = total + self._phase().loss(predicted, batch) * (len(places) / len(drawn.taken))
        return total

    def _phase(self) -> Phase:
        if self._method.loss == "coordinate":
            return CoordinatePhase()
        return ReprojectionPhase(ReprojectionLoss(), progress=0.0)

    def _new_head(self, index: int, turn: int) -> AcePerceptron:
        method = self._method
        seed = self._material.config.seed + _SALT_HEAD * index + _SALT_TURN * turn
        head = build(AceHead(width=method.head_width, blocks=method.head_blocks), self._dimensions, seed)
        assert isinstance(head, AcePerceptron)
        return head

    def _take(self, owner: int, step: int, slot: int) -> Taken:
        generator = self._material.generator(step, slot)
        for _ in range(_TRIES):
            taken = _drawn_view(
                owner, self._material.buildings[owner], self._material.size_px, self._method.cells, generator
            )
            if taken is not None:
                return taken
        found = f"{self._method.cells}, and no crop of building {owner} with as many known cells in {_TRIES} draws"
        action = "ask for fewer, or for larger crops (width_px, height_px)"
        raise InputError(Fault("configuration", "method.cells", found, "what crops show", action))


def _drawn_view(
    owner: int, building: PooledBuilding, size_px: tuple[int, int], cells: int, generator: np.random.Generator
) -> Taken | None:
    """A random view, scaled, turned and cropped about a point it sees; None when too few of its cells see any."""
    plain = plain_views(building)[int(generator.integers(len(building.images)))]
    points_cad, _ = points_of(plain, grid_of(plain))
    known = np.flatnonzero(np.isfinite(points_cad).all(axis=1))
    if not len(known):
        return None
    view = drawn_about(plain, points_cad[generator.choice(known)], size_px, generator)
    picture, hidden = photographed(*view.image(), generator)
    chosen = _known_cells(view, hidden)
    if len(chosen) < cells:
        return None
    chosen = np.sort(generator.choice(chosen, cells, replace=False))
    pixels = grid_of(view)[chosen]
    points = points_of(view, pixels)[0]
    return Taken(owner, picture, chosen, pixels, points, view.warped_from_cad, view.warp.intrinsics)


def _known_cells(view: WarpedView, hidden: NDArray[np.bool_]) -> NDArray[np.int_]:
    """Cells whose point is known and not hidden (H, W) by something in front of it."""
    pixels = grid_of(view)
    column, row = pixels.astype(int).T
    return np.flatnonzero(np.isfinite(view.depth_m(pixels)) & ~hidden[row, column])


def _batch(features: Tensor, taken: Sequence[Taken]) -> Batch:
    def stacked(arrays: list[Array]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays).astype(np.float32)).to(features.device)

    cameras = [np.repeat(item.cam_from_cad[None], len(item.cells), axis=0) for item in taken]
    intrinsics = [np.repeat(item.intrinsics[None], len(item.cells), axis=0) for item in taken]
    pixels, points = [item.pixels for item in taken], [item.points_cad for item in taken]
    return Batch(features, stacked(pixels), stacked(points), stacked(cameras), stacked(intrinsics))


def encoded(encoder: nn.Module, images: Tensor, at_once: int, precision: str = "float32") -> Tensor:
    """Features (B, C, H/8, W/8) with gradients of images (B, 3, H, W), in the memory of `at_once` of them.

    More are encoded in pieces whose graphs are made only when their gradients are asked for. In training, batch
    normalisation takes its statistics from a piece, not from all images.
    """
    if len(images) <= at_once:
        return features_of(encoder, images, precision)
    contexts = partial(_first_and_second, encoder)
    pieces = torch.split(images, at_once)
    maps = [
        checkpoint(features_of, encoder, piece, precision, use_reentrant=False, context_fn=contexts) for piece in pieces
    ]
    return torch.cat(maps)


def _first_and_second(encoder: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_kept(encoder)


@contextmanager
def _statistics_kept(encoder: nn.Module) -> Iterator[None]:
    """Batch normalisations do not count the same images a second time."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
