"""Rays against a CAD model: free space, first hits, and views without OpenGL."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import ArrayLike, NDArray

from cadloc.cad import CadModel
from cadloc.geometry import Array
from cadloc.rendering import NEAR_M, Light, Rendering
from cadloc.shading import Fragments, Materials
from cadloc.surfaces import OPAQUE_FROM

_SKY_RAYS = 64
_NEAR_RAYS = 162
_RAYS_PER_CALL = 1 << 20
_PIXELS_PER_BLOCK = 1 << 18
_MODELS_KEPT = 3
_MOST_HOLES_IN_A_ROW = 16
_STEP_M = 1e-3
"""How far a ray starts from the surface that it leaves."""


@dataclass(frozen=True)
class Hits:
    """Where N rays end: `distance` in lengths of the ray's direction (inf: nowhere), `triangle` −1: nowhere.

    `points` (N, 3) are metres in `cad`, NaN where nothing was hit; `triangle` (N,) indexes `model.mesh.faces`.
    """

    distance: Array
    points: Array
    triangle: NDArray[np.int64]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(N,): whether anything was hit."""
        return self.triangle >= 0


class RayCaster:
    """First hits on a model. Embree finds the triangle in float32; the point is computed in float64 on its plane."""

    def __init__(self, model: CadModel) -> None:
        mesh = model.mesh
        self._centre = model.centre
        corners = np.asarray(mesh.triangles, dtype=np.float64)
        self._corner = corners[:, 0]
        self._normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        self._scene = EmbreeScene()
        vertices = np.ascontiguousarray(mesh.vertices - self._centre, dtype=np.float32)
        TriangleMesh(self._scene, vertices, np.ascontiguousarray(mesh.faces, dtype=np.int32))

    def hit(self, origins: ArrayLike, directions: ArrayLike) -> Hits:
        """First hits of rays (N, 3) in `cad`; directions need not have length 1, distances are measured in them."""
        start, direction = _rays(origins, directions)
        triangle = self._first_triangles(start, direction)
        seen = np.maximum(triangle, 0)
        normal = self._normal[seen]
        # A hit's triangle never contains the ray's direction: Embree does not report edge-on triangles.
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = _dot(self._corner[seen] - start, normal) / _dot(direction, normal)
        triangle = np.where(np.isfinite(distance), triangle, -1)
        distance = np.where(triangle >= 0, np.maximum(distance, 0.0), np.inf)
        points = start + np.where(triangle >= 0, distance, np.nan)[:, None] * direction
        return Hits(distance, points, triangle)

    def first_hit_depth(
        self, cad_from_cam: Array, intrinsics: Array, width_px: int, height_px: int
    ) -> NDArray[np.float32]:
        """Depth z (H, W) in metres of what each pixel's centre sees; 0 where nothing is hit."""
        origins, directions = pixel_rays(cad_from_cam, intrinsics, width_px, height_px)
        distance = self.hit(origins, directions).distance
        return np.where(np.isfinite(distance), distance, 0.0).astype(np.float32).reshape(height_px, width_px)

    def clearance_m(self, points: ArrayLike) -> Array:
        """Distance (N,) from points (N, 3) to the surface, probed along 162 directions: never too small by rounding,
        too large by at most the gap between directions (about 12 degrees)."""
        points_3 = np.atleast_2d(np.asarray(points, dtype=np.float64))
        distances = self._distances(points_3, fibonacci_sphere(_NEAR_RAYS))
        return np.asarray(distances.min(axis=1))

    def sky_share(self, points: ArrayLike) -> Array:
        """Share (N,) of 64 directions of the upper half space in which points (N, 3) see the sky."""
        points_3 = np.atleast_2d(np.asarray(points, dtype=np.float64))
        sphere = fibonacci_sphere(2 * _SKY_RAYS)
        distances = self._distances(points_3, sphere[sphere[:, 2] > 0])
        return np.asarray(np.isinf(distances).mean(axis=1))

    def is_free(self, points: ArrayLike, *, clearance_m: float = 0.5, sky_share: float = 0.05) -> NDArray[np.bool_]:
        """(N,): whether a camera can stand at points (N, 3): nothing near, and not shut in.

        Somebody inside a closed solid has room around, but sees no sky; parity tests for "inside" would fail on
        the open and self-intersecting meshes that CAD models are.
        """
        return np.asarray((self.clearance_m(points) >= clearance_m) & (self.sky_share(points) >= sky_share))

    def _distances(self, points: Array, directions: Array) -> Array:
        """Distance of the first hit, (N, D), from each point in each direction."""
        rows = max(1, _RAYS_PER_CALL // len(directions))
        blocks = [points[start : start + rows] for start in range(0, len(points), rows)]
        return np.concatenate([self._block_distances(block, directions) for block in blocks])

    def _block_distances(self, points: Array, directions: Array) -> Array:
        origins = np.repeat(points, len(directions), axis=0)
        hits = self.hit(origins, np.tile(directions, (len(points), 1)))
        return hits.distance.reshape(len(points), len(directions))

    def _first_triangles(self, origins: Array, directions: Array) -> NDArray[np.int64]:
        lengths = np.linalg.norm(directions, axis=-1, keepdims=True)
        local = np.ascontiguousarray(origins - self._centre, dtype=np.float32)
        unit = np.ascontiguousarray(directions / lengths, dtype=np.float32)
        return np.asarray(self._scene.run(local, unit), dtype=np.int64)


def pixel_rays(cad_from_cam: Array, intrinsics: Array, width_px: int, height_px: int) -> tuple[Array, Array]:
    """Origins and directions (H·W, 3) in `cad` of the rays through all pixel centres, row by row.

    Directions have z = 1 in `cam`, so that a distance along one is a depth.
    """
    u, v = np.meshgrid(np.arange(width_px) + 0.5, np.arange(height_px) + 0.5)
    pixels = np.stack([u.ravel(), v.ravel(), np.ones(u.size)], axis=-1)
    directions = pixels @ np.linalg.inv(intrinsics).T @ np.asarray(cad_from_cam)[:3, :3].T
    return np.broadcast_to(np.asarray(cad_from_cam)[:3, 3], directions.shape), directions


def fibonacci_sphere(count: int) -> Array:
    """`count` directions (count, 3) spread evenly over the sphere."""
    z = 1 - (2 * np.arange(count) + 1) / count
    angle = np.pi * (1 + np.sqrt(5)) * np.arange(count)
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=-1)


