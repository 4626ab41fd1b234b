"""Where virtual cameras stand: orbits about the building, and people's places on the ground in front of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from cadloc.cad import CadModel
from cadloc.contract import Fault, InputError
from cadloc.datasets.ace_layout import Split
from cadloc.geometry import Array, cell_pixels, look_at, pinhole, rotation_error_deg, unproject
from cadloc.placements import azimuths_deg, direction, elevations_deg, in_sector, in_unit_ball, places, surface_points
from cadloc.raycasting import RayCaster, fibonacci_sphere
from cadloc.views_config import ImageConfig, ViewpointsConfig, ViewsConfig

GROUND_RELIEF_M = 0.5
"""What rises no higher above the ground is ground: kerbs, paving, low steps."""

_DRAWING_ORDER: tuple[Split, ...] = ("query", "validation", "mapping")
_TRIMMED_SHARE = 0.01
_PROBES = fibonacci_sphere(162)
_STEP_M = 1.5
_TRIES_IN_A_ROW = 1000
_TARGETS = 16
_OUTSKIRTS = 0.1

UNDER_A_ROOF = "stand inside or under or on top of the model or below its ground"
TOO_CLOSE = "have a surface within the clearance"
NOTHING_VISIBLE = "see none of the surface points they could look at"
TOO_LITTLE = "see too little of the building"
OUTSIDE_SECTOR = "stand outside the sector azimuth_deg"
DUPLICATE = "repeat a viewpoint of another split"


@dataclass(frozen=True, eq=False)
class Viewpoint:
    """A virtual camera: `cad_from_cam` (4, 4) and `intrinsics` (3, 3), float64."""

    name: str
    cad_from_cam: Array
    intrinsics: Array


class Site:
    """A model as those see it who place cameras: its building, the ground about it, and what is in the way.

    The *building* is every face that is not ground; ground are faces that lie below `ground_z_m` +
    `GROUND_RELIEF_M`, and near-horizontal ones up to twice as high. Raises InputError for a model of ground only.
    """

    def __init__(self, model: CadModel, ground_z_m: float | None = None) -> None:
        self.model = model
        self.caster = RayCaster(model)
        self.ground_z_m = model.ground_height_m if ground_z_m is None else ground_z_m
        self.building = _building_faces(model, self.ground_z_m)
        if not self.building.any():
            found = f"no surface higher than {GROUND_RELIEF_M} m above the ground (z = {self.ground_z_m:g} m)"
            raise InputError(Fault(model.name, "scene.ground_z_m", found, "the height of the ground, metres in `cad`"))

    @cached_property
    def box(self) -> Array:
        """Lowest and highest corner (2, 3) of the building, one percent trimmed off each side, area times height.

        So neither a plaza wider than the building, nor kiosks and lamp posts far out on it, nor a spire's tip
        move the cameras.
        """
        triangles = np.asarray(self.model.mesh.triangles)[self.building]
        heights_m = triangles[:, :, 2].mean(axis=1) - self.ground_z_m
        weights = np.repeat(self.model.mesh.area_faces[self.building] * np.maximum(heights_m, 0.0), 3)
        corners = triangles.reshape(-1, 3)
        shares = (_TRIMMED_SHARE, 1 - _TRIMMED_SHARE)
        return np.asarray(np.quantile(corners, shares, axis=0, weights=weights, method="inverted_cdf"))

    @property
    def middle(self) -> Array:
        """Centre (3,) of the building's bounding sphere."""
        return np.asarray(self.box.mean(axis=0))

    @property
    def radius_m(self) -> float:
        """Radius of the building's bounding sphere."""
        return float(np.linalg.norm(self.box[1] - self.box[0]) / 2)

    def surface_z_m(self, x_m: float, y_m: float) -> float:
        """Height of what the sky sees at (x, y); -inf where that is nothing."""
        above = self.model.bounds[1, 2] + 1.0
        hits = self.caster.hit([[x_m, y_m, above]], [[0.0, 0.0, -1.0]])
        return float(above - hits.distance[0])

    def building_share(self, cad_from_cam: Array, intrinsics: Array, image: ImageConfig) -> float:
        """Share of the image's cells (stride 8) whose middle sees the building."""
        cells = cell_pixels(image.height_px // 8, image.width_px // 8).reshape(-1, 2)
        directions = unproject(cells, np.ones(len(cells)), intrinsics) @ cad_from_cam[:3, :3].T
        hits = self.caster.hit(cad_from_cam[:3, 3], directions)
        return float((self.building[hits.triangle] & hits.mask).mean())

    def clearance_m(self, eye: Array) -> float:
        """Distance from `eye` (3,) to the building, probed in directions about 12 degrees apart: slightly too large."""
        hits = self.caster.hit(eye, _PROBES)
        return float(hits.distance[self.building[hits.triangle] & hits.mask].min(initial=np.inf))

    def sees(self, eye: Array, points: Array) -> NDArray[np.bool_]:
        """(N,): whether the straight line from `eye` (3,) reaches the points (N, 3)."""
        return np.asarray(self.caster.hit(eye, points - eye).distance > 0.999)

    def rejection(
        self, cad_from_cam: Array, intrinsics: Array, image: ImageConfig, config: ViewpointsConfig
    ) -> str | None:
        """Why no camera should stand there, None if one may: the words of this module's constants.

        "Free" means under open sky: parity tests for "inside" fail on open and self-intersecting meshes.
        """
        eye = cad_from_cam[:3, 3]
        if eye[2] <= max(self.surface_z_m(eye[0], eye[1]), self.ground_z_m):
            return UNDER_A_ROOF
        if self.clearance_m(eye) < config.clearance_m:
            return TOO_CLOSE
        if self.building_share(cad_from_cam, intrinsics, image) < config.min_hit_share:
            return TOO_LITTLE
        return None


def plan_viewpoints(site: Site, views: ViewsConfig) -> dict[Split, tuple[Viewpoint, ...]]:
    """Viewpoints of the splits, each drawn from its own seed; the same settings give the same ones.

    Ground-level and orbit views alternate in the configured shares. A draw is repeated until the camera stands
    free, sees enough of the building and repeats no viewpoint of another split. Queries are drawn first, so that
    more mapping views leave them as they are.

    Raises InputError, saying which condition turned down how many, when 1000 draws in a row are turned down.
    """
    plan: dict[Split, tuple[Viewpoint, ...]] = {}
    for split in _DRAWING_ORDER:
        others = [viewpoint for drawn in plan.values() for viewpoint in drawn]
        plan[split] = _draw_split(site, views, split, getattr(views.counts, split), others)
    return {split: plan[split] for split in reversed(_DRAWING_ORDER)}


def _draw_split(
    site: Site, views: ViewsConfig, split: Split, number: int, others: Sequence[Viewpoint]
) -> tuple[Viewpoint, ...]:
    rng = np.random.default_rng([views.seed, *split.encode()])
    ground = _ground_candidates(site, views, rng)
    orbit = _orbit_candidates(site, views, rng)
    is_duplicate = _duplicate_test(others, views.viewpoints)
    share = views.viewpoints.ground_share
    drawn = []
    for index in range(number):
        at_ground = int((index + 1) * share + 1e-9) > int(index * share + 1e-9)
        name = f"{split}_{index:06d}"
        drawn.append(_first_accepted(ground if at_ground else orbit, name, site, views, is_duplicate))
    return tuple(drawn)


def _first_accepted(
    candidates: Iterator[tuple[Array, Array] | str],
    name: str,
    site: Site,
    views: ViewsConfig,
    is_duplicate: Callable[[Array], bool],
) -> Viewpoint:
    rejections: Counter[str] = Counter()
    while rejections.total() < _TRIES_IN_A_ROW:
        candidate = next(candidates)
        if isinstance(candidate, str):
            rejections[candidate] += 1
            continue
        reason = site.rejection(*candidate, views.image, views.viewpoints)
        reason = reason or (DUPLICATE if is_duplicate(candidate[0]) else None)
        if reason is None:
            return Viewpoint(name, *candidate)
        rejections[reason] += 1
    raise InputError(_impossible(site, name, rejections, views.viewpoints))


def _impossible(site: Site, name: str, rejections: Mapping[str, int], config: ViewpointsConfig) -> Fault:
    reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(rejections.items()))
    return Fault(
        site.model.name,
        "views.viewpoints",
        f"no place for {name} in {_TRIES_IN_A_ROW} draws: {reasons}",
        f"settings that leave room: min_hit_share is {config.min_hit_share:g}, clearance_m {config.clearance_m:g}, "
        f"min_separation_m {config.min_separation_m:g}, min_separation_deg {config.min_separation_deg:g}",
        "relax these or widen distances, elevations_deg, azimuth_deg, fields_of_view_deg",
    )


