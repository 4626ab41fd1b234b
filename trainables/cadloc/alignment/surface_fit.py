"""Points onto a surface: trimmed point-to-plane ICP with scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from cadloc.alignment.conditioning import (
    Change,
    Conditioning,
    Motion,
    TooFewMeasurements,
    least_squares_step,
    stretch_ratio,
)
from cadloc.geometry import Array, Similarity, transform_points

SHARES = (0.3, 0.9)
"""Fewest and most of the points that may be taken to lie on the surface."""

FEWEST_POINTS = 30
_OVERLAP_EXPONENT = 2.0
_SAMPLES = 150_000
_CANDIDATES = 4
_AFFINE_STEPS = 25
_MOST = 0.8
_NEARLY_ALL = 0.97
_COARSE_POINTS = 500
_ON_SURFACE = 0.005

_EXACT = 1e-3
"""Share of the diameter below which distances are all alike: else a plane without noise, the ground, is all that
counts, and the start's error stays in whatever that plane leaves open."""

REACH = 0.12
"""Points farther from the surface than this share of its diameter are of something else, or the start is hopeless."""

MOST_MEASURED = 50_000
"""Points whose distances are measured; of more, a seeded subset."""


class SurfaceIndex:
    """Closest points on a triangle mesh in metres, through area-weighted samples and the triangles they lie on."""

    def __init__(self, mesh: trimesh.Trimesh, samples: int = _SAMPLES, seed: int = 0) -> None:
        self._corners = np.asarray(mesh.triangles, np.float64)
        sampled, faces = trimesh.sample.sample_surface(mesh, samples, seed=seed)
        # Centres too, so that no triangle is without a sample.
        self._face = np.concatenate([faces, np.arange(len(self._corners))])
        self._tree = KDTree(np.concatenate([sampled, self._corners.mean(axis=1)]))
        cross = np.cross(self._corners[:, 1] - self._corners[:, 0], self._corners[:, 2] - self._corners[:, 0])
        self._normals = cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-300)
        corners = self._corners.reshape(-1, 3)
        self.bounds = np.stack([corners.min(axis=0), corners.max(axis=0)])
        self.diameter_m = float(np.linalg.norm(self.bounds[1] - self.bounds[0]))

    def closest(self, points: Array) -> tuple[Array, Array]:
        """Closest surface points (N, 3) of points (N, 3), and unit normals (N, 3) there, of either sign.

        Exact on each triangle; among triangles, right where their distances differ by more than the samples' spacing.
        """
        _, nearest = self._tree.query(points, k=_CANDIDATES)
        faces = self._face[nearest]
        repeated = np.repeat(points, _CANDIDATES, axis=0)
        feet = trimesh.triangles.closest_point(self._corners[faces.ravel()], repeated)  # type: ignore[no-untyped-call]
        squared = ((feet - repeated) ** 2).sum(axis=1).reshape(-1, _CANDIDATES)
        row, best = np.arange(len(points)), squared.argmin(axis=1)
        return feet.reshape(-1, _CANDIDATES, 3)[row, best], self._normals[faces[row, best]]


@dataclass(frozen=True, eq=False)
class SurfaceFit:
    """Where points came to lie on a surface.

    `distances_m` (N,) of all points (of more than `MOST_MEASURED`, a seeded subset), `used` (N,) those taken to lie
    on it; `kept_start`: no way from the start laid more points on it; `change` is that from the start; `stretch` is
    the ratio of singular values of an affine fit (None: the points do not tell); `thinness` is the used points'
    smallest extent over the middle one (root mean squares): 0 for a plane.
    """

    rec_from_cad: Similarity
    distances_m: Array
    used: NDArray[np.bool_]
    conditioning: Conditioning
    thinness: float
    stretch: float | None
    converged: bool
    kept_start: bool
    change: Change


