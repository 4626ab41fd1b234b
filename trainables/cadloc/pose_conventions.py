"""Why photos and CAD model do not fit together: the usual mistakes, tried one by one, and the one that explains it.

A mistake in a convention moves every camera in the same way. So each candidate is undone, the model is rendered at
the poses that follow, and the candidate whose renders show what the photos show is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, permutations, product
from typing import Literal, TypeAlias, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from cadloc.cad import CadModel
from cadloc.datasets.posed_images import PosedImage
from cadloc.geometry import Array, Similarity, inverse, project, transform_points
from cadloc.pair_agreement import agreement
from cadloc.pair_offsets import measure_offset
from cadloc.registration import own_axes
from cadloc.rendering import Light, ViewRenderer

_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
_GLANCE_PX = 160
_LOOK_PX = 240
_LOOK_SHARE = 0.05
_CLEAR_MATCHES = 16
_CLEAR_AGREEMENT = 0.35  # pictures that fit have 0.45 and more, of a wrong place up to 0.26
_PHOTOS = 6
_GLANCED_PHOTOS = 4
_POSES = 80
_PAIR_BY_NAME = "pair photos and poses by name"
_CLEAR_LEAD = 0.15
_LOOKED_AT = 3
_SURFACE_POINTS = 1500
_LEAST_COVERAGE = 0.04
_FACTORS = {
    "10": 10.0, "0.1": 0.1, "100": 100.0, "0.01": 0.01, "1000": 1000.0, "0.001": 0.001,
    "25.4": 25.4, "1/25.4": 1 / 25.4, "2.54": 2.54, "1/2.54": 1 / 2.54,
    "39.37 (inches)": 1 / 0.0254, "0.0254 (inches)": 0.0254, "3.281 (feet)": 1 / 0.3048, "0.3048 (feet)": 0.3048,
}  # fmt: skip

Verdict: TypeAlias = Literal["fine", "fault", "unclear"]
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A mistake, and `cam_from_cad` (N, 4, 4) of the photos once it is undone: similarities, mirrored ones too."""

    fault: str
    remedy: str
    cam_from_cad: Array


@dataclass(frozen=True)
class Evidence:
    """What speaks for a hypothesis: means over photos of `agreement` and of the share of the image seeing the model.

    `matches` is the median number of clear matches between photo and render, NaN where only a glance was taken.
    """

    fault: str
    agreement: float
    coverage: float
    matches: float = float("nan")

    def __str__(self) -> str:
        looked = "" if np.isnan(self.matches) else f", {self.matches:.0f} matches per photo"
        return f"agreement {self.agreement:.2f}, model on {100 * self.coverage:.0f} % of the image{looked}"


@dataclass(frozen=True)
class Diagnosis:
    """`fine`, a named `fault` with its remedy, or `unclear`; `given` and `best` are the evidence compared."""

    verdict: Verdict
    fault: str
    remedy: str
    given: Evidence
    best: Evidence

    def __str__(self) -> str:
        if self.verdict == "fine":
            return f"photos and renders fit ({self.given})"
        return f"{self.fault} (as given: {self.given}; with that undone: {self.best})"


