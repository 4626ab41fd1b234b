"""Pre-training of encoders on made-up buildings: contrastive, by scene coordinates, or from another extractor.

One loop for all methods. A run belongs to its directory: started again it goes on from its last checkpoint and ends as
it would have ended (bit for bit on one kind of CPU). Several workers share a step (`cadloc.workers`)
without changing what it is; `cadloc_sweep.executors.on_ray_training` starts them.
"""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, assert_never

import numpy as np
import torch
from torch import nn

from cadloc.contract import DivergenceError, Fault, InputError, Json
from cadloc.encoders.ace import AceFeatures, save_ace
from cadloc.encoders.small import SmallFeatures
from cadloc.pretraining_config import Contrastive, Distillation, PretrainingConfig, Regression
from cadloc.pretraining_contrast import Contrast
from cadloc.pretraining_data import render_pool
from cadloc.pretraining_distillation import TeachersFeatures
from cadloc.pretraining_files import write_forced
from cadloc.pretraining_history import History, Row
from cadloc.pretraining_objective import Drawn, Material, Objective, Trainee, drawn_steps, usable_buildings
from cadloc.pretraining_pairs import PooledBuilding
from cadloc.pretraining_regression import SceneCoordinates
from cadloc.pretraining_validation import ValidationSet
from cadloc.pretraining_workers import share_batch_norms
from cadloc.workers import ALONE, Workers

__all__ = ["Site", "check_claim", "claim", "make_objective", "pretrain", "train"]

CLIP = 5.0
"""Largest norm of a step's gradient."""

_NO_CHECKPOINT = (
    RuntimeError, LookupError, TypeError, ValueError, AttributeError, EOFError, pickle.UnpicklingError,
)  # fmt: skip
"""What reading a file that is cut off, or something else altogether, may raise."""

Listener: TypeAlias = Callable[[Row], None]


@dataclass(frozen=True)
class Site:
    """Where a run works: none of it changes the result but by rounding (`cadloc.pretraining_workers`: one exception).

    `loaders`: processes that draw data ahead; 0 draws between the steps, in this process. The listener hears of every
    row of the history, on the first worker only, after a resume from the row that follows the checkpoint. Raises
    InputError for a device that is not there. `on_building` hears, while the pool is rendered, how many of how many
    buildings are there.
    """

    workers: Workers = ALONE
    device: str = "cpu"
    loaders: int = 0
    listener: Listener | None = None
    on_building: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        there = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        allowed = ["cpu", *(["cuda", *there] if there else [])]
        if self.device not in allowed:
            raise InputError(Fault("command line", "--device", self.device, ", ".join(allowed)))


HERE = Site()


def pretrain(config: PretrainingConfig, directory: Path, site: Site = HERE) -> dict[str, Json]:
    """Renders the pool, trains, and leaves weights, card and `history.csv` in `directory`; returns the card.

    Weights are `small.safetensors`, or `ace.pt` with ACE's names. Started again in the same directory it goes on from
    its last checkpoint. Raises InputError when the directory holds the run of another configuration or a damaged file,
    when the pool shows too little to learn from, when the teacher cannot be used, or when a batch cannot be shared by
    the workers; DivergenceError when the loss is not finite.
    """
    claim(directory, config)
    pool = render_pool(config.pool, directory / "pool", site.on_building)
    held_out, photographs = ([PooledBuilding.open(path) for path in part] for part in (pool.held_out, pool.photographs))
    validation = ValidationSet.drawn(held_out, photographs, config.validation_pairs, config.seed)
    encoder, history = train([PooledBuilding.open(path) for path in pool.training], config, directory, validation, site)
    card = {
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "training": {"data": "procedural buildings made by this project", "config": config.model_dump(mode="json")},
        "final_loss": float(np.mean(history.losses[-50:])),
        "validation": validation.precision(encoder),
    }
    if site.workers.rank == 0:
        _save(encoder, directory, card)
    site.workers.wait()
    return card


def train(
    buildings: Sequence[PooledBuilding],
    config: PretrainingConfig,
    directory: Path,
    validation: ValidationSet | None = None,
    site: Site = HERE,
) -> tuple[Trainee, History]:
    """The encoder after `config.steps` steps on the buildings, for evaluation, and its history.

    `directory` holds the checkpoint and `history.csv`. Raises what `pretrain` raises.
    """
    encoder = _initialised(config)
    share_batch_norms(encoder, site.workers)
    encoder.to(site.device)
    objective = make_objective(Material(usable_buildings(buildings, config), config, site.workers))
    objective.prepare(encoder.dimensions, site.device)
    run = _Run(config, site, encoder, objective)
    history = run.resumed(directory / "checkpoint.pt")
    encoder.train()
    for step, drawn in drawn_steps(objective, len(history), config.steps, site.loaders, site.workers, site.device):
        row = run.step(step, drawn)
        done = step + 1
        if validation is not None and (done % config.validate_every == 0 or done == config.steps):
            row |= {f"precision/{kind}": value for kind, value in validation.precision(encoder.eval()).items()}
            encoder.train()
        history.rows.append(row)
        if site.workers.rank == 0:
            if site.listener is not None:
                site.listener(row)
            if done % config.checkpoint_every == 0 or done == config.steps:
                run.save(directory, history)
    return encoder.eval(), history


