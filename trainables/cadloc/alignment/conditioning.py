"""How firmly measurements hold the seven unknowns of a similarity, and whether a similarity is enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from cadloc.contract import CadlocError
from cadloc.geometry import Array, Similarity

WEAK_RATIO = 5e-3
"""Below this share of the firmest direction's eigenvalue a direction is weak: a systematic error of the model there
moves the solution by more than 1 / √share ≈ 14 times as much."""

STRETCH = 1.02
"""Ratio of an affine fit's largest to smallest singular value from which the CAD is called stretched."""

LARGE_CHANGE_PCT = 10.0
"""Growth, or a corner's way in % of the diameter, from which an alignment is said to have left its start."""

UNKNOWNS = 7
_AXES = "xyz"


class TooFewMeasurements(CadlocError, ValueError):
    """Fewer points or photos than decide a similarity."""


@dataclass(frozen=True, eq=False)
class Motion:
    """Small similarities about `centre` (3,), in which every unknown moves points `radius_m` away by its own length.

    The seven unknowns are metres: rotation about x, y, z (times the radius), shift along x, y, z, and the
    logarithm of scale (times the radius). So their eigenvalues may be compared with each other.
    """

    centre: Array
    radius_m: float

    @classmethod
    def about(cls, points: Array) -> Motion:
        """About the middle of points (N, 3), at their root mean square distance from it."""
        centre = points.mean(axis=0)
        return cls(centre, float(np.sqrt(((points - centre) ** 2).sum(axis=1).mean())) or 1.0)

    def jacobian(self, points: Array, directions: Array) -> Array:
        """(..., N, 7): how far points (N, 3) move along `directions` (..., N, 3) per unknown."""
        arms = (points - self.centre) / self.radius_m
        arms = np.broadcast_to(arms, directions.shape)
        stretch = (arms * directions).sum(axis=-1, keepdims=True)
        return np.concatenate([np.cross(arms, directions), directions, stretch], axis=-1)

    def affine_jacobian(self, points: Array, directions: Array) -> Array:
        """(..., N, 12): the same for the nine entries of a linear map, row by row, and the shift."""
        arms = np.broadcast_to((points - self.centre) / self.radius_m, directions.shape)
        linear = directions[..., :, None] * arms[..., None, :]
        return np.concatenate([linear.reshape(*directions.shape[:-1], 9), directions], axis=-1)

    def similarity(self, unknowns: Array) -> Similarity:
        """`moved_from_unmoved` of seven unknowns (7,)."""
        scale = float(np.exp(unknowns[6] / self.radius_m))
        rotation = Rotation.from_rotvec(unknowns[:3] / self.radius_m).as_matrix()
        return Similarity(scale, rotation, self.centre + unknowns[3:6] - scale * rotation @ self.centre)

    def affine(self, unknowns: Array) -> Array:
        """`moved_from_unmoved` (4, 4) of twelve unknowns (12,)."""
        matrix = np.eye(4)
        matrix[:3, :3] += unknowns[:9].reshape(3, 3) / self.radius_m
        matrix[:3, 3] = self.centre + unknowns[9:] - matrix[:3, :3] @ self.centre
        return matrix


@dataclass(frozen=True)
class Change:
    """From one alignment to another: growth of the model in the reconstruction, and the farthest a corner went, in %.

    The corners' way is in % of the model's diameter, on the scale of the first alignment.
    """

    scale_pct: float
    corners_pct: float

    @classmethod
    def between(cls, before: Similarity, after: Similarity, bounds: Array) -> Change:
        """Of two `rec_from_cad`, the model's bounds (2, 3) being in `cad`."""
        moved = np.linalg.norm(after.transform_points(bounds) - before.transform_points(bounds), axis=1).max()
        diameter = before.scale * np.linalg.norm(bounds[1] - bounds[0])
        return cls(100 * (after.scale / before.scale - 1), float(100 * moved / diameter))

    @property
    def is_large(self) -> bool:
        """Whether either is more than a start near the truth leaves to do."""
        return abs(self.scale_pct) > LARGE_CHANGE_PCT or self.corners_pct > LARGE_CHANGE_PCT

    def __str__(self) -> str:
        return f"scale by {self.scale_pct:+.1f} %, a corner by {self.corners_pct:.1f} % of the model's diameter"


