"""A similarity from photo–render matches: renders at the photos' poses, lifted to the CAD, laid over all photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from cadloc.alignment.conditioning import UNKNOWNS, Conditioning, Motion, TooFewMeasurements, stretch_ratio
from cadloc.cad import CadModel
from cadloc.datasets.posed_images import PosedImage
from cadloc.geometry import Array, Similarity, project, transform_points
from cadloc.pair_offsets import FEWEST_MATCHES, measure_offset
from cadloc.registration import posed_in_cad
from cadloc.rendering import Light, process_renderer

FEWEST_PHOTOS = 2
"""One photo leaves scale and distance free: only together they fix the seventh unknown."""

REACHES = (0.06, 0.04, 0.02, 0.02)
"""How far matches are looked for in each round, as shares of the longer image side."""

_MOST_PER_PHOTO = 250
_LARGEST_RELIEF = 0.02
_LEAST_SCALE_PX = 0.5
_USED_WITHIN = 3.0


@dataclass(frozen=True, eq=False)
class PhotoFit:
    """How the CAD lies over the photos.

    Of all matches of the last round: `residuals_px` (M,) after the fit, `used` (M,) those near enough to have
    decided, `photo` (M,) the index of their photo among the names `photos`. `halves_pct`: how far a corner of the
    model moves, in % of its diameter, between the solutions of every other photo and of the others (None: too few
    photos). `stretch` as in `SurfaceFit`.
    """

    rec_from_cad: Similarity
    photos: tuple[str, ...]
    photo: NDArray[np.int64]
    residuals_px: Array
    used: NDArray[np.bool_]
    conditioning: Conditioning
    halves_pct: float | None
    stretch: float | None

    @property
    def photos_used(self) -> tuple[str, ...]:
        """Names of the photos with enough matches that were used."""
        counts = np.bincount(self.photo[self.used], minlength=len(self.photos))
        return tuple(name for name, count in zip(self.photos, counts, strict=True) if count >= FEWEST_MATCHES)


@dataclass(frozen=True, eq=False)
class Matches:
    """Points (M, 3) of `cad`, where the photos show them (M, 2), and in which of the images (M,)."""

    points: Array
    pixels: Array
    photo: NDArray[np.int64]


def refine_by_matches(
    images: Sequence[PosedImage],
    model: CadModel,
    start: Similarity,
    *,
    reaches: Sequence[float] = REACHES,
    seed: int = 0,
) -> PhotoFit:
    """`rec_from_cad` from `start` on, such that renders of the model coincide with the photos, whose poses are fixed.

    Each round renders the model at all poses, matches render and photo (`cadloc.pair_offsets`), lifts the render's
    pixels to the model and minimises their reprojection error into the photos over one Sim(3), every photo with the
    same weight, under a Cauchy loss. Raises TooFewMeasurements, a ValueError, where fewer than two photos have
    matches.
    """
    rec_from_cad = start
    for reach in reaches:
        matches = collect_matches(images, model, rec_from_cad, reach, seed)
        if len(np.unique(matches.photo)) < FEWEST_PHOTOS:
            with_matches = len(np.unique(matches.photo))
            raise TooFewMeasurements(
                f"{with_matches} of {len(images)} photos have matches with their renders; 2 are needed"
            )
        rec_from_cad = solve_similarity(matches, images, rec_from_cad)
    return _measured(matches, images, rec_from_cad, model)


def collect_matches(
    images: Sequence[PosedImage], model: CadModel, rec_from_cad: Similarity, reach: float, seed: int
) -> Matches:
    """Matches of all photos with renders at their poses; photos with fewer than `FEWEST_MATCHES` give none."""
    rng = np.random.default_rng(seed)
    points, pixels, photo = [np.empty((0, 3))], [np.empty((0, 2))], [np.empty(0, np.int64)]
    for index, image in enumerate(images):
        lifted, seen = _photo_matches(image, model, rec_from_cad, reach)
        chosen = np.sort(rng.permutation(len(lifted))[:_MOST_PER_PHOTO])
        if len(chosen) >= FEWEST_MATCHES:
            points.append(lifted[chosen])
            pixels.append(seen[chosen])
            photo.append(np.full(len(chosen), index, np.int64))
    return Matches(np.concatenate(points), np.concatenate(pixels), np.concatenate(photo))


def _photo_matches(image: PosedImage, model: CadModel, rec_from_cad: Similarity, reach: float) -> tuple[Array, Array]:
    """Points of the model (M, 3) and where the photo shows them (M, 2)."""
    height, width = image.image.shape[:2]
    cad_from_cam = posed_in_cad(rec_from_cad, image.cam_from_rec)
    rendering = process_renderer().render(
        model, cad_from_cam, image.intrinsics, width, height, Light(), colour_samples=4
    )
    if not rendering.mask.any():
        return np.empty((0, 3)), np.empty((0, 2))
    offset = measure_offset(image.image, rendering.image, rendering.mask, reach)
    column, row = np.floor(offset.pixels).astype(int).T.clip(0, [[width - 1], [height - 1]])
    lifted = rendering.scene_coordinates.astype(np.float64)
    sure = _smooth(lifted, rendering.mask, row, column, cad_from_cam[:3, 3])
    row, column = row[sure], column[sure]
    # The match starts at its place in the render; what is lifted is the middle of the pixel there.
    seen = np.stack([column, row], axis=-1) + 0.5 + offset.displacements[sure]
    return lifted[row, column], seen


def _smooth(
    coordinates: Array, mask: NDArray[np.bool_], row: NDArray[np.int64], column: NDArray[np.int64], eye: Array
) -> NDArray[np.bool_]:
    """(M,): whether the 3 × 3 pixels about each place are all of the model, at nearly one distance: no silhouette."""
    inside = (row > 0) & (column > 0) & (row < mask.shape[0] - 1) & (column < mask.shape[1] - 1)
    steps = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), axis=-1).reshape(-1, 2)
    rows = (row[:, None] + steps[:, 0]).clip(0, mask.shape[0] - 1)
    columns = (column[:, None] + steps[:, 1]).clip(0, mask.shape[1] - 1)
    distances = np.linalg.norm(coordinates[rows, columns] - eye, axis=-1)
    relief = np.ptp(distances, axis=1) / distances.mean(axis=1)
    return np.asarray(inside & mask[rows, columns].all(axis=1) & (relief < _LARGEST_RELIEF))


def solve_similarity(matches: Matches, images: Sequence[PosedImage], start: Similarity) -> Similarity:
    """`rec_from_cad` that minimises the matches' reprojection errors, robustly, starting from `start`.

    The Cauchy loss' scale follows the errors down: three solutions, each with the scale of the one before.
    """
    cameras, rec_from_cad = _Cameras.of(matches, images), start
    share = 1 / np.sqrt(np.bincount(matches.photo, minlength=len(images))[matches.photo])
    for _ in range(3):
        scale_px = _scale_px(cameras.errors(matches, rec_from_cad.matrix))
        motion, base = Motion.about(matches.points), rec_from_cad.matrix

        def residuals(
            unknowns: Array, motion: Motion = motion, base: Array = base, scale_px: float = scale_px
        ) -> Array:
            return _cauchy(cameras.errors(matches, base @ motion.similarity(unknowns).matrix) / scale_px, share)

        step = least_squares(residuals, np.zeros(UNKNOWNS), x_scale=motion.radius_m / 100).x
        rec_from_cad = rec_from_cad @ motion.similarity(step)
    return rec_from_cad


def _cauchy(errors: Array, share: Array) -> Array:
    """Errors (M, 2) as vectors whose squared length is the Cauchy loss of theirs, times the square of `share`."""
    squared = (errors**2).sum(axis=1)
    factor = np.sqrt(np.log1p(squared) / np.maximum(squared, 1e-30)) * share
    return np.asarray((errors * factor[:, None]).ravel())


def _scale_px(errors: Array) -> float:
    return max(_LEAST_SCALE_PX, 1.4826 * float(np.median(np.linalg.norm(errors, axis=1))))


@dataclass(frozen=True, eq=False)
class _Cameras:
    """The camera of every match: `intrinsics` (M, 3, 3), `cam_from_rec` (M, 4, 4)."""

    intrinsics: Array
    cam_from_rec: Array

    @classmethod
    def of(cls, matches: Matches, images: Sequence[PosedImage]) -> _Cameras:
        intrinsics = np.stack([image.intrinsics for image in images])
        cam_from_rec = np.stack([image.cam_from_rec for image in images])
        return cls(intrinsics[matches.photo], cam_from_rec[matches.photo])

    def errors(self, matches: Matches, rec_from_cad: Array) -> Array:
        """Reprojection errors (M, 2) in pixels under a 4×4, affine ones too; large for points behind the camera."""
        points_cam = transform_points(self.cam_from_rec @ rec_from_cad, matches.points[:, None])
        errors = (project(points_cam, self.intrinsics) - matches.pixels[:, None])[:, 0]
        return np.where(np.isfinite(errors), errors, 1e4)

    def jacobian(self, matches: Matches, rec_from_cad: Similarity, columns: Array) -> Array:
        """Pixels (2 M, U) per unknown, of points whose motions in `cad` per unknown are `columns` (3, M, U)."""
        points_cam = transform_points(self.cam_from_rec @ rec_from_cad.matrix, matches.points[:, None])[:, 0]
        turned = self.cam_from_rec[:, :3, :3] @ (rec_from_cad.scale * rec_from_cad.rotation)
        moved = np.einsum("mij,jmu->miu", turned, columns)
        K = self.intrinsics
        rays = points_cam / points_cam[:, 2:]
        flow = moved - rays[:, :, None] * moved[:, 2:3]
        return np.asarray((K @ flow)[:, :2] / points_cam[:, 2, None, None]).reshape(-1, columns.shape[-1])


def _measured(matches: Matches, images: Sequence[PosedImage], rec_from_cad: Similarity, model: CadModel) -> PhotoFit:
    cameras = _Cameras.of(matches, images)
    errors = cameras.errors(matches, rec_from_cad.matrix)
    lengths = np.linalg.norm(errors, axis=1)
    scale_px = _scale_px(errors)
    used = lengths < _USED_WITHIN * scale_px
    motion, along = Motion.about(matches.points), np.eye(3)[:, None] * np.ones((1, len(lengths), 1))
    jacobian = cameras.jacobian(matches, rec_from_cad, motion.jacobian(matches.points, along))
    return PhotoFit(
        rec_from_cad=rec_from_cad,
        photos=tuple(image.name for image in images),
        photo=matches.photo,
        residuals_px=lengths,
        used=used,
        conditioning=Conditioning.of(jacobian, np.repeat(used.astype(np.float64), 2)),
        halves_pct=_halves_pct(matches, images, rec_from_cad, model),
        stretch=_stretch(matches, cameras, rec_from_cad, motion, along, scale_px),
    )


def _halves_pct(
    matches: Matches, images: Sequence[PosedImage], rec_from_cad: Similarity, model: CadModel
) -> float | None:
    photos = np.unique(matches.photo)
    if len(photos) < 2 * FEWEST_PHOTOS:
        return None
    ends = []
    for half in (photos[::2], photos[1::2]):
        own = np.isin(matches.photo, half)
        some = Matches(matches.points[own], matches.pixels[own], matches.photo[own])
        ends.append(solve_similarity(some, images, rec_from_cad).transform_points(model.bounds))
    moved = np.linalg.norm(ends[0] - ends[1], axis=1).max() / rec_from_cad.scale
    return float(100 * moved / model.diameter_m)


def _stretch(
    matches: Matches, cameras: _Cameras, rec_from_cad: Similarity, motion: Motion, along: Array, scale_px: float
) -> float | None:
    """Ratio of singular values after going on with an affine map; None where it has a weak direction of its own."""
    jacobian = cameras.jacobian(matches, rec_from_cad, motion.affine_jacobian(matches.points, along))
    near = np.linalg.norm(cameras.errors(matches, rec_from_cad.matrix), axis=1) < _USED_WITHIN * scale_px
    values = np.linalg.eigvalsh(jacobian[np.repeat(near, 2)].T @ jacobian[np.repeat(near, 2)])
    if values[0] < 1e-4 * values[-1]:
        return None

    def residuals(unknowns: Array) -> Array:
        errors = cameras.errors(matches, rec_from_cad.matrix @ motion.affine(unknowns)) / scale_px
        return _cauchy(errors, np.ones(len(errors)))

    return stretch_ratio(motion.affine(least_squares(residuals, np.zeros(12), x_scale=motion.radius_m / 100).x))
