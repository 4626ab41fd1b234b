"""Maps for others and from others: ACE's head file, and beside it a card with what that file does not say."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import Field, ValidationError

from cadloc.artifacts import CARD, load_map, save_map
from cadloc.config import AceEncoder, DenseHog, EncoderConfig, SmallEncoder, TrialConfig
from cadloc.contract import Fault, InputError, Json
from cadloc.encoders import Encoder
from cadloc.encoders import build as build_encoder
from cadloc.encoders.ace import AceFeatures
from cadloc.encoders.identity import encoder_digest
from cadloc.encoders.projected import Projected
from cadloc.finetuning.adapters import load_tuned
from cadloc.geometry import Array
from cadloc.heads.ace import AcePerceptron
from cadloc.heads.ace_file import ACE_WIDTH, AceFile, read_ace_head, write_ace_head
from cadloc.localization import REFERENCE_SIDE_PX
from cadloc.scene_config import CadConfig, SceneConfig
from cadloc.settings import Settings
from cadloc.whole_files import write_bytes

FRAME = "cad: z up, metres, origin_m subtracted"
CONVENTIONS = {
    "predictions": "scene coordinates in `frame`, metres; add origin_m in float64 for the CAD file's own metres",
    "cameras": "OpenCV axes: x right, y down, z forward",
    "pixels": "the first pixel's centre is (0.5, 0.5); feature cell (i, j) looks at (8 (j + 0.5), 8 (i + 0.5))",
    "images": "resized to image_short_side_px, then encoded",
}

_UNUSUAL_ROUNDING_M = 0.01

_BY_NAME: Mapping[str, EncoderConfig] = {"shipped": SmallEncoder(), "dense-hog": DenseHog()}

T = TypeVar("T")


class EncoderFacts(Settings):
    """Whose features a head reads."""

    name: str
    """`ace`, `small` or `dense-hog`."""
    digest: str
    """SHA-256 of its weights, as a map's own card has it."""
    dimensions: int
    tuned: bool
    """Whether it was tuned to the scene: then it lies in the map's folder `encoder`."""


class HeadFileCard(Settings):
    """What a head file does not say, beside it as JSON."""

    format: Literal["ACE head"] = "ACE head"
    schema_version: Literal[1] = 1
    scene: str
    frame: str = FRAME
    origin_m: tuple[float, float, float]
    """Subtracted from the CAD file's coordinates once they were in metres and z up; float64."""
    image_short_side_px: Annotated[int, Field(ge=8)]
    encoder: EncoderFacts
    precision: str
    conventions: Mapping[str, str] = CONVENTIONS
    not_for_ace: tuple[str, ...] = ()
    """Why ACE's own program cannot use the file; empty where it can."""


@dataclass(frozen=True)
class Source:
    """A head file to import, with what its card would say; None: the card's, or 480 px and an origin of zeros."""

    head: Path
    encoder: str
    """`shipped`, `dense-hog`, a .safetensors file of the encoder `small`, a tuned encoder's folder, or ACE's file."""
    short_side_px: int | None = None
    origin_m: tuple[float, float, float] | None = None


def export_map(place: Path, to: Path, *, float32: bool = False) -> tuple[str, ...]:
    """Writes a map with ACE's head as ACE's file `to` (.pt) and a card of the same name (.json).

    Returns what hinders ACE's own program to use it. Raises InputError for what is no map, a map with another
    head or of projected features, weights beyond half precision, and files that are there already. A deviation that
    the head says of its predictions is left out: the file has no place for it.
    """
    card_path = to.with_suffix(".json")
    scene, faults = _attempt(lambda: load_map(place))
    if to.suffix not in (".pt", ".pth"):
        faults.append(Fault("--to", "name", str(to), "a name that ends in .pt"))
    faults += [Fault("--to", "file", f"{path} is there", "new files") for path in (to, card_path) if path.exists()]
    if scene is not None and not isinstance(scene.head, AcePerceptron):
        found = f"the head {_map_card(place)['head']['name']}"
        action = "ACE's file has names for its own perceptron about one centre only; share the map's folder instead"
        faults.append(Fault(str(place), "head", found, "the head ace", action))
    if scene is not None and isinstance(scene.encoder, Projected):
        found = f"a projection of the features to {scene.encoder.dimensions} channels"
        action = "ACE's file has no place for a projection; share the map's folder instead"
        faults.append(Fault(str(place), "projection", found, "none", action))
    if scene is None or faults or not isinstance(scene.head, AcePerceptron):
        raise InputError(faults)
    card = _card_of(place, scene.scene, scene.head, min(scene.image_size_px), scene.origin_m, float32)
    with _writing():
        write_ace_head(to, scene.head, float32=float32)
        write_bytes(card_path, (json.dumps(card.model_dump(mode="json"), indent=2) + "\n").encode())
    return card.not_for_ace