def _rays(origins: ArrayLike, directions: ArrayLike) -> tuple[Array, Array]:
    start, direction = np.broadcast_arrays(np.atleast_2d(origins), np.atleast_2d(directions))
    if start.shape[-1] != 3 or start.ndim != 2:
        raise ValueError(f"rays are (N, 3), got origins and directions of shape {start.shape}")
    return start.astype(np.float64), direction.astype(np.float64)


def _dot(a: Array, b: Array) -> Array:
    return np.asarray(np.einsum("ni,ni->n", a, b))


class RayCastingRenderer:
    """Views without OpenGL, `ViewRenderer` like `cadloc.rendering.Renderer`: slower, and written independently.

    Coordinates are float64 intersections; colours filter textures alike in all directions, so that images agree
    with OpenGL's up to filtering.
    """

    def __init__(self) -> None:
        self._models: OrderedDict[int, _Traceable] = OrderedDict()

    def render(
        self,
        model: CadModel,
        cad_from_cam: Array,
        intrinsics: Array,
        width_px: int,
        height_px: int,
        light: Light,
        *,
        colour_samples: int = 0,
    ) -> Rendering:
        """See `ViewRenderer.render`; colour is averaged over a square grid of at least `colour_samples` rays."""
        traceable = self._traceable(model)
        image, points, mask = traceable.view(cad_from_cam, intrinsics, width_px, height_px, light)
        factor = int(np.ceil(np.sqrt(colour_samples)))
        if factor > 1:
            finer = np.diag([factor, factor, 1.0]) @ np.asarray(intrinsics, dtype=np.float64)
            fine, _, _ = traceable.view(cad_from_cam, finer, factor * width_px, factor * height_px, light)
            blocks = fine.reshape(height_px, factor, width_px, factor, 3)
            image = np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)
        return Rendering(image, np.where(mask[..., None], points, 0.0).astype(np.float32), mask)

    def _traceable(self, model: CadModel) -> _Traceable:
        if id(model) not in self._models:
            self._models[id(model)] = _Traceable(model)
        self._models.move_to_end(id(model))
        while len(self._models) > _MODELS_KEPT:
            self._models.popitem(last=False)
        return self._models[id(model)]


