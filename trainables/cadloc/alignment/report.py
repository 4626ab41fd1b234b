"""What an alignment came to, told with its doubts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from cadloc.alignment.conditioning import STRETCH, Conditioning
from cadloc.alignment.photo_fit import PhotoFit
from cadloc.alignment.surface_fit import SurfaceFit
from cadloc.geometry import Array, Similarity

THIN = 0.03
"""Points whose smallest extent is below this share of the middle one lie in a plane, as far as ICP is concerned."""

HALVES_PCT = 1.0
"""Two halves of the photos that place the model's corners farther apart than this, in % of its diameter, disagree."""

_FEW_PHOTOS = 0.5
_FEW_POINTS = 0.5


@dataclass(frozen=True)
class Residuals:
    """Median and 90th percentile of what is left over, in one unit."""

    median: float
    p90: float

    @classmethod
    def of(cls, values: Array) -> Residuals:
        """Of lengths (N,); NaN for none."""
        if not len(values):
            return cls(float("nan"), float("nan"))
        return cls(*(float(value) for value in np.percentile(values, [50, 90])))

    def times(self, factor: float) -> Residuals:
        """In another unit."""
        return Residuals(self.median * factor, self.p90 * factor)

    def __str__(self) -> str:
        return f"median {self.median:.3g}, p90 {self.p90:.3g}"


@dataclass(frozen=True, eq=False)
class AlignmentReport:
    """An alignment and what measures it: any of the three kinds of evidence, at their own best solution.

    `pairs` are residuals of named pairs under the final alignment, in metres of the CAD, `dropped_pairs` the names
    of those that disagree with the others; `scale` is units of the reconstruction per metre of the CAD.
    """

    rec_from_cad: Similarity
    pairs: Mapping[str, float]
    dropped_pairs: tuple[str, ...] = ()
    surface: SurfaceFit | None = None
    photos: PhotoFit | None = None
    notes: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """Units of the reconstruction per metre of the CAD."""
        return self.rec_from_cad.scale

    @property
    def surface_m(self) -> Residuals | None:
        """Distances of the sparse points used from the surface, in metres of the CAD."""
        return None if self.surface is None else Residuals.of(self.surface.distances_m[self.surface.used])

    @property
    def surface_rec(self) -> Residuals | None:
        """The same in units of the reconstruction."""
        return None if self.surface_m is None else self.surface_m.times(self.scale)

    @property
    def matches_px(self) -> Residuals | None:
        """Reprojection errors of the matches used."""
        return None if self.photos is None else Residuals.of(self.photos.residuals_px[self.photos.used])

    @property
    def points_share(self) -> float | None:
        """Share of the sparse points taken to lie on the surface."""
        return None if self.surface is None else float(self.surface.used.mean())

    @property
    def photos_share(self) -> float | None:
        """Share of the photos with enough matches."""
        return None if self.photos is None else len(self.photos.photos_used) / len(self.photos.photos)

    @property
    def conditioning(self) -> Conditioning | None:
        """That of the last kind of evidence used: matches before points."""
        last = self.photos or self.surface
        return None if last is None else last.conditioning

    @property
    def stretch(self) -> float | None:
        """Ratio of singular values of an affine fit by the last kind of evidence; None where it does not tell."""
        last = self.photos or self.surface
        return None if last is None else last.stretch

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust the alignment, each a sentence."""
        return (*self.notes, *self._pair_warnings(), *self._constraint_warnings(), *self._coverage_warnings())

    def lines(self) -> Iterator[str]:
        """The report for people."""
        yield f"scale       {self.scale:.6g} units of the reconstruction per metre of the CAD"
        if self.pairs:
            yield f"pairs       {len(self.pairs)}, {Residuals.of(np.array(list(self.pairs.values())))} m"
            yield from (f"  {name:<20} {residual:.3g} m" for name, residual in self.pairs.items())
        if self.surface is not None:
            yield f"points      {self.points_share:.0%} of {len(self.surface.used)} lie on the surface"
            yield f"  distance  {self.surface_m} m; {self.surface_rec} units of the reconstruction"
        if self.photos is not None:
            yield f"photos      {len(self.photos.photos_used)} of {len(self.photos.photos)} match their renders"
            yield f"  matches   {int(self.photos.used.sum())} of {len(self.photos.used)}, {self.matches_px} px"
            if self.photos.halves_pct is not None:
                yield f"  halves    of the photos place the model within {self.photos.halves_pct:.2g} % of its diameter"
        if self.conditioning is not None:
            yield f"firmness    {self.conditioning.ratio:.2g} (weakest over firmest direction)"
        if self.stretch is not None:
            yield f"stretch     {self.stretch:.4f} (1: the CAD has the true proportions)"
        yield from (f"warning     {warning}" for warning in self.warnings)

    def _pair_warnings(self) -> Iterator[str]:
        if self.dropped_pairs:
            yield f"pairs that disagree with the others, left out: {', '.join(self.dropped_pairs)}"

    def _constraint_warnings(self) -> Iterator[str]:
        if self.conditioning is not None and (weak := self.conditioning.weak_directions):
            yield f"weakly constrained: {', '.join(weak)} (axes of the upright CAD)"
        if self.photos is None and self.surface is not None and self.surface.thinness < THIN:
            yield (
                "weakly constrained: the points used lie nearly in one plane, which leaves scale, shifts within it and"
                " the rotation about its normal to the start; refine by photos or give more pairs"
            )
        if self.photos is not None and self.photos.halves_pct is not None and self.photos.halves_pct > HALVES_PCT:
            yield (
                f"two halves of the photos disagree by {self.photos.halves_pct:.1f} % of the model's diameter:"
                " where the CAD is wrong, what the photos see of it decides"
            )
        if self.stretch is not None and self.stretch > STRETCH:
            yield (
                f"the CAD is stretched: an affine fit scales its axes by up to {100 * (self.stretch - 1):.1f} % more"
                " than each other; judge poses by DCRE, not by centimetres"
            )

    def _coverage_warnings(self) -> Iterator[str]:
        if self.surface is not None and self.surface.kept_start:
            yield "no way from the start laid more of the sparse points on the surface: it was kept"
        if self.surface is not None and self.surface.change.is_large:
            yield f"the sparse points led far away from the start: {self.surface.change}; look at it"
        if self.surface is not None and not self.surface.converged:
            yield "the fit of points to the surface had not come to rest when it was stopped"
        if self.points_share is not None and self.points_share < _FEW_POINTS:
            share = f"only {self.points_share:.0%} of the sparse points lie on the CAD"
            yield f"{share}: it lacks parts, or the start is far off"
        if self.photos is not None and self.photos_share is not None and self.photos_share < _FEW_PHOTOS:
            yield f"only {self.photos_share:.0%} of the photos match their renders"
