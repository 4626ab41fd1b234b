"""What a trial leaves behind: its map, its poses, its history; and reading a map back."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from scipy.spatial.transform import Rotation

from cadloc.config import EncoderConfig, TrialConfig
from cadloc.contract import Fault, InputError, Json
from cadloc.encoders import Encoder
from cadloc.encoders import build as build_encoder
from cadloc.encoders.folding import folded
from cadloc.encoders.identity import encoder_digest
from cadloc.encoders.projected import WEIGHTS as PROJECTION_WEIGHTS
from cadloc.encoders.projected import load_projected
from cadloc.finetuning.adapters import load_tuned
from cadloc.geometry import Array, inverse
from cadloc.global_candidates import Candidates, open_candidates, stored_mb
from cadloc.head_config import HeadConfig
from cadloc.heads import build
from cadloc.heads.head import Head
from cadloc.localization import Estimate
from cadloc.loss_config import predicts_deviation
from cadloc.metrics import PoseErrors
from cadloc.projection_config import NoProjection
from cadloc.training_config import LocalizationConfig
from cadloc.whole_files import write_bytes

SCHEMA_VERSION = 3
WEIGHTS, CARD, TUNED, PROJECTION = "map.safetensors", "map.json", "encoder", "projection"


@dataclass(frozen=True, eq=False)
class SceneMap:
    """A trained head with all that a photograph needs to be localized by it.

    `image_size_px` is the (width, height) of the views it was trained on; `origin_m` (3,) is what was subtracted
    from the CAD model's coordinates once they were in metres and z up. `candidates` are what a head that is told of
    whole images reads a photograph with; they see the encoder's features whole, the head sees them projected.
    """

    head: Head
    encoder: Encoder
    localization: LocalizationConfig
    scene: str
    image_size_px: tuple[int, int]
    origin_m: Array
    candidates: Candidates | None


def save_map(
    directory: Path,
    head: Head,
    config: TrialConfig,
    image_size_px: tuple[int, int],
    origin_m: Array,
    tuned: Path | None = None,
    projection: Path | None = None,
) -> None:
    """Writes `map.safetensors` (float32 throughout) and `map.json`; the stages that made its encoder what it is, a
    fine-tuned one and a projection of features, are copied beside them."""
    assert isinstance(config.projection, NoProjection) == (projection is None), "a map takes its projection along"
    for stage, folder in ((tuned, TUNED), (projection, PROJECTION)):
        if stage is not None:
            ignored = shutil.ignore_patterns("manifest*", "used")
            shutil.copytree(stage, directory / folder, dirs_exist_ok=True, ignore=ignored)
    plain = build_encoder(config.encoder) if tuned is None else load_tuned(tuned)
    encoder = plain if projection is None else load_projected(projection, plain)
    tensors = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    card = {
        "schema_version": SCHEMA_VERSION,
        "scene": config.scene.name,
        "head": config.head.model_dump(mode="json"),
        "encoder": config.encoder.model_dump(mode="json"),
        "encoder_digest": encoder_digest(encoder),
        "tuned": tuned is not None,
        **({} if projection is None else {"projection": config.projection.model_dump(mode="json")}),
        "localization": config.localization.model_dump(mode="json"),
        "dimensions": head.dimensions,
        "global_dimensions": getattr(head, "global_dimensions", 0),
        "deviation": predicts_deviation(config.loss),
        "image_size_px": list(image_size_px),
        "origin_m": np.asarray(origin_m).tolist(),
        "frame": "cad: z up, metres, origin_m subtracted",
    }
    write_bytes(directory / WEIGHTS, save(tensors))
    write_bytes(directory / CARD, (json.dumps(card, indent=2) + "\n").encode())


def load_map(path: Path) -> SceneMap:
    """The map in a trial's directory, or of its `map.json`. Raises InputError for what is no map."""
    directory = path.parent if path.suffix else path
    card_path = directory / CARD
    try:
        card = json.loads(card_path.read_text())
        if card["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {card['schema_version']}, this program reads {SCHEMA_VERSION}")
        config, told = _read(HeadConfig, card["head"]), card["global_dimensions"]
        head = build(config, card["dimensions"], seed=0, global_dimensions=told, deviation=card["deviation"])
        head.load_state_dict(load((directory / WEIGHTS).read_bytes()))
        encoder, plain = _encoders(directory, card)
        return SceneMap(
            head.eval().requires_grad_(False),
            encoder,
            _read(LocalizationConfig, card["localization"]),
            card["scene"],
            (int(card["image_size_px"][0]), int(card["image_size_px"][1])),
            np.array(card["origin_m"], dtype=np.float64),
            open_candidates(directory, config, plain, told),
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ValidationError, SafetensorError) as error:
        allowed = f"a map: {CARD} beside {WEIGHTS}, as a finished trial leaves them"
        raise InputError(Fault(str(card_path), "map", str(error).splitlines()[0], allowed)) from error