def align_points(
    points_rec: ArrayLike,
    surface: SurfaceIndex | trimesh.Trimesh,
    start: Similarity,
    *,
    shares: tuple[float, float] = SHARES,
    iterations: int = 100,
    max_points: int = 4000,
    seed: int = 0,
) -> SurfaceFit:
    """Moves points (N, 3) of a reconstruction onto a surface in `cad`, from `start` (`rec_from_cad`) on.

    Point-to-plane ICP (Chen and Medioni 1992) with scale as seventh unknown. Each step uses the closest share of the
    points that minimises the fractional root mean square distance (Phillips, Liu and Tomasi 2007), within `shares`,
    with Cauchy weights; of more than `max_points`, a seeded subset decides. Points of other things are expected: of
    several ways from the start, and the start itself, the one that lays most points on the surface is taken. Raises
    TooFewMeasurements, a ValueError, for too few points.
    """
    points = np.asarray(points_rec, np.float64)
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) < FEWEST_POINTS:
        raise TooFewMeasurements(f"{len(points)} points; aligning them with a surface needs {FEWEST_POINTS}")
    index = surface if isinstance(surface, SurfaceIndex) else SurfaceIndex(surface)
    order = np.random.default_rng(seed).permutation(len(points))
    chosen = points[order[:max_points]]
    begin = start.inverse()
    found, converged = _routes(chosen, index, begin, shares, iterations)
    kept = _score(chosen, index, found, begin) <= _score(chosen, index, begin, begin)
    ways = (begin if kept else found, begin)
    return _measured(
        points[np.sort(order[:MOST_MEASURED])], chosen[: _coarse(chosen)], index, ways, shares, kept or converged
    )