def _orbit_candidates(site: Site, views: ViewsConfig, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """Every combination of elevation, distance and field of view in random order, again and again.

    Azimuths go round by the golden ratio: evenly spread however many of them are used.
    """
    config = views.viewpoints
    rings = list(product(config.orbit.elevations_deg, config.orbit.distances, config.fields_of_view_deg))
    azimuths = azimuths_deg(*config.azimuth_deg, rng)
    while True:
        for elevation_deg, multiple, view_deg in [rings[index] for index in rng.permutation(len(rings))]:
            intrinsics = pinhole(views.image.width_px, views.image.height_px, view_deg)
            distance_m = multiple * fitting_distance_m(site.radius_m, intrinsics, views.image)
            eye = site.middle + distance_m * direction(next(azimuths), elevation_deg)
            target = site.middle + config.orbit.target_spread * site.radius_m * in_unit_ball(rng)
            yield look_at(eye, target, roll_deg=config.roll_deg * rng.standard_normal()), intrinsics


def _ground_candidates(site: Site, views: ViewsConfig, rng: np.random.Generator) -> Iterator[tuple[Array, Array] | str]:
    config = views.viewpoints
    targets = surface_points(site.model.mesh, site.building, rng)
    for place in (_in_ring if config.ground.distances else _among_buildings)(site, views, rng):
        if isinstance(place, str):
            yield place
            continue
        eye, intrinsics, distance_m = place
        soil_m = _standing_z_m(site, eye)
        if soil_m is None:
            yield UNDER_A_ROOF
            continue
        low, spread = config.ground.eye_height_m, config.ground.eye_height_spread_m
        eye[2] = soil_m + max(low + spread * rng.standard_normal(), 0.5 * low)
        points = targets[rng.integers(len(targets), size=_TARGETS)]
        points = points[np.abs(elevations_deg(points - eye)) <= config.ground.max_pitch_deg]
        visible = points[site.sees(eye, points)]
        if not len(visible):
            yield NOTHING_VISIBLE
            continue
        distance_m = float(np.linalg.norm(visible[0] - eye)) if distance_m is None else distance_m
        aim = visible[0] + np.tan(np.deg2rad(config.ground.aim_spread_deg)) * distance_m * rng.standard_normal(3)
        yield look_at(eye, aim, roll_deg=config.roll_deg * rng.standard_normal()), intrinsics


def _in_ring(site: Site, views: ViewsConfig, rng: np.random.Generator) -> Iterator[tuple[Array, Array, float]]:
    """Eyes, not yet at their height, about the model's middle; their intrinsics and distances."""
    config = views.viewpoints
    assert config.ground.distances is not None
    for azimuth_deg in azimuths_deg(*config.azimuth_deg, rng):
        intrinsics = _drawn_intrinsics(views, rng)
        multiple = np.exp(rng.uniform(*np.log(config.ground.distances)))
        distance_m = multiple * fitting_distance_m(site.radius_m, intrinsics, views.image)
        yield site.middle + distance_m * direction(azimuth_deg, 0.0), intrinsics, distance_m


def _among_buildings(
    site: Site, views: ViewsConfig, rng: np.random.Generator
) -> Iterator[tuple[Array, Array, None] | str]:
    """Eyes, not yet at their height, in the model's rectangle and its outskirts, and their intrinsics."""
    margin_m = _OUTSKIRTS * site.radius_m
    for x_m, y_m in places(site.box[0, :2] - margin_m, site.box[1, :2] + margin_m, rng):
        eye = np.array([x_m, y_m, site.middle[2]])
        azimuth_deg = float(np.rad2deg(np.arctan2(*(eye - site.middle)[1::-1])))
        if in_sector(azimuth_deg, *views.viewpoints.azimuth_deg):
            yield eye, _drawn_intrinsics(views, rng), None
        else:
            yield OUTSIDE_SECTOR


def _drawn_intrinsics(views: ViewsConfig, rng: np.random.Generator) -> Array:
    view_deg = rng.choice(views.viewpoints.fields_of_view_deg)
    return pinhole(views.image.width_px, views.image.height_px, view_deg)


def _standing_z_m(site: Site, place: Array) -> float | None:
    """Height of the floor somebody at (x, y) stands on; None on roofs and other high things."""
    surface_m = site.surface_z_m(place[0], place[1])
    if np.isinf(surface_m):
        return site.ground_z_m
    return surface_m if abs(surface_m - site.ground_z_m) <= _STEP_M else None


def fitting_distance_m(radius_m: float, intrinsics: Array, image: ImageConfig) -> float:
    """Distance from which a sphere just fills the smaller field of view."""
    half_angle = np.arctan(min(image.width_px / intrinsics[0, 0], image.height_px / intrinsics[1, 1]) / 2)
    return float(radius_m / np.sin(half_angle))


def _duplicate_test(others: Sequence[Viewpoint], config: ViewpointsConfig) -> Callable[[Array], bool]:
    if not others:
        return lambda cad_from_cam: False
    poses = np.stack([viewpoint.cad_from_cam for viewpoint in others])

    def is_duplicate(cad_from_cam: Array) -> bool:
        near = np.linalg.norm(poses[:, :3, 3] - cad_from_cam[:3, 3], axis=-1) <= config.min_separation_m
        return bool((near & (rotation_error_deg(poses, cad_from_cam) <= config.min_separation_deg)).any())

    return is_duplicate


def _building_faces(model: CadModel, ground_z_m: float) -> NDArray[np.bool_]:
    mesh = model.mesh
    heights_m = np.asarray(mesh.triangles)[:, :, 2] - ground_z_m
    low = heights_m.max(axis=1) <= GROUND_RELIEF_M
    level = np.abs(mesh.face_normals[:, 2]) > 0.9
    return np.asarray(~(low | (level & (heights_m.mean(axis=1) <= 2 * GROUND_RELIEF_M))))
