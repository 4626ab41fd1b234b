"""A scene's alignment from all the evidence there is, one step after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cadloc.alignment.conditioning import Change, TooFewMeasurements
from cadloc.alignment.photo_fit import refine_by_matches
from cadloc.alignment.picks import Picks
from cadloc.alignment.point_pairs import PairFit, similarity_from_pairs
from cadloc.alignment.report import AlignmentReport
from cadloc.alignment.surface_fit import FEWEST_POINTS, SurfaceFit, align_points
from cadloc.cad import CadModel
from cadloc.contract import Fault, InputError
from cadloc.datasets.posed_images import open_posed
from cadloc.datasets.reconstruction import Photo, Reconstruction, SparsePoints
from cadloc.datasets.splitting import assign_splits
from cadloc.geometry import Array, Similarity, transform_points
from cadloc.registration import own_axes
from cadloc.scene_config import PhotosConfig

MOST_PHOTOS = 24
"""Photos that a refinement looks at; of more, evenly chosen ones."""

SHORTEST_TRACK = 3
LARGEST_ERROR_PX = 2.0

_PAIRS_WORSE = 3.0


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an alignment may look at: reliable sparse points (N, 3) of the reconstruction and photos, no query ones."""

    points_rec: Array
    photos: tuple[Photo, ...]


def evidence_of(reconstruction: Reconstruction, photos: PhotosConfig) -> Evidence:
    """The mapping and validation photos, and points that three of them or more see within 2 px (where that is known).

    Query photos are for tests: neither their pictures nor points that only they see decide anything here. Photos of
    no split are not looked at either.
    """
    splits = assign_splits(reconstruction, photos.splits)
    seen = [photo for photo in reconstruction.photos if splits.get(photo.name) in ("mapping", "validation")]
    chosen = (
        [seen[index * len(seen) // MOST_PHOTOS] for index in range(MOST_PHOTOS)] if len(seen) > MOST_PHOTOS else seen
    )
    return Evidence(reliable(reconstruction.points, [photo.name for photo in seen]), tuple(chosen))


def reliable(points: SparsePoints | None, photos: Iterable[str]) -> Array:
    """Positions (N, 3) of points with long tracks and small errors; what is not known of a point is no fault.

    Tracks count the named photos only, where the source says which photos see a point.
    """
    if points is None:
        return np.empty((0, 3))
    long = (points.track_lengths >= SHORTEST_TRACK) | (points.track_lengths == 0)
    if points.seen_in:
        rows = [np.unique(points.seen_in[name][1]) for name in photos if name in points.seen_in]
        counts = np.bincount(np.concatenate([np.empty(0, np.int64), *rows]), minlength=len(points.positions))
        long = counts >= SHORTEST_TRACK
    near = ~(points.errors_px > LARGEST_ERROR_PX)
    return np.asarray(points.positions[long & near & np.isfinite(points.positions).all(axis=1)])


def align(
    model: CadModel,
    evidence: Evidence,
    start: Similarity,
    *,
    picks: Picks | None = None,
    refine: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> AlignmentReport:
    """`rec_from_cad` by pairs, or else from `start`; then by the sparse points; then, with `refine`, by the photos.

    A step that has nothing to go on is told in `notes` and leaves the alignment as it was. Raises InputError for
    pairs that make no similarity, and where no step has anything to go on.
    """
    pairs = None if picks is None else fit_picks(picks, model)
    rec_from_cad = start if pairs is None else pairs.dst_from_src
    notes: list[str] = []
    surface = _on_surface(model, evidence.points_rec, rec_from_cad, notes, say)
    if surface is not None:
        rec_from_cad = surface.rec_from_cad
    photos = None
    if refine:
        say(f"matching {len(evidence.photos)} photos with renders at their poses")
        try:
            photos = refine_by_matches([open_posed(photo) for photo in evidence.photos], model, rec_from_cad)
            change = Change.between(rec_from_cad, photos.rec_from_cad, model.bounds)
            if change.is_large:
                notes.append(f"the photos led far away from where they began: {change}; look at it")
            rec_from_cad = photos.rec_from_cad
        except TooFewMeasurements as error:
            notes.append(f"not refined by photos: {error}")
    if pairs is None and surface is None and photos is None:
        raise InputError(_nothing_to_go_on(notes))
    residuals = _pair_residuals(picks, model, rec_from_cad)
    if pairs is not None:
        notes += _left_pairs(pairs, residuals)
    dropped = () if pairs is None or picks is None else _names(picks.names, ~pairs.used)
    return AlignmentReport(rec_from_cad, residuals, dropped, surface, photos, tuple(notes))


def fit_picks(picks: Picks, model: CadModel) -> PairFit:
    """`rec_from_cad` of named pairs. Raises InputError where they make no similarity."""
    points_cad = transform_points(own_axes(model), picks.points_own)
    try:
        return similarity_from_pairs(points_cad, picks.points_rec)
    except ValueError as error:
        allowed = "three pairs or more, not on one line, that agree"
        raise InputError(Fault("--pairs", "pairs", str(error), allowed)) from error


def _nothing_to_go_on(notes: Sequence[str]) -> Fault:
    allowed = f"three named pairs, {FEWEST_POINTS} reliable sparse points, or two photos that match their renders"
    return Fault("photos", "reconstruction", f"nothing to align by ({'; '.join(notes)})", allowed, "give --pairs")


def _on_surface(
    model: CadModel, points_rec: Array, start: Similarity, notes: list[str], say: Callable[[str], None]
) -> SurfaceFit | None:
    if len(points_rec) < FEWEST_POINTS:
        notes.append(f"{len(points_rec)} reliable sparse points: too few to lay on the surface")
        return None
    say(f"laying {len(points_rec)} sparse points on the surface")
    return align_points(points_rec, model.mesh, start)


def _pair_residuals(picks: Picks | None, model: CadModel, rec_from_cad: Similarity) -> dict[str, float]:
    """Metres of the CAD, by name."""
    if picks is None:
        return {}
    points_cad = transform_points(own_axes(model), picks.points_own)
    distances = np.linalg.norm(rec_from_cad.transform_points(points_cad) - picks.points_rec, axis=1)
    return dict(zip(picks.names, (distances / rec_from_cad.scale).tolist(), strict=True))


def _left_pairs(pairs: PairFit, residuals: dict[str, float]) -> list[str]:
    """A warning where points and photos led away from the pairs."""
    before_m = float(np.median(pairs.residuals[pairs.used])) / pairs.dst_from_src.scale
    after_m = float(np.median(np.array(list(residuals.values()))[pairs.used]))
    if after_m <= _PAIRS_WORSE * before_m or before_m == 0:
        return []
    return [
        f"points and photos moved the CAD away from the named pairs: median residual {before_m:.3g} m before,"
        f" {after_m:.3g} m after; look at both"
    ]


def _names(names: Sequence[str], chosen: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen)
