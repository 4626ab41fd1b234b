"""The `scene check` command: do the photos show the CAD model where their poses say?"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from cadloc.contract import Fault, InputError, Json
from cadloc.scene_config import CadConfig, PhotosConfig, SceneConfig
from cadloc_sweep.durable_files import make_folder, write_aside

if TYPE_CHECKING:
    from cadloc.cad import CadModel
    from cadloc.datasets.photos import PosedPhoto
    from cadloc.datasets.reconstruction import Reconstruction
    from cadloc.pose_conventions import Diagnosis
    from cadloc.registration_check import PhotoCheck

SHORT_SIDE_PX = 480
PHOTOS = 40
OVERLAYS = 12
_FEW_MATCHES = 16
_FEWEST_MATCHED = 0.8
_LARGE_OFFSET_PX = 5.0
_SELF_CONSISTENT_PX = 5.0
_UNDERGROUND_M = -1.0

Say = Callable[[str], None]


def check_scene(scene: SceneConfig, to: Path | None, say: Say, photos: int = PHOTOS) -> None:
    """Measures up to `photos` photos against the CAD and says what it finds, line by line.

    `to` becomes a folder with `overlays/` (at most 12) and `check.json`. Raises InputError for files that cannot be
    used, and when the photos do not show the CAD where their poses say: with the mistake's name, where it has one.
    """
    from cadloc.pose_conventions import evenly
    from cadloc.registration_check import check_photo
    from cadloc.rendering import process_renderer

    config = photos_of(scene)
    if to is not None:
        make_folder(to / "overlays", "--to")
    model, reconstruction, posed = load_photos(scene)
    splits = Counter(photo.split for photo in posed)
    say(f"{scene.name}: {len(posed)} photos: {', '.join(f'{count} {split}' for split, count in splits.items())}")
    _check_poses(config, reconstruction, say)
    renderer = process_renderer("gl")
    checks = [check_photo(photo, model, SHORT_SIDE_PX, renderer) for photo in evenly(posed, photos)]
    for line in [*_table(checks), *summary(checks, metric=scene.metric), *_place_warnings(checks)]:
        say(line)
    if to is not None:
        _write(to, scene, checks)
        say(f"overlays and check.json are in {to}")
    _judge(scene, checks, lambda: _diagnosis(config, reconstruction, model), say)
    for line in _up_warnings(scene, posed):
        say(line)


def photos_of(scene: SceneConfig) -> PhotosConfig:
    """The scene's photos; raises InputError where it has none."""
    if scene.photos is None:
        raise InputError(Fault(scene.name, "photos", "a scene without photos", "a scene file with a `photos` section"))
    return scene.photos


def load_photos(scene: SceneConfig) -> tuple[CadModel, Reconstruction, Sequence[PosedPhoto]]:
    """CAD, reconstruction, and the photos in the CAD's frame. Raises InputError with the faults of all of them."""
    from cadloc.datasets.photos import posed_photos
    from cadloc.datasets.reading import read_reconstruction
    from cadloc.scene_models import load_scene_model

    config, faults = photos_of(scene), list[Fault]()
    model = reconstruction = None
    try:
        reconstruction = read_reconstruction(config)
    except InputError as error:
        faults += error.faults
    try:
        model = load_scene_model(scene, "synthetic")
    except InputError as error:
        faults += error.faults
    if model is None or reconstruction is None:
        raise InputError(faults)
    return model, reconstruction, posed_photos(config, model, reconstruction)


def _check_poses(config: PhotosConfig, reconstruction: Reconstruction, say: Say) -> None:
    """The reconstruction's points must lie on what its photos saw of them, whatever the CAD."""
    from cadloc.registration_check import reprojection_medians_px

    errors = reprojection_medians_px(reconstruction)
    if not errors:
        return
    name, least_px = min(errors.items(), key=lambda item: item[1])
    given_px = errors["as given"]
    say(f"poses      the reconstruction's own points project {given_px:.2f} px (median) from where they were seen")
    if name != "as given" and least_px < _SELF_CONSISTENT_PX < given_px:
        found = f"poses look {name}: read so, its points project to {least_px:.2f} px, as given to {given_px:.2f} px"
        allowed = "world-to-camera poses, camera axes x right, y down, z forward"
        raise InputError(Fault(config.reconstruction, "photos.reconstruction", found, allowed))


def _up_warnings(scene: SceneConfig, posed: Sequence[PosedPhoto]) -> Iterator[str]:
    """Photos fit whatever axis is called up, as poses turn with the model; people and viewpoints stand by it."""
    import numpy as np

    from cadloc.registration_check import held_up, up_axis_of_cameras

    assert scene.cad is not None
    poses = np.stack([photo.cad_from_cam for photo in posed])
    up = up_axis_of_cameras(poses, scene.cad, np.stack([held_up(photo.photo) for photo in posed]))
    if up not in (None, scene.cad.up):
        yield (
            f"warning    cad.up is {scene.cad.up}, but the cameras are held with {up} up: if that is the sky, "
            f'write `up: "{up}"`'
        )


