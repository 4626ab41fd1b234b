"""The `encoder pretrain-global` command: settings and an encoder become weights of global features with a card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cadloc.contract import Json
from cadloc_sweep.durable_files import make_folder
from cadloc_sweep.encoder_progress import RunLines
from cadloc_sweep.lock import SweepLock

if TYPE_CHECKING:
    from cadloc.global_config import GlobalPretrainingConfig


def train_global_features(
    out: Path, encoder: str, config: Path | None, say: Callable[[str], None] = lambda line: None
) -> dict[str, Json]:
    """Trains global features of the named encoder in `out`; returns their card. `say` hears of progress.

    Raises InputError, DivergenceError, MissingSystemLibrary, SweepLocked and OutOfResources.
    """
    from cadloc.pretraining_global import Listeners, encoder_named, pretrain_global

    settings = read_global_config(config)
    named = encoder_named(encoder)
    make_folder(out, "--out")
    out = out.resolve()
    with SweepLock(out / "lock"):
        lines = RunLines(settings.steps, say)
        said = Listeners(
            on_building=lines.rendered,
            on_encoding=lambda views: say(f"encoding {views} views"),
            on_row=lambda row: lines.heard([row]),
        )
        card = pretrain_global(settings, named, out, said)
    say(f"weights, card and history of the global features are in {out}")
    return card


def read_global_config(path: Path | None) -> GlobalPretrainingConfig:
    """The settings of a YAML file; None: the defaults. Raises InputError with all its faults."""
    from cadloc.documents import Document, load_document
    from cadloc.faults import validate
    from cadloc.global_config import GlobalPretrainingConfig

    return validate(GlobalPretrainingConfig, Document("defaults", {}) if path is None else load_document(path))