def import_map(source: Source, to: Path) -> tuple[str, ...]:
    """Makes of an ACE head file a map in the new or empty folder `to`, as a trial leaves one.

    Returns what is doubtful about it. Raises InputError with every fault of file, card, encoder and options.
    """
    encoder, faults = _attempt(lambda: _read_encoder(source.encoder))
    dimensions = None if encoder is None else encoder.built.dimensions
    read, of_head = _attempt(lambda: read_ace_head(source.head, dimensions))
    card, of_card = _attempt(lambda: _read_card(source.head.with_suffix(".json")))
    faults += [*of_head, *of_card, *_option_faults(source, to)]
    if card is not None and encoder is not None and card.encoder.digest != encoder_digest(encoder.built):
        found = f"{source.encoder}, with other weights than those the head was trained on"
        faults.append(Fault("--encoder", "encoder", found, f"the encoder {card.encoder.name} named by its card"))
    if faults or read is None or encoder is None:
        raise InputError(faults)
    side_px = source.short_side_px or (card.image_short_side_px if card else REFERENCE_SIDE_PX)
    origin_m = source.origin_m or (card.origin_m if card else (0.0, 0.0, 0.0))
    scene = card.scene if card else source.head.stem
    size_px = (round(side_px * 4 / 3), side_px)
    with _writing():
        save_map(to, read.head, _trial(scene, read, encoder, source), size_px, np.array(origin_m), encoder.tuned)
    return _doubts(read, card)


@dataclass(frozen=True, eq=False)
class _NamedEncoder:
    config: EncoderConfig
    built: Encoder
    tuned: Path | None = None


def _read_encoder(named: str) -> _NamedEncoder:
    """The encoder that a user names. Raises InputError with key `encoder` or `encoder.weights`."""
    place = Path(named).absolute()
    if named in _BY_NAME:
        config = _BY_NAME[named]
    elif place.is_dir():
        tuned = load_tuned(place)
        return _NamedEncoder(AceEncoder() if isinstance(tuned, AceFeatures) else SmallEncoder(), tuned, place)
    elif place.suffix == ".safetensors":
        config = SmallEncoder(weights=str(place))
    else:
        config = AceEncoder(weights=str(place))
    return _NamedEncoder(config, build_encoder(config))


def _read_card(path: Path) -> HeadFileCard | None:
    """The card beside a head file; None where there is none, or the file of another program. Raises InputError."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        ours = isinstance(content, Mapping) and content.get("format") == HeadFileCard.model_fields["format"].default
        return HeadFileCard.model_validate(content) if ours else None
    except ValidationError as error:
        told = [".".join(map(str, each["loc"])) + f": {each['msg']}" for each in error.errors()]
        raise InputError([Fault(str(path), "card", one, "a card as `map export` writes it") for one in told]) from error
    except (OSError, ValueError):
        return None


def _option_faults(source: Source, to: Path) -> list[Fault]:
    faults = []
    if source.origin_m is not None and not all(map(math.isfinite, source.origin_m)):
        faults.append(Fault("--origin", "origin", str(source.origin_m), "three finite numbers, in metres"))
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        faults.append(Fault("--to", "folder", f"{to}, with something in it", "a new or empty folder"))
    return faults


def _trial(scene: str, read: AceFile, encoder: _NamedEncoder, source: Source) -> TrialConfig:
    """What a map's card needs to know of the trial that made it."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", scene).lstrip("_-")[:64] or "imported"
    # Nothing of the scene is known but its map; its place in the configuration takes the file the map came from.
    config = SceneConfig(name=name, cad=CadConfig(path=str(source.head), up="z"))
    return TrialConfig(scene=config, encoder=encoder.config, head=read.config)


def _doubts(read: AceFile, card: HeadFileCard | None) -> tuple[str, ...]:
    doubts = []
    if read.centre_rounding_m > _UNUSUAL_ROUNDING_M:
        doubts.append(
            f"its centre is kept in half precision, which may have moved all poses by {read.centre_rounding_m:.3g} m"
        )
    if card is None:
        doubts.append("no card beside it: that the encoder is the one it was trained on is for you to know")
    return tuple(doubts)


def _card_of(
    place: Path, scene: str, head: AcePerceptron, short_side_px: int, origin_m: Array, float32: bool
) -> HeadFileCard:
    card = _map_card(place)
    facts = EncoderFacts(
        name=card["encoder"]["name"],
        digest=card["encoder_digest"],
        dimensions=head.dimensions,
        tuned=bool(card["tuned"]),
    )
    x, y, z = (float(value) for value in origin_m)
    return HeadFileCard(
        scene=scene,
        origin_m=(x, y, z),
        image_short_side_px=short_side_px,
        encoder=facts,
        precision="float32" if float32 else "float16; mean, fc3 and the scales float32",
        not_for_ace=tuple(_hindrances(facts, head)),
    )


def _hindrances(encoder: EncoderFacts, head: AcePerceptron) -> list[str]:
    found = []
    width = head.read_out.in_features
    if width != ACE_WIDTH:
        found.append(f"its width is {width}, and ACE's program builds {ACE_WIDTH} only")
    if encoder.name != "ace":
        found.append(f"it reads the encoder {encoder.name}, and ACE's program has its own only")
    if encoder.tuned:
        found.append("it reads an encoder tuned to the scene, in the map's folder `encoder`")
    return found


def _map_card(place: Path) -> Json:
    return json.loads(((place.parent if place.suffix else place) / CARD).read_text())


@contextmanager
def _writing() -> Iterator[None]:
    """What cannot be written is the fault of the place that was asked for."""
    try:
        yield
    except OSError as error:
        raise InputError(Fault("--to", "place", str(error), "a place that can be written to")) from error


def _attempt(make: Callable[[], T]) -> tuple[T | None, list[Fault]]:
    """What is made, or what is wrong with it: so that several inputs can be checked before any is refused."""
    try:
        return make(), []
    except InputError as error:
        return None, list(error.faults)
