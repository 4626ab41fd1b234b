"""Pre-training by distillation: the encoder learns to see what another feature extractor sees.

Two losses: each cell's features, read out linearly, resemble the teacher's principal components; and cells that are
alike to the teacher are alike to the encoder. The read-out exists for training only: heads and matching use the
encoder's own features, which the second loss shapes. By default the teacher sees the plain render and the encoder its
photograph, so that what weather and camera do is unlearned on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cadloc.encoders.distillation import (
    extracted,
    likeness_loss,
    load_extractor,
    on_grid,
    principal_components,
    relation_loss,
)
from cadloc.encoders.images import STRIDE, features_of
from cadloc.pretraining_config import Distillation
from cadloc.pretraining_contrast import at_cells
from cadloc.pretraining_objective import Material, Objective, Trainee, Update, as_images, device_of
from cadloc.pretraining_pairs import drawn_about, grid_of, plain_views, points_of, under_sky
from cadloc.pretraining_photos import photographed

_FITTING = 2**31
"""Stands in the place of a step in the stream that the images for the components are drawn from."""


@dataclass(frozen=True)
class Lesson:
    """What the encoder and the teacher look at, both (H, W, 3), the cells (rows, columns) where they see the same
    surface, and m cells (m,) to be compared with one another."""

    seen: NDArray[np.uint8]
    shown: NDArray[np.uint8]
    visible: NDArray[np.bool_]
    cells: NDArray[np.int_]


class TeachersFeatures(Objective):
    """Draws images, and compares the encoder's features of them with the teacher's."""

    def __init__(self, method: Distillation, material: Material) -> None:
        super().__init__()
        self._method, self._material = method, material
        self._slots = material.workers.share(method.images, "method.images")
        self._teacher = load_extractor(method.teacher)

    def prepare(self, dimensions: int, device: str) -> None:
        """Computes the teacher's components from images of the pool: the same in every process, at every start."""
        name = self._method.teacher
        maps = (extracted(self._teacher, name, images.to(device)) for images in self._fitting_images())
        self.components = principal_components(maps, self._method.components, name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._material.config.seed)
            self.read_out = nn.Conv2d(dimensions, len(self.components.basis), 1).to(device)

    def draw(self, step: int) -> list[Lesson]:
        """This worker's images of the step."""
        return [self._lesson(self._material.generator(step, slot)) for slot in self._slots]

    def loss(self, encoder: Trainee, drawn: list[Lesson], update: Update) -> Tensor:
        """Unlikeness of the cells, and of their likenesses to one another."""
        device = device_of(encoder)
        shown = as_images([lesson.shown for lesson in drawn], device)
        images = as_images([lesson.seen for lesson in drawn], device)
        features = features_of(encoder, images, self._material.config.precision)
        teacher = on_grid(self._target(shown), features.shape[2], features.shape[3])
        visible = torch.from_numpy(np.stack([lesson.visible for lesson in drawn])).to(device)
        cells = [lesson.cells for lesson in drawn]
        student_cells, teacher_cells = (
            at_cells(maps, cells).reshape(len(drawn), len(cells[0]), -1) for maps in (features, teacher)
        )
        relations = relation_loss(student_cells, teacher_cells)
        return likeness_loss(self.read_out(features), teacher, visible) + self._method.relations * relations

    def _target(self, images: Tensor) -> Tensor:
        return self.components.of(extracted(self._teacher, self._method.teacher, images))

    def _fitting_images(self) -> Iterator[Tensor]:
        for slot in range(self._method.fitting_images):
            lesson = self._lesson(self._material.generator(_FITTING, slot))
            yield as_images([lesson.shown], torch.device("cpu"))

    def _lesson(self, generator: np.random.Generator) -> Lesson:
        """A random view, cropped about a point it sees, and its photograph."""
        buildings = self._material.buildings
        views = plain_views(buildings[int(generator.integers(len(buildings)))])
        view = views[int(generator.integers(len(views)))]
        points_cad, _ = points_of(view, grid_of(view))
        known = points_cad[np.isfinite(points_cad).all(axis=1)]  # never empty: views of nothing are not in the pool
        view = drawn_about(view, known[int(generator.integers(len(known)))], self._material.size_px, generator)
        plain, background = view.image()
        picture, hidden = photographed(plain, background, generator)
        middle = slice(STRIDE // 2, None, STRIDE)
        visible = ~(hidden | background)[middle, middle]
        places = np.flatnonzero(visible) if visible.any() else np.arange(visible.size)
        shown = under_sky(view, generator) if self._method.clean_teacher else picture
        return Lesson(picture, shown, visible, generator.choice(places, self._method.cells))
