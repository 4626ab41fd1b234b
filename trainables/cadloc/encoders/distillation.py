"""Another feature extractor as teacher: how it is found, what its features are reduced to, and likeness to them.

A teacher is any callable: RGB images (B, 3, H, W) uint8 to features (B, C, h, w) of any float type, on whatever grid.
Nothing of it is kept in the encoder but what the encoder learns.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from cadloc.contract import Fault, InputError

GROUP = "cadloc.feature_extractors"
KEY = "method.teacher"

Extractor: TypeAlias = Callable[[Tensor], Tensor]
"""Features (B, C, h, w) of RGB images (B, 3, H, W) uint8; called without gradients, on the trained encoder's device."""


@dataclass(frozen=True)
class Components:
    """Principal components of features: `mean` (C,) and `basis` (k, C), which is orthonormal."""

    mean: Tensor
    basis: Tensor

    def of(self, features: Tensor) -> Tensor:
        """Components (B, k, h, w) of features (B, C, h, w)."""
        centred = features - self.mean[:, None, None].to(features)
        return torch.einsum("kc,bchw->bkhw", self.basis.to(features), centred)


def load_extractor(name: str) -> Extractor:
    """The function `module:function`, or the entry point `name` of the group `cadloc.feature_extractors`.

    Raises InputError when there is none, or when it cannot be called.
    """
    found = _from_module(*name.split(":", 1)) if ":" in name else _from_entry_point(name)
    if not callable(found):
        raise _fault(name, f"a {type(found).__name__}", "a function: images (B, 3, H, W) to features (B, C, h, w)")
    extractor: Extractor = found
    return extractor


@torch.no_grad()
def extracted(extractor: Extractor, name: str, images: Tensor) -> Tensor:
    """Float32 features (B, C, h, w) of images (B, 3, H, W) uint8. Raises InputError for any other answer."""
    features = extractor(images)
    allowed = f"finite float features ({len(images)}, C, h, w) for {len(images)} images"
    if not isinstance(features, Tensor):
        raise _fault(name, f"a {type(features).__name__} as answer", allowed)
    shape = tuple(features.shape)
    if len(shape) != 4 or shape[0] != len(images) or 0 in shape or not features.is_floating_point():
        raise _fault(name, f"an answer of shape {shape}, {features.dtype}", allowed)
    if not torch.isfinite(features).all():
        raise _fault(name, "features that are not finite", allowed)
    return features.detach().to(images.device, torch.float32)


def principal_components(features: Iterable[Tensor], most: int, name: str) -> Components:
    """The first `most` components (fewer for fewer channels) of maps (B, C, h, w), all cells alike.

    A component's sign is such that its largest entry is positive. Raises InputError for features that do not vary, or
    whose number of channels does.
    """
    count, total, products = 0, torch.zeros(0), torch.zeros(0)
    for maps in features:
        cells = maps.double().permute(0, 2, 3, 1).flatten(0, 2).cpu()
        if count and cells.shape[1] != len(total):
            raise _fault(name, f"{cells.shape[1]} channels after {len(total)}", "as many channels for every image")
        count += len(cells)
        total = cells.sum(0) if not len(total) else total + cells.sum(0)
        products = cells.T @ cells if not len(products) else products + cells.T @ cells
    mean = total / count
    values, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    if not values[-1] > 0:
        raise _fault(name, "the same features everywhere", "features that tell cells apart")
    kept = torch.arange(len(values) - 1, max(len(values) - 1 - most, -1), -1)
    basis = vectors[:, kept].T
    signs = basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
    return Components(mean.float(), (basis * signs).float())


def on_grid(features: Tensor, rows: int, columns: int) -> Tensor:
    """Features (B, C, rows, columns), interpolated between the cells of another grid over the same image."""
    if features.shape[2:] == (rows, columns):
        return features
    return interpolate(features, (rows, columns), mode="bilinear", align_corners=False, antialias=True)


def likeness_loss(student: Tensor, teacher: Tensor, visible: Tensor) -> Tensor:
    """1 - cosine of features (B, C, h, w) of the two, mean over each image's `visible` cells (B, h, w), then images."""
    distances = 1 - (normalize(student, dim=1) * normalize(teacher, dim=1)).sum(1)
    weights = visible.to(distances)
    return ((distances * weights).sum((1, 2)) / weights.sum((1, 2)).clamp_min(1)).mean()


def relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square by which the cosines among cells (B, m, ·) of one image differ between the two (B, m, C), (B, m, D).

    Relational distillation (Park et al., CVPR 2019) with cosines: only which cells are alike counts, not the axes.
    """
    ours, theirs = (unit @ unit.transpose(1, 2) for unit in (normalize(student, dim=2), normalize(teacher, dim=2)))
    return (ours - theirs).square().mean()


def _from_module(module: str, function: str) -> Any:
    name = f"{module}:{function}"
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise _fault(name, f"nothing that can be imported ({error})", "module:function on the import path") from error


def _from_entry_point(name: str) -> Any:
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in installed:
        there = ", ".join(sorted(installed)) or "none is installed"
        allowed = f"module:function, or an entry point of the group {GROUP}: {there}"
        raise _fault(name, "no such extractor", allowed, "install the package that brings it")
    try:
        return installed[name].load()
    except (ImportError, AttributeError) as error:
        raise _fault(name, f"an entry point that cannot be loaded ({error})", "one that can be imported") from error


def _fault(name: str, found: str, allowed: str, action: str = "") -> InputError:
    return InputError(Fault("configuration", KEY, f"{name!r}: {found}", allowed, action))
