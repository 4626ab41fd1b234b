"""With which global features a photograph is read by a map: its own, or those of the mapping views like it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cadloc.encoders import Encoder
from cadloc.global_features import WEIGHTS, Describer, open_describer, retrieve
from cadloc.head_config import GlaceHead, HeadConfig
from cadloc.whole_files import write_bytes

FOLDER, MAPPING = "global_features", "mapping.f32"
"""Below a map: what describes images, and the mapping views' global features where queries are read with those."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Of a photograph; `mapping` (V, G) are the global features of the mapping views, None where its own are used."""

    describer: Describer
    mapping: NDArray[np.float32] | None
    retrieved: int

    def of(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Global features (H, G) to read an RGB image (H, W, 3) with, in turn."""
        return candidates_of(self.describer.describe(image), self.mapping, self.retrieved)


def candidates_of(own: NDArray[np.float32], mapping: NDArray[np.float32] | None, retrieved: int) -> NDArray[np.float32]:
    """(H, G): an image's own global feature (G,) alone, or the `retrieved` nearest to it among the mapping views'."""
    return own[None] if mapping is None else mapping[retrieve(own, mapping, retrieved)]


def keep_candidates(directory: Path, head: GlaceHead, stage: Path, mapping: NDArray[np.float32]) -> None:
    """Copies what a map in `directory` needs to describe photographs as the finished `stage` described its views."""
    folder = directory / FOLDER
    folder.mkdir(exist_ok=True)
    for path in ((stage / WEIGHTS), (stage / WEIGHTS).with_suffix(".json")):
        if path.exists():  # a plug-in has no weights of ours
            shutil.copyfile(path, folder / path.name)
    if head.query == "retrieved":
        write_bytes(folder / MAPPING, np.ascontiguousarray(mapping, np.float32).tobytes())


def open_candidates(directory: Path, head: HeadConfig, encoder: Encoder, dimensions: int) -> Candidates | None:
    """What a map in `directory` reads photographs with; None where its head is told nothing of whole images.

    `dimensions` are the numbers G of a global feature. Raises OSError, ValueError or InputError for files that are
    missing, damaged or of another encoder.
    """
    if not isinstance(head, GlaceHead) or head.global_features is None:
        return None
    folder = directory / FOLDER
    describer = open_describer(head.global_features, encoder, folder)
    if head.query == "own":
        return Candidates(describer, None, 1)
    mapping = np.frombuffer((folder / MAPPING).read_bytes(), np.float32).reshape(-1, dimensions)
    return Candidates(describer, mapping, head.retrieved)


def stored_mb(directory: Path) -> float:
    """Size of the mapping views' global features below a map, in 10⁶ bytes."""
    path = directory / FOLDER / MAPPING
    return path.stat().st_size / 1e6 if path.exists() else 0.0