def least_squares_step(jacobian: Array, residuals: Array, weights: Array, least_ratio: float = 1e-6) -> Array:
    """Gauss–Newton step (U,) that does not move along directions the measurements say next to nothing about.

    Measurements (N, U), residuals (N,), weights (N,). Directions whose eigenvalue is below `least_ratio` of the
    largest keep what the start said (solution remapping: Zhang, Kaess and Singh, ICRA 2016).
    """
    normal = jacobian.T @ (weights[:, None] * jacobian)
    values, vectors = np.linalg.eigh(normal)
    firm = values > least_ratio * values[-1]
    along = vectors.T @ (jacobian.T @ (weights * residuals))
    return np.asarray(-vectors[:, firm] @ (along[firm] / values[firm]))


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Eigenvalues (7,), ascending, and eigenvectors (7, 7), as columns, of the normal matrix of `Motion`'s unknowns."""

    eigenvalues: Array
    eigenvectors: Array

    @classmethod
    def of(cls, jacobian: Array, weights: Array) -> Conditioning:
        """From measurements (N, 7) with weights (N,)."""
        normal = jacobian.T @ (weights[:, None] * jacobian) / max(float(weights.sum()), 1e-300)
        values, vectors = np.linalg.eigh(normal)
        return cls(np.maximum(values, 0.0), vectors)

    @property
    def ratio(self) -> float:
        """Smallest eigenvalue over the largest."""
        return float(self.eigenvalues[0] / self.eigenvalues[-1]) if self.eigenvalues[-1] > 0 else 0.0

    @property
    def weak_directions(self) -> tuple[str, ...]:
        """What the measurements hardly fix, in words, axes being those of `cad`; empty where all is firm."""
        weak = self.eigenvectors[:, self.eigenvalues < WEAK_RATIO * max(self.eigenvalues[-1], 1e-300)]
        if not weak.shape[1]:
            return ()
        names = [*_pure(weak[3:6], "shift along"), *_pure(weak[:3], "rotation about")]
        if weak[6] @ weak[6] > 0.5:
            names.append("scale")
        return tuple(names) or tuple(_mixed(vector) for vector in weak.T)


def _pure(block: Array, word: str) -> Iterator[str]:
    """Directions (3,) of one kind of motion that lie mostly within the weak space, whose rows for it are (3, W)."""
    shares, axes = np.linalg.eigh(block @ block.T)
    weak = axes[:, shares > 0.5]
    if weak.shape[1] == 2:
        yield f"{word} any axis across {_axis(axes[:, 0])}"
    elif weak.shape[1] == 3:
        yield f"{word} any axis"
    else:
        yield from (f"{word} {_axis(axis)}" for axis in weak.T)


def _mixed(vector: Array) -> str:
    parts = {
        f"rotation about {_axis(vector[:3])}": vector[:3] @ vector[:3],
        f"shift along {_axis(vector[3:6])}": vector[3:6] @ vector[3:6],
        "scale": vector[6] ** 2,
    }
    return " with ".join(sorted((name for name, share in parts.items() if share > 0.1), key=lambda n: -parts[n]))


def _axis(vector: Array) -> str:
    """`x` where it is nearly that, else the direction's components, the largest positive."""
    largest = int(np.abs(vector).argmax())
    unit = vector / (np.linalg.norm(vector) or 1.0) * np.sign(vector[largest] or 1.0)
    return _AXES[largest] if unit[largest] > 0.97 else "(" + ", ".join(f"{value:.2f}" for value in unit + 0.0) + ")"


def stretch_ratio(affine: Array) -> float:
    """Largest over smallest singular value of a 4×4 affine map's linear part: 1 for a similarity."""
    singular = np.linalg.svd(affine[:3, :3], compute_uv=False)
    return float(singular[0] / singular[-1]) if singular[-1] > 0 else float("inf")
