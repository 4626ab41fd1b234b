"""What a trial looks like in a tracking tool: names, parameters, tags, curves and files, free of any tool."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from cadloc.contract import Json
from cadloc_sweep.trials import Trial, TrialPaths, TrialResult

LONGEST_VALUE = 6000
"""Longest parameter value that MLflow stores."""


def run_name(trial: Trial) -> str:
    """Scene, arm and seed in one line, cut to what a table shows."""
    return f"{trial.scene} {trial.arm_label} #{trial.seed}"[:250]


def parameters(trial: Trial) -> dict[str, str]:
    """The whole configuration as dotted keys with text values: `loss.name` -> `switching`."""
    flat = _flat(trial.config.model_dump(mode="json"), "")
    return {key: _text(value)[:LONGEST_VALUE] for key, value in flat}


def tags(trial: Trial, space_name: str) -> dict[str, str]:
    """What runs are searched and grouped by; known before the trial has run."""
    return {
        "cadloc.trial": trial.id,
        "cadloc.kind": "trial",
        "space": space_name,
        "arm": trial.arm_label,
        "arm_id": trial.arm,
        "scene": trial.scene,
        "seed": str(trial.seed),
        "encoder": trial.config.encoder.name,
        "head": trial.config.head.name,
        "loss": trial.config.loss.name,
    }


def end_tags(result: TrialResult) -> dict[str, str]:
    """What is known once the trial has run: status, error, device, versions, commit."""
    known = {"status": result.status, "device": result.device, "versions": json.dumps(dict(result.versions))}
    if result.error:
        known["error"] = result.error[:LONGEST_VALUE]
    if "commit" in result.versions:
        known |= dict.fromkeys(("git_commit", "mlflow.source.git.commit"), result.versions["commit"])
    return known


def artifacts(directory: Path) -> Iterator[tuple[Path, str | None]]:
    """The files worth keeping beside the numbers, each with its folder: no checkpoints."""
    paths = TrialPaths(directory)
    singles = (paths.config, paths.result, paths.history, paths.log, paths.map, paths.map_card)
    for path in (*singles, *sorted(directory.glob("poses_*.csv")), *sorted(directory.glob("history.csv"))):
        if path.is_file():
            yield path, None
    # Of a map whose encoder was tuned, or its features projected: the map cannot be read without them.
    for part in ("encoder", "projection"):
        for path in sorted(path for path in (directory / part).glob("*") if path.is_file()):
            yield path, part
    for path in sorted(paths.figures.glob("*.png")):
        yield path, paths.figures.name


def _flat(value: Json, prefix: str) -> Iterator[tuple[str, Json]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _text(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value)