def diagnose(
    photos: Sequence[PosedImage], model: CadModel, rec_from_cad: Similarity, renderer: ViewRenderer
) -> Diagnosis:
    """Compares what photos and CAD show, as given and with each usual mistake undone. Needs at least one photo.

    Looks at up to 6 photos, evenly chosen, and for shuffled names at the poses of up to 80. `unclear` when neither
    the poses as given nor any hypothesis makes photos and renders match: the registration is wrong in some other
    way, or the model shows too little.
    """
    chosen = evenly(photos, _PHOTOS)
    bench = _Bench(chosen, model, renderer)
    hypotheses = list(_hypotheses(np.stack([photo.cam_from_rec for photo in chosen]), rec_from_cad, model))
    given = bench.look(hypotheses[0])
    if given.matches >= _CLEAR_MATCHES:
        return Diagnosis("fine", "", "", given, given)
    glances = sorted(bench.glances(hypotheses[1:]), key=lambda pair: -pair[0])[:_LOOKED_AT]
    best, best_remedy = given, ""
    every = evenly(photos, _POSES)
    others = np.stack([photo.cam_from_rec for photo in every]) @ rec_from_cad.matrix
    shuffled = bench.shuffled([photo.name for photo in every], others)
    for look, remedy in chain(bench.looks(hypothesis for _, hypothesis in glances), shuffled):
        if look.matches >= _CLEAR_MATCHES and look.matches >= 2 * given.matches:
            return Diagnosis("fault", look.fault, remedy, given, look)
        if look.agreement > best.agreement:
            best, best_remedy = look, remedy
    if given.agreement >= max(_CLEAR_AGREEMENT, best.agreement):
        return Diagnosis("fine", "", "", given, best)
    if best.agreement >= max(_CLEAR_AGREEMENT, given.agreement + _CLEAR_LEAD):  # a model too plain for matches
        return Diagnosis("fault", best.fault, best_remedy, given, best)
    unclear = "photos and CAD do not show the same, and no usual mistake explains it"
    return Diagnosis("unclear", unclear, "look at the overlays; align the CAD again", given, best)


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most that many of the items, from the first to the last."""
    count = min(most, len(items))
    return [items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _hypotheses(cam_from_rec: Array, rec_from_cad: Similarity, model: CadModel) -> Iterator[Hypothesis]:
    """As given first, then every mistake undone. Frames: `own` is the CAD file's, in metres."""
    cad_from_own = own_axes(model)
    rec_from_own, own_from_cad = rec_from_cad.matrix @ cad_from_own, inverse(cad_from_own)
    as_given = rec_from_own @ own_from_cad
    yield Hypothesis("as given", "", cam_from_rec @ as_given)
    turned = inverse(cam_from_rec)
    remedy = "give poses world-to-camera, or the format that states them the other way round"
    yield Hypothesis("poses look camera-to-world", remedy, turned @ as_given)
    opengl = "multiply the poses by diag(1, -1, -1, 1) on the camera's side"
    yield Hypothesis("poses look like OpenGL's (camera y up, z back)", opengl, _OPENGL @ cam_from_rec @ as_given)
    name = "poses look camera-to-world and like OpenGL's (camera y up, z back)"
    yield Hypothesis(name, f"invert the poses and {opengl}", _OPENGL @ turned @ as_given)
    if not np.allclose(rec_from_own, np.eye(4)):
        name = "the registration looks inverted"
        inverted = Similarity.from_matrix(rec_from_own).inverse().matrix
        yield Hypothesis(name, "give X_reconstruction = M · X_cad", cam_from_rec @ inverted @ own_from_cad)
    for where, left, right in (("CAD", rec_from_own, own_from_cad), ("reconstruction", np.eye(4), as_given)):
        for words, change in _changes():
            fault = f"the {where}'s {words}"
            yield Hypothesis(
                fault, f"correct that in the {where} or in the registration", cam_from_rec @ left @ change @ right
            )


def _changes() -> Iterator[tuple[str, Array]]:
    """Other scales and all other orders and signs of the axes, in words and as 4×4."""
    for word, factor in _FACTORS.items():
        yield f"scale looks wrong by a factor: × {word} fits", np.diag([factor, factor, factor, 1.0])
    for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3)):
        change = np.eye(4)
        change[:3, :3] = np.diag(signs) @ np.eye(3)[list(order)]
        if np.array_equal(change, np.eye(4)):
            continue
        kind = "mirrored" if np.linalg.det(change) < 0 else "swapped" if order != (0, 1, 2) else "turned"
        axes = ", ".join(("-" if sign < 0 else "") + "xyz"[axis] for sign, axis in zip(signs, order, strict=True))
        yield f"axes look {kind}: ({axes}) in place of (x, y, z) fits", change


