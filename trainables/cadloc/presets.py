"""Named budgets: `smoke` proves the loop, `quick` localizes on two CPU cores, `reduced` sooner and worse, `paper` is
ACE's own for a GPU, `paper_glace` GLACE's."""

from __future__ import annotations

from typing import Any, Final

from cadloc.settings import merged

SMOKE: Final[dict[str, Any]] = {
    "views": {
        "image": {"width_px": 160, "height_px": 120},
        "counts": {"mapping": 40, "validation": 4, "query": 8},
    },
    "encoder": {"name": "small"},
    "buffer": {"samples": 6_000, "passes": 1},
    "head": {"name": "anchor", "width": 64, "anchors": 512, "blocks": 0},
    "training": {"iterations": 200, "batch_size": 512, "learning_rate": 6e-3, "validations": 2},
}

QUICK: Final[dict[str, Any]] = {
    "views": {
        "image": {"width_px": 640, "height_px": 480},
        "counts": {"mapping": 250, "validation": 12, "query": 40},
    },
    "encoder": {"name": "small"},
    "buffer": {"samples": 400_000, "passes": 2},
    "head": {"name": "anchor", "width": 256, "anchors": 4096, "blocks": 1},
    "training": {"iterations": 600, "batch_size": 1024, "learning_rate": 6e-3, "validations": 3},
    "localization": {"max_iterations": 2_000, "min_iterations": 500},
}

# A quarter of `quick`'s time: for sweeps of hundreds of trials on two CPU cores, whose arms are compared with one
# another.
REDUCED: Final[dict[str, Any]] = merged(
    QUICK,
    {
        "views": {"image": {"width_px": 480, "height_px": 360}, "counts": {"mapping": 150}},
        "buffer": {"samples": 150_000, "passes": 1},
        "head": {"anchors": 2048},
        "training": {"iterations": 300, "validations": 1},
    },
)

# ACE, section 4 and supplement: 8 M samples, batch 5120, 16 passes, one cycle to 5e-3.
PAPER: Final[dict[str, Any]] = {
    "views": {
        "image": {"width_px": 640, "height_px": 480},
        "counts": {"mapping": 2_000, "validation": 100, "query": 200},
    },
    "encoder": {"name": "small"},
    "buffer": {"samples": 8_000_000, "passes": 4},
    "head": {"name": "ace", "width": 512, "blocks": 1},
    "training": {
        "iterations": 25_000,
        "batch_size": 5120,
        "learning_rate": 5e-3,
        "validations": 10,
        "precision": "bfloat16",
    },
}

# GLACE, section 4.1 and supplement, on one GPU: 16 M samples, batch 40,960, 30,000 iterations.
PAPER_GLACE: Final[dict[str, Any]] = merged(
    PAPER,
    {
        "buffer": {"samples": 16_000_000, "passes": 8},
        "head": {"name": "glace", "width": 768, "blocks": 2, "centres": 50},
        "training": {"iterations": 30_000, "batch_size": 40_960},
    },
)

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "smoke": SMOKE,
    "quick": QUICK,
    "reduced": REDUCED,
    "paper": PAPER,
    "paper_glace": PAPER_GLACE,
}
