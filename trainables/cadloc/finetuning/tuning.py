"""The loop of all fine-tuning strategies: gradients of named objectives become one step of an encoder.

What kept such tunings from showing an effect before is ruled out here by construction: every image enters through
the encoder's own normalisation, photo, render and synthetic view alike; there is one optimizer step per batch; the
gradient is clipped as it is, in full precision, and not scaled by a loss scaler; a run has thousands of updates;
negatives are cells that see points farther away than a reach, never a cell that may show the same surface; and
statistics of normalisation layers stay those of pre-training, which small batches would only spoil.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cadloc.artifacts import write_table
from cadloc.checkpoints import read_checkpoint
from cadloc.contract import DivergenceError, Fault, InputError, digest
from cadloc.encoders import Encoder
from cadloc.encoders.images import features_of
from cadloc.finetuning.adapters import LearnedEncoder, learned, parameters_of, with_adapters
from cadloc.finetuning.cells import CellBatch, Step, read_cells
from cadloc.finetuning.gradients import combined, cosines, unflatten
from cadloc.finetuning.material import Material, draw_step, drawn_ahead
from cadloc.finetuning.measures import kept_measures, pair_measures
from cadloc.finetuning.pairs import draw_pairs, draw_replay
from cadloc.finetuning.settings import FinetuningConfig
from cadloc.finetuning.strategies import Seen, Strategy, all_objectives, build_strategy
from cadloc.finetuning.two_pass import batch_gradients
from cadloc.whole_files import write_bytes

CHECKPOINT, HISTORY = "checkpoint.pt", "history.csv"
ADAPTER_CHANNELS = 64
LOOK_EVERY = 10
"""Steps between two looks at the gradients of the single objectives, which cost a backward pass each."""
_STEPS, _PREPARATION, _VALIDATION = 0, 1, 2
"""Streams of random numbers: of the steps, of what precedes them, of validation."""

Row = dict[str, float]


@dataclass(frozen=True, eq=False)
class TunedEncoder:
    """The encoder of averaged weights, frozen, and the history: a row at the start and at every validation."""

    encoder: LearnedEncoder
    history: Sequence[Row]


@dataclass
class Tuning:
    """A fine-tuning under way. All that is random is a function of seed and step, so that it may stop and go on."""

    config: FinetuningConfig
    original: LearnedEncoder
    encoder: LearnedEncoder
    averaged: LearnedEncoder
    strategy: Strategy
    optimizer: torch.optim.Optimizer
    parameters: Mapping[str, nn.Parameter]
    step: int = 0
    history: list[Row] = field(default_factory=list)

    @property
    def own(self) -> list[nn.Parameter]:
        """The strategy's parameters that learn along."""
        return [parameter for parameter in self.strategy.parameters() if parameter.requires_grad]

    def state(self, fingerprint: str) -> dict[str, Any]:
        """What a checkpoint holds."""
        modules = {name: getattr(self, name).state_dict() for name in _MODULES}
        return {"fingerprint": fingerprint, "step": self.step, "history": self.history, **modules}


_MODULES = ("encoder", "averaged", "strategy", "optimizer")


def tune(
    encoder: Encoder,
    material: Material,
    validation: Material,
    config: FinetuningConfig,
    directory: Path,
    *,
    readers: int = 1,
) -> TunedEncoder:
    """The encoder after `config.steps` steps, and `history.csv` in `directory`, written at every validation.

    It goes on from the checkpoint there, if there is one.

    `readers` threads draw the steps, ahead of their use if more than one; that changes nothing but the time. On the
    CPU and one thread the result is the same bit for bit, interrupted or not. Raises InputError for an encoder
    without weights, material without cells, or a checkpoint of another run; DivergenceError when an objective is
    no longer finite.
    """
    tuning = started(encoder, config)
    fingerprint = digest([config.model_dump(mode="json"), material.names])
    if not _resumed(tuning, directory / CHECKPOINT, fingerprint):
        generator = np.random.default_rng([config.seed, _PREPARATION])
        tuning.strategy.prepare(lambda: _featured(tuning, material, generator))
        tuning.history.append({"step": 0.0, **validated(tuning, validation)})
    while tuning.step < config.steps:
        _until_validation(tuning, material, validation, readers)
        content = io.BytesIO()
        torch.save(tuning.state(fingerprint), content)
        write_bytes(directory / CHECKPOINT, content.getvalue())
        write_table(directory / HISTORY, tuning.history)
    return TunedEncoder(tuning.averaged.eval().requires_grad_(False), tuning.history)