def _coarse(points: Array) -> int:
    return max(len(points) // 4, _COARSE_POINTS)


def _routes(
    points_rec: Array, index: SurfaceIndex, begin: Similarity, shares: tuple[float, float], iterations: int
) -> tuple[Similarity, bool]:
    """The best of the ways to `cad_from_rec` from `begin`, and whether it came to rest.

    Nearly all points first: leaving many out while the pose is wrong fits the largest plane only. But where many are
    of other things, taking them for the model's shrinks them into it; so the near ones go other ways, few at once too.
    """
    near = _near(points_rec, index, begin)
    everything, near = points_rec[: _coarse(points_rec)], near[: _coarse(near)]
    few = (min(shares), max(shares))
    most, nearly_all = (min(_MOST, few[1]), few[1]), (_NEARLY_ALL, 1.0)
    ends = [begin]
    for some, stages in ((everything, (most, few)), (near, (nearly_all, most, few)), (near, (few,))):
        end = begin
        for stage in stages if len(some) >= FEWEST_POINTS else ():
            end, _ = _converge(some, index, end, stage, 1e-4, iterations)
        ends.append(end)
    best = max(ends, key=lambda end: _score(everything, index, end, begin))
    near = _near(points_rec, index, best)
    return _converge(near if len(near) >= FEWEST_POINTS else points_rec, index, best, few, 2e-5, iterations)


def _near(points_rec: Array, index: SurfaceIndex, cad_from_rec: Similarity) -> Array:
    """Those of points (N, 3) from which the surface is within `REACH`."""
    return points_rec[_distances_m(points_rec, index, cad_from_rec) < REACH * index.diameter_m]


def _distances_m(points_rec: Array, index: SurfaceIndex, cad_from_rec: Similarity) -> Array:
    moved = cad_from_rec.transform_points(points_rec)
    return np.asarray(np.linalg.norm(moved - index.closest(moved)[0], axis=1))


def _score(points_rec: Array, index: SurfaceIndex, cad_from_rec: Similarity, begin: Similarity) -> float:
    """How many of points (N, 3) lie on the surface, softly, as a share.

    Distances count in metres of the CAD at the scale of `begin` or at this one, whichever makes them longer: neither
    a cloud shrunk into the model nor one grown out of it is rewarded.
    """
    distances = _distances_m(points_rec, index, cad_from_rec) * max(1.0, begin.scale / cad_from_rec.scale)
    return float((1 / (1 + (distances / (_ON_SURFACE * index.diameter_m)) ** 2)).mean())


def _converge(
    points_rec: Array,
    index: SurfaceIndex,
    cad_from_rec: Similarity,
    shares: tuple[float, float],
    tolerance: float,
    iterations: int,
) -> tuple[Similarity, bool]:
    """Steps until the model's bounds move less than `tolerance` of its diameter."""
    for _ in range(iterations):
        step = _step(cad_from_rec.transform_points(points_rec), index, shares)
        cad_from_rec = step @ cad_from_rec
        if _moves_m(step, index) < tolerance * index.diameter_m:
            return cad_from_rec, True
    return cad_from_rec, False


@dataclass(frozen=True, eq=False)
class _Contacts:
    """Points (N, 3) in `cad` with distances (N,), signed plane residuals (N,), normals (N, 3), weights (N,)."""

    points: Array
    distances_m: Array
    residuals_m: Array
    normals: Array
    used: NDArray[np.bool_]
    weights: Array


def _contacts(points: Array, index: SurfaceIndex, shares: tuple[float, float]) -> _Contacts:
    return _weighted(points, *index.closest(points), index, shares)


def _weighted(
    points: Array, feet: Array, normals: Array, index: SurfaceIndex, shares: tuple[float, float]
) -> _Contacts:
    distances = np.linalg.norm(points - feet, axis=1)
    used = _overlapping(distances, shares, _EXACT * index.diameter_m)
    residuals = ((points - feet) * normals).sum(axis=1)
    scale = max(1.4826 * float(np.median(np.abs(residuals[used]))), _EXACT * index.diameter_m)
    return _Contacts(points, distances, residuals, normals, used, used / (1 + (residuals / (2 * scale)) ** 2))


def _overlapping(distances: Array, shares: tuple[float, float], floor_m: float) -> NDArray[np.bool_]:
    """Which of distances (N,) minimise their fractional root mean square; all below `floor_m` are equally good."""
    order = np.sort(distances)
    counts = np.arange(1, len(order) + 1)
    share = counts / len(order)
    rms = np.sqrt(np.cumsum(order**2) / counts + floor_m**2)
    allowed = (share >= shares[0]) & (share <= max(shares))
    fractional = np.where(allowed, rms / share**_OVERLAP_EXPONENT, np.inf)
    return np.asarray(distances <= order[int(fractional.argmin())])


def _step(points: Array, index: SurfaceIndex, shares: tuple[float, float]) -> Similarity:
    contacts = _contacts(points, index, shares)
    motion = Motion.about(points[contacts.used])
    jacobian = motion.jacobian(points, contacts.normals)
    return motion.similarity(least_squares_step(jacobian, contacts.residuals_m, contacts.weights))


def _moves_m(step: Similarity, index: SurfaceIndex) -> float:
    return float(np.linalg.norm(step.transform_points(index.bounds) - index.bounds, axis=1).max())


def _measured(
    points: Array,
    some: Array,
    index: SurfaceIndex,
    ways: tuple[Similarity, Similarity],
    shares: tuple[float, float],
    converged: bool,
) -> SurfaceFit:
    """What holds `cad_from_rec`, the first of `ways`, of which the second is where it began."""
    moved = ways[0].transform_points(points)
    feet, normals = index.closest(moved)
    distances = np.linalg.norm(moved - feet, axis=1)
    near = distances < REACH * index.diameter_m
    near |= near.sum() < FEWEST_POINTS
    contacts = _weighted(moved[near], feet[near], normals[near], index, shares)
    used = np.zeros(len(points), bool)
    used[near] = contacts.used
    motion = Motion.about(moved[used])
    extents = np.linalg.svd(moved[used] - motion.centre, compute_uv=False)
    some = _near(some, index, ways[0])
    return SurfaceFit(
        rec_from_cad=ways[0].inverse(),
        distances_m=distances,
        used=used,
        conditioning=Conditioning.of(motion.jacobian(contacts.points, contacts.normals), contacts.weights),
        thinness=float(extents[2] / extents[1]) if extents[1] > 0 else 0.0,
        stretch=_stretch(ways[0].transform_points(some), index, shares) if len(some) >= FEWEST_POINTS else None,
        converged=converged,
        kept_start=ways[0] is ways[1],
        change=Change.between(ways[1].inverse(), ways[0].inverse(), index.bounds),
    )


def _stretch(points: Array, index: SurfaceIndex, shares: tuple[float, float]) -> float | None:
    """Ratio of singular values after going on with an affine map; None where it has a weak direction of its own."""
    affine = np.eye(4)
    for number in range(2 * _AFFINE_STEPS):
        # A similarity keeps what it can lay on one part; most points must count before the map may differ from it.
        fewest = min(_MOST, shares[1]) if number < _AFFINE_STEPS else shares[0]
        contacts = _contacts(transform_points(affine, points), index, (fewest, shares[1]))
        motion = Motion.about(contacts.points[contacts.used])
        jacobian = motion.affine_jacobian(contacts.points, contacts.normals)
        values = np.linalg.eigvalsh(jacobian.T @ (contacts.weights[:, None] * jacobian))
        if values[0] < 1e-3 * values[-1]:
            return None
        step = least_squares_step(jacobian, contacts.residuals_m, contacts.weights)
        affine = motion.affine(step) @ affine
    return stretch_ratio(affine)
