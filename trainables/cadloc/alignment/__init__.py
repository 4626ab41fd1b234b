"""Where a CAD model lies in a reconstruction: from named point pairs, sparse points on its surface, and its renders."""

from __future__ import annotations

from cadloc.alignment.photo_fit import PhotoFit, refine_by_matches
from cadloc.alignment.picks import Picks, read_picks
from cadloc.alignment.point_pairs import PairFit, similarity_from_pairs
from cadloc.alignment.report import AlignmentReport
from cadloc.alignment.scene import Evidence, align, evidence_of
from cadloc.alignment.surface_fit import SurfaceFit, SurfaceIndex, align_points
from cadloc.datasets.posed_images import PosedImage, open_posed

__all__ = [
    "AlignmentReport",
    "Evidence",
    "PairFit",
    "PhotoFit",
    "Picks",
    "PosedImage",
    "SurfaceFit",
    "SurfaceIndex",
    "align",
    "align_points",
    "evidence_of",
    "open_posed",
    "read_picks",
    "refine_by_matches",
    "similarity_from_pairs",
]