def make_objective(material: Material) -> Objective:
    """The configured method at work. Raises InputError for a batch that cannot be shared, or an unusable teacher."""
    method = material.config.method
    match method:
        case Contrastive():
            return Contrast(method, material)
        case Regression():
            return SceneCoordinates(method, material)
        case Distillation():
            return TeachersFeatures(method, material)
        case _:
            assert_never(method)


def schedule(config: PretrainingConfig, step: int) -> float:
    """Factor of the learning rates: linear warm-up, then half a cosine down to nothing at the last step."""
    warm = min(1.0, (step + 1) / config.warm_up)
    return warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


class _Run:
    """Encoder, objective and optimizer, and how they take a step, stop and go on."""

    def __init__(self, config: PretrainingConfig, site: Site, encoder: Trainee, objective: Objective) -> None:
        self._config, self._site, self._encoder, self._objective = config, site, encoder, objective
        method = config.method
        own_rate = method.head_learning_rate if isinstance(method, Regression) else config.learning_rate
        groups: list[dict[str, Any]] = [{"params": list(encoder.parameters()), "base": config.learning_rate}]
        if own := list(objective.parameters()):
            groups.append({"params": own, "base": own_rate})
        self._optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)

    def step(self, step: int, drawn: Drawn) -> Row:
        """One step of the schedule; raises DivergenceError on all workers alike."""
        self._objective.begin(step, self._optimizer)
        for group in self._optimizer.param_groups:
            group["lr"] = group["base"] * schedule(self._config, step)
        loss = self._objective.loss(self._encoder, drawn, self._update)
        whole = self._site.workers.mean(loss.detach()).item()
        if not math.isfinite(whole):
            raise DivergenceError(f"pre-training: the loss is {whole} at step {step}")
        self._update(loss, [*self._encoder.parameters(), *self._objective.active(drawn)])
        return {"step": step + 1, "loss": whole, "learning_rate": self._optimizer.param_groups[0]["lr"]}

    def resumed(self, path: Path) -> History:
        """What was done so far; everything takes the checkpoint's state. Empty when there is none.

        Raises InputError for a file that is no checkpoint of this run.
        """
        if not path.is_file():
            return History()
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            self._encoder.load_state_dict(state["encoder"])
            self._objective.load_state_dict(state["objective"])
            self._optimizer.load_state_dict(state["optimizer"])
            return History(list(state["history"]))
        except _NO_CHECKPOINT as error:
            found, action = f"a file that cannot be read ({type(error).__name__})", "remove it to start anew"
            raise InputError(Fault(str(path), "checkpoint", found, "a checkpoint of this run", action)) from error

    def save(self, directory: Path, history: History) -> None:
        """Writes the checkpoint, all or nothing and forced to disk, and the history for people."""
        modules = {"encoder": self._encoder, "objective": self._objective, "optimizer": self._optimizer}
        state = {name: module.state_dict() for name, module in modules.items()} | {"history": history.rows}
        stored = io.BytesIO()
        torch.save(state, stored)
        write_forced(directory / "checkpoint.pt", stored.getvalue())
        history.write(directory / "history.csv")

    def _update(self, loss: torch.Tensor, parameters: Sequence[nn.Parameter]) -> None:
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._site.workers.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, CLIP)
        self._optimizer.step()


def _initialised(config: PretrainingConfig) -> Trainee:
    match config.architecture:
        case "small":
            return SmallFeatures().initialised(config.seed)
        case "ace":
            return AceFeatures().initialised(config.seed)
        case _:
            assert_never(config.architecture)


def _save(encoder: Trainee, directory: Path, card: dict[str, Json]) -> None:
    if isinstance(encoder, SmallFeatures):
        encoder.save(directory / "small.safetensors", card)
    else:
        save_ace(encoder, directory / "ace.pt", card)


def claim(directory: Path, config: PretrainingConfig) -> None:
    """Makes the directory, if need be, and marks it as this configuration's.

    Raises InputError when it holds the run of another one.
    """
    check_claim(directory, config)
    place = directory / "config.json"
    if not place.is_file():
        write_forced(place, (json.dumps(config.model_dump(mode="json"), indent=2) + "\n").encode())


def check_claim(directory: Path, config: PretrainingConfig) -> None:
    """Raises InputError when the directory is marked as another configuration's."""
    place = directory / "config.json"
    if not place.is_file():
        return
    try:
        other = _differing(json.loads(place.read_text()), config.model_dump(mode="json"), "")
    except ValueError:
        other = ["no JSON"]
    if other:
        found = f"a pre-training run of another configuration ({', '.join(other)})"
        allowed = "the same configuration, or an empty folder"
        raise InputError(Fault(str(place), "config", found, allowed, "choose another folder"))


def _differing(one: Json, other: Json, prefix: str) -> list[str]:
    """Dotted keys whose values are not the same."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [prefix.removesuffix(".") or "all of it"]
    keys = dict.fromkeys([*one, *other])
    return [found for key in keys for found in _differing(one.get(key), other.get(key), f"{prefix}{key}.")]