def map_size_mb(directory: Path) -> float:
    """Size of the map in a trial's directory, without the encoder, in 10⁶ bytes; a projection of features counts."""
    projection = directory / PROJECTION / PROJECTION_WEIGHTS
    parts = (directory / WEIGHTS, *([projection] if projection.exists() else []))
    return sum(path.stat().st_size for path in parts) / 1e6 + stored_mb(directory)


def _encoders(directory: Path, card: Mapping[str, Json]) -> tuple[Encoder, Encoder]:
    """The encoder whose features the head reads, and that one without a projection."""
    named = not card.get("tuned")
    # As stages encode: the map says the same of a photograph as its trial did.
    plain = folded(build_encoder(_read(EncoderConfig, card["encoder"])) if named else load_tuned(directory / TUNED))
    encoder = load_projected(directory / PROJECTION, plain) if "projection" in card else plain
    if encoder_digest(encoder) != card["encoder_digest"]:
        # A head reads the features of one encoder only; those of another, even much like it, are noise to it.
        raise ValueError("its encoder's weights are no longer those the map was made with: run the trial again")
    return encoder, plain


def write_poses(
    path: Path,
    names: Sequence[str],
    estimates: Sequence[Estimate],
    errors: PoseErrors,
    dcre_mean_share: Array | None = None,
) -> None:
    """One row per query: `cam_from_cad` as unit quaternion and translation, errors, inliers; no pose, empty fields.

    Where it is known, the mean DCRE (N,) is given in percent of the image diagonal.
    """
    rows: list[Mapping[str, object]] = []
    for i, (name, estimate) in enumerate(zip(names, estimates, strict=True)):
        pose = dict.fromkeys(("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m"), "")
        if estimate.cad_from_cam is not None:
            numbers = quaternion_and_translation(inverse(estimate.cad_from_cam))
            pose = {key: f"{number:.9g}" for key, number in zip(pose, numbers, strict=True)}
        rows.append(
            {
                "name": name,
                **pose,
                "translation_error_m": f"{errors.translation_m[i]:.6g}",
                "rotation_error_deg": f"{errors.rotation_deg[i]:.6g}",
                **({} if dcre_mean_share is None else {"dcre_mean_pct": f"{100 * dcre_mean_share[i]:.6g}"}),
                "inliers": estimate.inliers,
                "inlier_share": f"{estimate.inlier_share:.4f}",
                "coverage": f"{estimate.coverage:.4f}",
                "runtime_s": f"{estimate.runtime_s:.4f}",
            }
        )
    write_table(path, rows)


def quaternion_and_translation(dst_from_src: Array) -> tuple[float, ...]:
    """(qw, qx, qy, qz, tx, ty, tz) of a rigid transform (4, 4); qw is not negative."""
    x, y, z, w = Rotation.from_matrix(dst_from_src[:3, :3]).as_quat(canonical=True)
    return (w, x, y, z, *dst_from_src[:3, 3])


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """A CSV with the union of the rows' keys as columns, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def _read(union: Any, value: Json) -> Any:
    return TypeAdapter(union).validate_python(value)
