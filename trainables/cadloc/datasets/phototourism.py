"""The folders of the Image Matching Challenge's Phototourism set: `SCENE/dense/{images,sparse}`, or without `dense`."""

from __future__ import annotations

from pathlib import Path

from cadloc.contract import Fault
from cadloc.datasets.colmap import find_model, read_model
from cadloc.datasets.reconstruction import Reconstruction


def is_phototourism(scene: Path) -> bool:
    """Whether the folder is laid out as the challenge's scenes are, or is the `dense` one of such a scene."""
    return _dense(scene) is not None


def read_phototourism(scene: Path, images: Path, faults: list[Fault]) -> Reconstruction | None:
    """The scene's model with the photos of the folder `images`, or of its own where `images` is the scene's folder.

    None after adding faults. Photos without a pose are none of the result: the challenge left them out itself.
    """
    dense = _dense(scene)
    if dense is None:
        allowed = "a folder with dense/images and dense/sparse, or images and sparse"
        faults.append(Fault(str(scene), "reconstruction", "no Phototourism scene", allowed))
        return None
    own = images.resolve() in (scene.resolve(), dense.resolve())
    return read_model(dense / "sparse", dense / "images" if own else images, faults)


def _dense(scene: Path) -> Path | None:
    for place in (scene / "dense", scene):
        if (place / "images").is_dir() and (place / "sparse").is_dir() and find_model(place / "sparse"):
            return place
    return None