def _table(checks: Sequence[PhotoCheck]) -> Iterator[str]:
    width = max([5, *(len(check.name) for check in checks)])
    yield f"{'photo':<{width}}  split       model on  matches  offset px  offset m  depth m  height m"
    for check in checks:
        yield (
            f"{check.name:<{width}}  {check.split:<10}  {100 * check.coverage:6.0f} %  {check.matches:7d}  "
            f"{number(check.offset_px):>9}  {number(check.offset_m, 3):>8}  {number(check.depth_m, 1):>7}  "
            f"{check.height_m:8.1f}"
        )


def number(value: float, digits: int = 2) -> str:
    """For people; NaN is a dash."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def residuals(checks: Sequence[PhotoCheck]) -> Mapping[str, float]:
    """Medians over the photos that have matches: of their median offsets in px and m. Empty when none has any."""
    known = [check for check in checks if not math.isnan(check.offset_px)]
    if not known:
        return {}
    return {
        "offset_px": median(check.offset_px for check in known),
        "offset_m": median(check.offset_m for check in known),
        "photos": len(known),
    }


def understated(checks: Sequence[PhotoCheck]) -> bool:
    """Whether the residual is a lower bound: offsets beyond the search cannot be found, so what is left is too small.

    So it is when more than a fifth of the photos match nowhere, or the median is half of what could be found.
    """
    known = [check for check in checks if not math.isnan(check.offset_px)]
    if len(known) < _FEWEST_MATCHED * len(checks):
        return True
    return median(check.offset_px for check in known) > median(check.reach_px for check in known) / 2


def summary(checks: Sequence[PhotoCheck], *, metric: bool) -> Iterator[str]:
    """What all photos say together, in two lines for people."""
    found = residuals(checks)
    metres = "m" if metric else "CAD metres (not metric)"
    if found:
        yield (
            f"residual   {'at least ' if understated(checks) else ''}{found['offset_px']:.2f} px, "
            f"{found['offset_m']:.3f} {metres} (median over "
            f"{found['photos']:.0f} of {len(checks)} photos, short side {SHORT_SIDE_PX} px)"
        )
    else:
        yield f"residual   unknown: no photo of {len(checks)} matches its render"
    yield f"coverage   {100 * median(check.coverage for check in checks):.0f} % of a photo sees the model (median)"


def _place_warnings(checks: Sequence[PhotoCheck]) -> Iterator[str]:
    """Cameras in places where nobody stands, and photos that tell nothing."""
    kinds = {
        "do not see the model": [check for check in checks if check.coverage == 0],
        "are below the ground": [check for check in checks if check.height_m < _UNDERGROUND_M],
        "have something right before the camera, or stand inside the model": [
            check for check in checks if check.close_share > 0.05
        ],
        "match their render nowhere clearly": [
            check for check in checks if check.coverage > 0 and math.isnan(check.offset_px)
        ],
    }
    for words, which in kinds.items():
        if which:
            names = ", ".join(check.name for check in which[:5]) + (" …" if len(which) > 5 else "")
            yield f"warning    {len(which)} of {len(checks)} photos {words}: {names}"


def _diagnosis(config: PhotosConfig, reconstruction: Reconstruction, model: CadModel) -> Diagnosis:
    from cadloc.datasets.posed_images import open_posed
    from cadloc.pose_conventions import diagnose, evenly
    from cadloc.registration import rec_from_cad
    from cadloc.rendering import process_renderer

    given = [open_posed(photo, SHORT_SIDE_PX) for photo in evenly(reconstruction.photos, 80)]
    return diagnose(given, model, rec_from_cad(config, model), process_renderer("gl"))


def _judge(scene: SceneConfig, checks: Sequence[PhotoCheck], diagnosis: Callable[[], Diagnosis], say: Say) -> None:
    """Half of the photos match: all is well. Else the usual mistakes are tried."""
    if median(check.matches for check in checks) >= _FEW_MATCHES:
        say("verdict    fine: photos and renders match")
        if residuals(checks)["offset_px"] > _LARGE_OFFSET_PX:
            say("warning    but by a similarity that is some pixels off: `cadloc-sweep scene align` refines it")
        return
    found = diagnosis()
    if found.verdict == "fine":
        say(f"verdict    fine, with few exact matches: {found}")
        return
    allowed = "photos that show the CAD where their poses say"
    raise InputError(Fault(photos_of(scene).reconstruction, "photos", str(found), allowed, found.remedy))


def _write(to: Path, scene: SceneConfig, checks: Sequence[PhotoCheck]) -> None:
    from cadloc.overlays import write_overlay
    from cadloc.pose_conventions import evenly

    for check in evenly(checks, OVERLAYS):
        name = "__".join(Path(check.name).with_suffix("").parts)
        write_overlay(to / "overlays" / f"{name}.jpg", check.photo, check.render, check.mask)
    rows: list[Json] = [
        {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key in ("name", "split", "coverage", "matches", "offset_px", "offset_m", "depth_m", "height_m")
            for value in [getattr(check, key)]
        }
        for check in checks
    ]
    cad: CadConfig | None = scene.cad
    medians: dict[str, Json] = {**residuals(checks), "at_least": understated(checks)}
    found = {"scene": scene.name, "cad": cad and cad.path, "median": medians, "photos": rows}
    write_aside(to / "check.json", json.dumps(found, indent=1) + "\n")
