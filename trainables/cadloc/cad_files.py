"""Files that a CAD file refers to (materials, textures, buffers), so that a changed texture is a changed input."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from urllib.parse import unquote


def referenced_files(path: Path) -> tuple[Path, ...]:
    """Existing files named inside an .obj (and its .mtl), .gltf, .dae or .ply; sorted, without repetition."""
    return tuple(place for place in _named_places(path) if place.is_file())


def missing_files(path: Path) -> tuple[str, ...]:
    """Names of files that the model names but that are not there, relative to the model's folder."""
    return tuple(os.path.relpath(place, path.parent) for place in _named_places(path) if not place.is_file())


def _named_places(path: Path) -> tuple[Path, ...]:
    try:
        names = _NAMES.get(path.suffix.lower(), lambda _: [])(path)
    except (OSError, ValueError, AttributeError, TypeError):
        return ()  # unreadable files are reported where the model itself is read
    return tuple(sorted({path.parent / name.strip() for name in names if name.strip()}))


def _obj(path: Path) -> list[str]:
    libraries = re.findall(r"^mtllib\s+(.+)$", path.read_text(errors="replace"), re.MULTILINE)
    textures = [
        name
        for library in libraries
        if (path.parent / library.strip()).is_file()
        for name in _mtl(path.parent / library.strip())
    ]
    return [*libraries, *textures]


def _mtl(path: Path) -> list[str]:
    lines = re.findall(r"^\s*(?:map_\w+|bump)\s+(.+)$", path.read_text(errors="replace"), re.MULTILINE | re.IGNORECASE)
    return [_texture_name(line.strip(), path.parent) for line in lines]


def _texture_name(line: str, folder: Path) -> str:
    """The whole of it where that is a file, as names may hold blanks; else what follows the last option."""
    return line if (folder / line).is_file() or not line.startswith("-") else line.split()[-1]


def _gltf(path: Path) -> list[str]:
    document = json.loads(path.read_text())
    items = [*document.get("buffers", []), *document.get("images", [])]
    return [unquote(item["uri"]) for item in items if not item.get("uri", "data:").startswith("data:")]


def _dae(path: Path) -> list[str]:
    # Only inside <image>: elsewhere <init_from> holds an identifier, not a file.
    image = r"<image\b[^>]*>.*?<init_from>\s*(?:<ref>)?\s*([^<]+?)\s*<"
    return [unquote(name) for name in re.findall(image, path.read_text(errors="replace"), re.DOTALL)]


def _ply(path: Path) -> list[str]:
    header = path.read_bytes()[:4096].split(b"end_header")[0].decode(errors="replace")
    return re.findall(r"^comment TextureFile (.+)$", header, re.MULTILINE)


_NAMES = {".obj": _obj, ".gltf": _gltf, ".dae": _dae, ".ply": _ply}