class _Traceable:
    """A model prepared for ray casting, looks included."""

    def __init__(self, model: CadModel) -> None:
        self.model = model  # keeps the model alive: renderers know models by identity
        self._caster = RayCaster(model)
        self._materials = Materials(model)
        corners = np.asarray(model.mesh.triangles, dtype=np.float64)
        self._corner, self._edges = corners[:, 0], corners[:, 1:] - corners[:, :1]
        self._normal = np.cross(self._edges[:, 0], self._edges[:, 1])

    def view(
        self, cad_from_cam: Array, intrinsics: Array, width_px: int, height_px: int, light: Light
    ) -> tuple[NDArray[np.uint8], Array, NDArray[np.bool_]]:
        """Image (H, W, 3), points (H, W, 3) with NaN and mask (H, W)."""
        origins, directions = pixel_rays(cad_from_cam, intrinsics, width_px, height_px)
        pixel_m = 1 / float(intrinsics[0, 0])
        rows = [slice(i, i + _PIXELS_PER_BLOCK) for i in range(0, len(origins), _PIXELS_PER_BLOCK)]
        blocks = [self._block(origins[row], directions[row], pixel_m, light) for row in rows]
        image, points, mask = (np.concatenate(part) for part in zip(*blocks, strict=True))
        shape = (height_px, width_px)
        return image.reshape(*shape, 3), points.reshape(*shape, 3), mask.reshape(shape)

    def _block(
        self, origins: Array, directions: Array, pixel_m: float, light: Light
    ) -> tuple[NDArray[np.uint8], Array, NDArray[np.bool_]]:
        hits, albedo = self._first_solid(origins + NEAR_M * directions, directions, pixel_m)
        image = np.zeros((len(origins), 3), np.uint8)
        seen = hits.mask
        fragments = self._fragments(hits, directions, pixel_m, seen)
        sunlit = self._sunlit(hits.points[seen], fragments.facing, light)
        image[seen] = self._materials.lit(albedo[seen], fragments, light, sunlit)
        return image, hits.points, seen

    def _first_solid(self, origins: Array, directions: Array, pixel_m: float) -> tuple[Hits, Array]:
        """First hits that are not holes in a texture, with colour and alpha (N, 4); distances count from `origins`."""
        hits = self._caster.hit(origins, directions)
        albedo = np.zeros((len(origins), 4))
        looked_at = hits.mask
        for _ in range(_MOST_HOLES_IN_A_ROW):
            fragments = self._fragments(hits, directions, pixel_m, looked_at)
            albedo[looked_at] = self._materials.albedo(fragments)
            holes = looked_at & (albedo[:, 3] < OPAQUE_FROM)
            if not (self._materials.has_holes and holes.any()):
                return hits, albedo
            hits = self._beyond(hits, origins, directions, holes)
            looked_at = holes & hits.mask
        return _without(hits, looked_at & (albedo[:, 3] < OPAQUE_FROM)), albedo

    def _beyond(self, hits: Hits, origins: Array, directions: Array, holes: NDArray[np.bool_]) -> Hits:
        """The hits, those at `holes` replaced by the next ones along their rays."""
        start = hits.distance[holes] + _STEP_M / np.linalg.norm(directions[holes], axis=-1)
        further = self._caster.hit(origins[holes] + start[:, None] * directions[holes], directions[holes])
        distance, points, triangle = hits.distance.copy(), hits.points.copy(), hits.triangle.copy()
        distance[holes], points[holes], triangle[holes] = start + further.distance, further.points, further.triangle
        return Hits(distance, points, triangle)

    def _sunlit(self, points: Array, facing: Array, light: Light) -> NDArray[np.bool_]:
        """(N,): whether nothing solid stands between points and the sun; all of them without shadows."""
        if not light.shadows or not len(points):
            return np.ones(len(points), dtype=bool)
        sun = np.broadcast_to(light.sun_unit, points.shape)
        side = np.where(facing @ light.sun_unit < 0, -1.0, 1.0)[:, None]
        hits, _ = self._first_solid(points + _STEP_M * side * facing, sun, 0.0)
        return ~hits.mask

    def _fragments(self, hits: Hits, directions: Array, pixel_m: float, chosen: NDArray[np.bool_]) -> Fragments:
        triangle, direction = hits.triangle[chosen], directions[chosen]
        normal = self._normal[triangle]
        length = np.linalg.norm(normal, axis=-1, keepdims=True)
        facing = normal / length * np.where(_dot(normal, direction) > 0, -1.0, 1.0)[:, None]
        cosine = -_dot(facing, direction) / np.linalg.norm(direction, axis=-1)
        depth_m = hits.distance[chosen] + NEAR_M
        return Fragments(triangle, self._weights(triangle, hits.points[chosen]), facing, pixel_m * depth_m / cosine)

    def _weights(self, triangle: NDArray[np.int64], points: Array) -> Array:
        """Barycentric weights (N, 3) of points in their triangles."""
        first, second = self._edges[triangle, 0], self._edges[triangle, 1]
        normal, offset = self._normal[triangle], points - self._corner[triangle]
        squared = _dot(normal, normal)
        b = _dot(np.cross(offset, second), normal) / squared
        c = _dot(np.cross(first, offset), normal) / squared
        return np.stack([1 - b - c, b, c], axis=-1)


def _without(hits: Hits, dropped: NDArray[np.bool_]) -> Hits:
    return Hits(
        np.where(dropped, np.inf, hits.distance),
        np.where(dropped[:, None], np.nan, hits.points),
        np.where(dropped, -1, hits.triangle),
    )