def started(encoder: Encoder, config: FinetuningConfig) -> Tuning:
    """The tuning before its first step: copies of the encoder, with adapters if those are what learns."""
    original = copy.deepcopy(learned(encoder)).to(config.device).eval().requires_grad_(False)
    channels = config.adapter_channels or ADAPTER_CHANNELS
    adapted = with_adapters(original, channels, config.seed) if config.parameters == "adapters" else original
    tuned, averaged = copy.deepcopy(adapted), copy.deepcopy(adapted)
    parameters = parameters_of(tuned, config.parameters)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    strategy = build_strategy(config, original.dimensions).to(config.device)
    groups: list[dict[str, Any]] = [{"params": list(parameters.values()), "lr": config.learning_rate}]
    own = [parameter for parameter in strategy.parameters() if parameter.requires_grad]
    if own:
        groups.append({"params": own, "lr": strategy.own_learning_rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    return Tuning(config, original, tuned, averaged, strategy, optimizer, parameters)


def schedule(config: FinetuningConfig, step: int) -> float:
    """Share of the learning rates in force: linear warm-up under half a cosine down to nothing."""
    return min(1.0, (step + 1) / config.warm_up) * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def averaging(config: FinetuningConfig, step: int) -> float:
    """How much of the averaged weights stays, less at first: the start is soon forgotten, whatever the run's length."""
    return min(config.ema, (1 + step) / (10 + step))


def update(tuning: Tuning, drawn: Step, diameter_m: float, *, separate: bool) -> Row:
    """One step of the optimizer; returns the losses, the gradient's norm and, if `separate`, the cosines.

    Raises DivergenceError when a loss or the gradient is not finite.
    """
    config = tuning.config
    images, pixels = drawn.images, drawn.pixels
    original = drawn.by_role(_rows(tuning.original, images, pixels, config)) if config.anchor else {}

    def objectives(rows: Tensor) -> Mapping[str, Tensor]:
        progress = tuning.step / config.steps
        seen = Seen(drawn, drawn.by_role(rows), original, progress, diameter_m)
        return all_objectives(tuning.strategy, config, seen)

    found = batch_gradients(
        lambda some: read_cells(features_of(tuning.encoder, images[some], config.precision), pixels[some]),
        len(images),
        objectives,
        list(tuning.parameters.values()),
        tuning.own,
        chunk=config.chunk,
        separate=separate or config.gradients != "sum",
    )
    generator = np.random.default_rng([config.seed, _STEPS, tuning.step, 1])
    gradient = combined(found.encoder, config.gradients, generator)
    row = {f"train/{name}": float(loss) for name, loss in found.losses.items()}
    row["train/gradient_norm"] = float(gradient.norm())
    _check(tuning.step, row)
    _apply(tuning, gradient, found.own)
    norms = {f"norm/{name}": float(each.norm()) for name, each in found.encoder.items()} if separate else {}
    return {**row, **norms, **{f"cosine/{name}": value for name, value in cosines(found.encoder).items()}}


def _apply(tuning: Tuning, gradient: Tensor, own: Sequence[Tensor | None]) -> None:
    config, parameters = tuning.config, list(tuning.parameters.values())
    for parameter, piece in zip(parameters, unflatten(gradient, parameters), strict=True):
        parameter.grad = piece
    for parameter, own_piece in zip(tuning.own, own, strict=True):
        parameter.grad = own_piece
    for group, peak in zip(tuning.optimizer.param_groups, _peaks(tuning), strict=True):
        group["lr"] = peak * schedule(config, tuning.step)
    torch.nn.utils.clip_grad_norm_(parameters, config.clip)
    if tuning.own:
        torch.nn.utils.clip_grad_norm_(tuning.own, config.clip)
    tuning.optimizer.step()
    stays, averaged = averaging(config, tuning.step), dict(tuning.averaged.named_parameters())
    with torch.no_grad():
        for name, parameter in tuning.parameters.items():
            averaged[name].lerp_(parameter, 1 - stays)
    tuning.step += 1


def _peaks(tuning: Tuning) -> list[float]:
    return [tuning.config.learning_rate, tuning.strategy.own_learning_rate][: len(tuning.optimizer.param_groups)]


def _check(step: int, row: Row) -> None:
    for name, value in row.items():
        if not math.isfinite(value):
            found = f"fine-tuning: {name} is {value} at step {step}"
            raise DivergenceError(f"{found}; try a smaller finetuning.learning_rate")


def _until_validation(tuning: Tuning, material: Material, validation: Material, readers: int) -> None:
    """Updates up to the next validation, and its row: means since the last one."""
    config = tuning.config
    target = min(config.steps, (tuning.step // config.validate_every + 1) * config.validate_every)

    def draw(step: int) -> Step:
        return draw_step(material, config, tuning.strategy, np.random.default_rng([config.seed, _STEPS, step]))

    steps = drawn_ahead(draw, range(tuning.step, target), readers)
    rows = [update(tuning, drawn, material.diameter_m, separate=_looks(tuning.step, target)) for drawn in steps]
    names = dict.fromkeys(name for row in rows for name in row)
    means = {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
    tuning.history.append({"step": float(tuning.step), **means, **validated(tuning, validation)})


def _looks(step: int, target: int) -> bool:
    """Whether a step keeps its objectives' gradients apart, for their norms and cosines."""
    return step % LOOK_EVERY == LOOK_EVERY - 1 or step + 1 == target


@torch.no_grad()
def validated(tuning: Tuning, validation: Material) -> Row:
    """Losses on crops of validation views, always the same ones, and what is measured on whole images.

    All of the averaged weights, which are what is kept.
    """
    config, encoder = tuning.config, tuning.averaged
    generator = np.random.default_rng([config.seed, _VALIDATION])
    rows: list[Row] = []
    for _ in range(-(-config.validation_pairs // config.images)):
        drawn = draw_step(validation, config, tuning.strategy, generator)
        now, before = (
            drawn.by_role(_rows(some, drawn.images, drawn.pixels, config)) for some in (encoder, tuning.original)
        )
        seen = Seen(drawn, now, before, tuning.step / config.steps, validation.diameter_m)
        losses = {name: float(loss) for name, loss in all_objectives(tuning.strategy, config, seen).items()}
        rows.append({**losses, **tuning.strategy.measures(seen)})
    measured = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows[0] else {}
    measured |= pair_measures(encoder, validation.pairs[: config.validation_pairs], config.device)
    # A stream of its own: the same crops for all strategies, however many the losses above have drawn.
    generator = np.random.default_rng([config.seed, _VALIDATION, 1])
    replay = draw_replay(validation.synthetic, config.crops, config.validation_pairs, config.matches, generator)
    first, second = (cells.to(config.device) for cells in replay)
    measured |= kept_measures(encoder, tuning.original, (first, second))
    return {f"validation/{name}": value for name, value in measured.items()}


def _featured(tuning: Tuning, material: Material, generator: np.random.Generator) -> tuple[CellBatch, Tensor]:
    """Cells of renders and of synthetic views, and what the original encoder says of them."""
    config = tuning.config
    counts = (config.images, config.matches)
    _, renders = draw_pairs(material.pairs, config.crops, *counts, generator)
    synthetic = draw_replay(material.synthetic, config.crops, *counts, generator)
    cells = CellBatch.stacked([renders, *synthetic]).to(config.device)
    return cells, _rows(tuning.original, cells.images, list(cells.pixels), config)


@torch.no_grad()
def _rows(encoder: LearnedEncoder, images: Tensor, pixels: Sequence[Tensor], config: FinetuningConfig) -> Tensor:
    """Features (N, C) of the cells of all images, without a graph, a few images at a time."""
    slices = [slice(start, start + config.chunk) for start in range(0, len(images), config.chunk)]
    return torch.cat([read_cells(features_of(encoder, images[s], config.precision), pixels[s]) for s in slices])


def _resumed(tuning: Tuning, path: Path, fingerprint: str) -> bool:
    stored = read_checkpoint(path)
    if stored is None:
        return False
    if stored["fingerprint"] != fingerprint:
        allowed = "one of this very configuration and material"
        raise InputError(Fault(str(path), "checkpoint", "a checkpoint of another run", allowed, "delete it"))
    for name in _MODULES:
        getattr(tuning, name).load_state_dict(stored[name])
    tuning.step, tuning.history = stored["step"], list(stored["history"])
    return True
