"""Photo by photo: what the CAD looks like from where the photo was taken, and how far that is from the photo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cadloc.cad import CadModel
from cadloc.cad_reading import Z_FROM_UP
from cadloc.datasets.colmap import colmap_camera
from cadloc.datasets.photos import PosedPhoto
from cadloc.datasets.posed_images import opened
from cadloc.datasets.reconstruction import Photo, Reconstruction, SparsePoints
from cadloc.geometry import Array, inverse, transform_points
from cadloc.pair_offsets import SEARCH_SHARE, measure_offset
from cadloc.rendering import Light, ViewRenderer, depth_m
from cadloc.scene_config import CadConfig

_CLOSE_SHARE = 0.005  # of the model's diameter: a twentieth of the picture closer than this is "in the way"
_UPRIGHT = 0.5
_MOST_RISE = 0.5
_EXIF_ORIENTATION = 0x0112
_UP_BY_ORIENTATION = {3: (0, 1, 0), 4: (0, 1, 0), 5: (-1, 0, 0), 6: (-1, 0, 0), 7: (1, 0, 0), 8: (1, 0, 0)}
"""What is up in the camera's axes when an image is shown as its EXIF says; else it is up as stored."""
_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class PhotoCheck:
    """One photo against the CAD. `photo` and `render` (H, W, 3) uint8 RGB, `mask` (H, W): where the model is seen.

    `offset_px` and `offset_m` are medians over `matches` places, NaN where there are too few: how far render and
    photo are apart in the picture, and on the surface seen (offset · depth / focal length). `depth_m` is the median
    depth seen (NaN: nothing), `close_share` the share of the picture with something right before the camera.
    """

    name: str
    split: str
    photo: NDArray[np.uint8]
    render: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    offset_px: float
    offset_m: float
    matches: int
    depth_m: float
    height_m: float
    close_share: float

    @property
    def reach_px(self) -> float:
        """The longest offset that could have been found."""
        return SEARCH_SHARE * float(max(self.mask.shape))

    @property
    def coverage(self) -> float:
        """Share of the image that sees the model."""
        return float(self.mask.mean())


def check_photo(posed: PosedPhoto, model: CadModel, short_side_px: int, renderer: ViewRenderer) -> PhotoCheck:
    """Renders the model at the photo's pose and compares. Raises InputError for an unreadable photo."""
    photo, K = opened(posed.photo, short_side_px)
    size = (photo.shape[1], photo.shape[0])
    seen = renderer.render(model, posed.cad_from_cam, K, *size, Light(), colour_samples=4)
    depths = depth_m(seen, posed.cad_from_cam)
    offset = measure_offset(photo, seen.image, seen.mask)
    columns, rows = np.floor(offset.pixels).astype(int).T
    on_surface_m = np.linalg.norm(offset.displacements / [K[0, 0], K[1, 1]], axis=-1) * depths[rows, columns]
    return PhotoCheck(
        name=posed.photo.name,
        split=posed.split,
        photo=photo,
        render=seen.image,
        mask=seen.mask,
        offset_px=offset.median_px,
        offset_m=float("nan") if np.isnan(offset.median_px) else float(np.median(on_surface_m)),
        matches=offset.matches,
        depth_m=float(np.median(depths[seen.mask])) if seen.mask.any() else float("nan"),
        height_m=float(posed.cad_from_cam[2, 3] - model.ground_height_m),
        close_share=float((seen.mask & (depths < _CLOSE_SHARE * model.diameter_m)).mean()),
    )


def held_up(photo: Photo) -> Array:
    """The direction (3,) in the camera's axes that was up when the photo was shown as it should be.

    Telephones store portraits lying down and say in EXIF how to turn them; poses are those of the stored image.
    Up as stored where the file says nothing or cannot be read.
    """
    try:
        with Image.open(photo.image_path) as image:
            orientation = image.getexif().get(_EXIF_ORIENTATION)
    except OSError:
        orientation = None
    return np.array(_UP_BY_ORIENTATION.get(orientation or 0, (0, -1, 0)), np.float64)


def up_axis_of_cameras(cad_from_cam: Array, cad: CadConfig, up_cam: Array | None = None) -> str | None:
    """The file's axis that the cameras (N, 4, 4) hold up, named as `cad.up` names it; None where they do not say.

    `up_cam` (N, 3) is up in each camera's axes (`held_up`); without it, the images' upper border. People hold cameras
    upright and move along the ground: the mean of the up directions is the sky, unless it is short (cameras that look
    down every way), between the axes, or the cameras spread along it about as much as across: pictures from above
    with one heading do, and pictures held sideways before a facade.
    """
    poses = np.asarray(cad_from_cam)
    up_cam = np.tile([0.0, -1.0, 0.0], (len(poses), 1)) if up_cam is None else up_cam
    mean_up = np.einsum("nij,nj->ni", poses[:, :3, :3], up_cam).mean(axis=0)
    length = np.linalg.norm(mean_up)
    if length < _UPRIGHT or _rises(poses[:, :3, 3], mean_up / length):
        return None
    up_own = np.asarray(Z_FROM_UP[cad.up]).T @ (mean_up / length)
    axis = int(np.abs(up_own).argmax())
    if abs(up_own[axis]) < np.cos(np.deg2rad(35)):
        return None
    return ("-" if up_own[axis] < 0 else "") + "xyz"[axis]


def _rises(centres: Array, up: Array) -> bool:
    """Whether camera centres (N, 3) are spread along `up` by more than half of what they are across it."""
    spread = centres - centres.mean(axis=0)
    along = spread @ up
    return bool((along**2).sum() > _MOST_RISE**2 * ((spread**2).sum() - (along**2).sum()))


def reprojection_medians_px(reconstruction: Reconstruction) -> Mapping[str, float]:
    """Median error in pixels of the reconstruction's own points in its own photos, under each reading of the poses.

    Independent of the CAD: `as given`, and the usual other conventions by name. Empty without observed points.
    """
    points = reconstruction.points
    seen = [] if points is None else [photo for photo in reconstruction.photos if photo.name in points.seen_in]
    if points is None or not seen:
        return {}
    readings = {
        "as given": [photo.cam_from_rec for photo in seen],
        "camera-to-world": [inverse(photo.cam_from_rec) for photo in seen],
        "OpenGL's (camera y up, z back)": [_OPENGL @ photo.cam_from_rec for photo in seen],
        "camera-to-world and OpenGL's": [_OPENGL @ inverse(photo.cam_from_rec) for photo in seen],
    }
    return {name: _median_error_px(seen, poses, points) for name, poses in readings.items()}


def _median_error_px(photos: Sequence[Photo], cam_from_rec: Sequence[Array], points: SparsePoints) -> float:
    """Points behind a camera count as infinitely far off."""
    medians = []
    for photo, pose in zip(photos, cam_from_rec, strict=True):
        pixels, rows = points.seen_in[photo.name]
        if len(rows):
            points_cam = transform_points(pose, points.positions[rows])
            ahead = points_cam[:, 2] > 0
            errors = np.full(len(rows), np.inf)
            projected = colmap_camera(photo.camera).img_from_cam(points_cam[ahead])
            errors[ahead] = np.linalg.norm(projected - pixels[ahead], axis=-1)
            medians.append(float(np.median(errors)))
    return float(np.median(medians)) if medians else float("nan")
