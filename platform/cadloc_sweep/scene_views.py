"""The `render` command: views of one scene as a dataset in a folder of one's own, and a sheet to look at."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from cadloc.catalog import test_sets, views_stage
from cadloc.config import TrialConfig, with_preset
from cadloc.contract import Fault, InputError, Json
from cadloc.documents import Document
from cadloc.faults import validate
from cadloc.presets import PRESETS
from cadloc.scene_config import SceneConfig
from cadloc.views_config import ViewsConfig
from cadloc_sweep.durable_files import make_folder
from cadloc_sweep.executors import Executor, StageEvent, StageJob

SHEET_COLUMNS = 6
SHEET_CELL_PX = 240
SHEET_SUFFIXES = (".png", ".jpg", ".jpeg")


def views_config(preset: str, views: int | None) -> ViewsConfig:
    """A preset's views, with another number of mapping views if given. Raises InputError: unknown preset."""
    try:
        chosen: Mapping[str, Json] = with_preset({"preset": preset}).get("views", {})
    except KeyError as error:
        raise InputError(Fault("--preset", "preset", preset, ", ".join(PRESETS))) from error
    config = validate(ViewsConfig, Document(f"preset {preset}", dict(chosen)))
    if views is None:
        return config
    if views < 1:
        raise InputError(Fault("--views", "views", str(views), "a whole number from 1 on"))
    return config.model_copy(update={"counts": config.counts.model_copy(update={"mapping": views})})


def render_views(
    scene: SceneConfig,
    views: ViewsConfig,
    source: str,
    directory: Path,
    executor: Executor,
    on_event: Callable[[StageEvent], None],
) -> None:
    """Renders the dataset into `directory` (new or empty). Raises InputError, and what rendering raises."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(Fault(str(directory), "--to", "a folder that is not empty", "a new or empty folder"))
    trial = TrialConfig(scene=scene, views=views)
    allowed = dict.fromkeys(("synthetic", *test_sets(trial)))
    if source not in allowed:
        raise InputError(Fault("--source", "source", source, f"for {scene.name}: {', '.join(allowed)}"))
    make_folder(directory, "--to")

    def heed(event: StageEvent) -> None:
        if event.error is not None:
            raise event.error
        on_event(event)

    with tempfile.TemporaryDirectory(prefix="cadloc-sweep-") as aside:
        spec = views_stage(trial, source)
        inputs = {role: Path(aside) / role for role in spec.inputs}
        for role, inner in spec.inputs.items():
            inputs[role].mkdir()
            executor.build_stages([StageJob(inner, {}, inputs[role])], heed)
        executor.build_stages([StageJob(spec, inputs, directory.resolve())], heed)


def check_sheet(path: Path, dataset: Path) -> None:
    """Raises InputError unless a contact sheet can be written there once the dataset is made."""
    folder = path.parent
    if path.suffix.lower() not in SHEET_SUFFIXES:
        raise InputError(Fault("--sheet", str(path), f"the suffix '{path.suffix}'", ", ".join(SHEET_SUFFIXES)))
    if path.is_dir() or not (folder.is_dir() or folder.resolve() == dataset.resolve()):
        found = "a folder" if path.is_dir() else f"no folder {folder}"
        raise InputError(Fault("--sheet", str(path), found, "a file in a folder that exists, or in --to"))


def contact_sheet(dataset: Path, path: Path, most: int = 48) -> int:
    """Writes one image of evenly chosen views of all splits; returns how many it shows."""
    from cadloc.datasets.ace_layout import Dataset

    opened = Dataset.open(dataset)
    views = [view for split in opened.splits for view in opened.views(split)]
    chosen = [views[index * len(views) // min(most, len(views))] for index in range(min(most, len(views)))]
    cells = [Image.fromarray(view.read_image()) for view in chosen]
    height_px = round(SHEET_CELL_PX * cells[0].height / cells[0].width)
    rows = -(-len(cells) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * SHEET_CELL_PX, rows * height_px), "white")
    for index, cell in enumerate(cells):
        corner = (index % SHEET_COLUMNS * SHEET_CELL_PX, index // SHEET_COLUMNS * height_px)
        sheet.paste(cell.resize((SHEET_CELL_PX, height_px)), corner)
    sheet.save(path)
    return len(cells)