class _Bench:
    """The photos at two sizes, and the model to be rendered over them."""

    def __init__(self, photos: Sequence[PosedImage], model: CadModel, renderer: ViewRenderer) -> None:
        self._small = [_resized(photo, _GLANCE_PX) for photo in photos]
        self._large = [_resized(photo, _LOOK_PX) for photo in photos]
        self._model, self._renderer = model, renderer
        self._points = _surface_points(model)

    def look(self, hypothesis: Hypothesis) -> Evidence:
        """Thoroughly: matches on every photo."""
        places = [(photo, pose) for photo, pose in zip(self._large, hypothesis.cam_from_cad, strict=True)]
        return self._evidence(hypothesis.fault, places)

    def looks(self, hypotheses: Iterable[Hypothesis]) -> Iterator[tuple[Evidence, str]]:
        """`look` at one after the other, each with its remedy."""
        for hypothesis in hypotheses:
            yield self.look(hypothesis), hypothesis.remedy

    def _evidence(self, fault: str, places: Sequence[tuple[PosedImage, Array]]) -> Evidence:
        pairs = [(photo.image, *self._render(photo, pose)) for photo, pose in places]
        matches = [measure_offset(*pair, _LOOK_SHARE).matches for pair in pairs]
        agreements = [agreement(*pair) for pair in pairs]
        coverage = float(np.mean([mask.mean() for _, _, mask in pairs]))
        return Evidence(fault, float(np.mean(agreements)), coverage, float(np.median(matches)))

    def glances(self, hypotheses: Sequence[Hypothesis]) -> Iterator[tuple[float, Hypothesis]]:
        """Agreement, weighed by coverage, of those hypotheses that bring the model into the pictures at all."""
        seen: list[Array] = []
        for hypothesis in hypotheses:
            poses = _normalised(hypothesis.cam_from_cad)
            if seen and np.isclose(poses, np.stack(seen), atol=1e-6).all(axis=(1, 2, 3)).any():
                continue
            seen.append(poses)
            places = evenly(list(zip(self._small, hypothesis.cam_from_cad, strict=True)), _GLANCED_PHOTOS)
            if np.median([self._covered(photo, pose) for photo, pose in places]) >= _LEAST_COVERAGE:
                scores = [self._agreement(photo, pose) for photo, pose in places]
                yield float(np.mean(scores)), hypothesis

    def shuffled(self, names: Sequence[str], cam_from_cad: Array) -> Iterator[tuple[Evidence, str]]:
        """Evidence for photos belonging to other ones' poses: `cam_from_cad` (N, 4, 4) of all photos of these names."""
        scores = np.array([[self._agreement(photo, pose) for pose in cam_from_cad] for photo in self._small])
        fitting = scores.argmax(axis=1)
        others = [names[index] != photo.name for index, photo in zip(fitting, self._small, strict=True)]
        if np.mean(others) > 0.5:
            fault = "names look shuffled: photos fit other photos' poses"
            yield self._evidence(fault, list(zip(self._large, cam_from_cad[fitting], strict=True))), _PAIR_BY_NAME

    def _agreement(self, photo: PosedImage, cam_from_cad: Array) -> float:
        image, mask = self._render(photo, cam_from_cad)
        return agreement(photo.image, image, mask) * float(np.sqrt(mask.mean()))

    def _render(self, photo: PosedImage, cam_from_cad: Array) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Image and mask; a mirrored world is what a mirrored camera sees, the picture turned left to right."""
        pose, K = _normalised(cam_from_cad), photo.intrinsics.copy()
        height, width = photo.image.shape[:2]
        mirrored = np.linalg.det(pose[:3, :3]) < 0
        if mirrored:
            pose, K[0, 2] = np.diag([-1.0, 1, 1, 1]) @ pose, width - K[0, 2]
        seen = self._renderer.render(self._model, inverse(pose), K, width, height, Light())
        return (seen.image[:, ::-1], seen.mask[:, ::-1]) if mirrored else (seen.image, seen.mask)

    def _covered(self, photo: PosedImage, cam_from_cad: Array) -> float:
        """Share of a 12 × 12 raster of the image that surface points fall into."""
        height, width = photo.image.shape[:2]
        raster = project(transform_points(cam_from_cad, self._points), photo.intrinsics) / (width, height) * 12
        inside = ((raster >= 0) & (raster < 12)).all(axis=-1)
        return len(np.unique(raster[inside].astype(int), axis=0)) / 144


def _normalised(cam_from_cad: Array) -> Array:
    """The same views, the camera's unit that of `cad`: rigid, or rigid and mirrored."""
    scale = np.cbrt(np.abs(np.linalg.det(cam_from_cad[..., :3, :3])))
    normalised = cam_from_cad.copy()
    normalised[..., :3, :] /= scale[..., None, None]
    return normalised


def _resized(photo: PosedImage, short_px: int) -> PosedImage:
    height, width = photo.image.shape[:2]
    share = min(1.0, short_px / min(height, width))
    size = (round(width * share), round(height * share))
    image = np.asarray(cv2.resize(photo.image, size, interpolation=cv2.INTER_AREA), np.uint8)
    K = np.diag([size[0] / width, size[1] / height, 1.0]) @ photo.intrinsics
    return PosedImage(photo.name, image, K, photo.cam_from_rec)


def _surface_points(model: CadModel) -> Array:
    """Centres (N, 3) of triangles drawn by their area."""
    area = model.mesh.area_faces
    drawn = np.random.default_rng(0).choice(len(area), _SURFACE_POINTS, p=area / area.sum())
    return np.asarray(model.mesh.triangles_center[drawn], np.float64)
