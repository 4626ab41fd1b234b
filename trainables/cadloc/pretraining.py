"""Pre-training of the `small` encoder: the same surface point must give the same feature, another point another one.

Contrastive learning of dense correspondence with a symmetric InfoNCE loss (van den Oord et al., 2018) over pairs of
views of made-up buildings whose materials, light, sky and camera differ from view to view. The negatives are cells of
the same images and of the whole batch that see another point; windows and columns of one facade look alike, so those
of the same building are the hard ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, grid_sample, normalize

from cadloc.contract import DivergenceError, Fault, InputError, Json, digest
from cadloc.encoders import Encoder
from cadloc.encoders.images import STRIDE
from cadloc.encoders.small import SmallFeatures
from cadloc.geometry import Array
from cadloc.pretraining_data import PoolConfig, render_pool
from cadloc.pretraining_pairs import (
    Pair,
    PooledBuilding,
    draw_batch,
    grid_of,
    match_cells,
    plain_views,
    under_sky,
)
from cadloc.settings import Count, NonNegative, Positive, Seed, Settings

Side = Annotated[int, Field(ge=64, le=4096, multiple_of=STRIDE)]


class PretrainingConfig(Settings):
    """What the encoder learns from, how long, and how."""

    pool: PoolConfig = PoolConfig()
    steps: Count = 2_000
    pairs: Count = 8
    pairs_per_building: Count = 2
    matches: Count = 128
    """Matches per pair; as many other cells of each image join the negatives."""
    width_px: Side = 256
    height_px: Side = 192
    """Size of the crops."""
    temperature: Positive = 0.07
    learning_rate: Positive = 5e-3
    weight_decay: NonNegative = 0.01
    warm_up: Count = 30
    checkpoint_every: Count = 50
    validation_pairs: Count = 48
    seed: Seed = 0


def pretrain(config: PretrainingConfig, directory: Path) -> dict[str, Json]:
    """Renders the pool, trains, and leaves `small.safetensors` with its card in `directory`; returns the card.

    Started again in the same directory it goes on from its last checkpoint; the result is the same, bit for bit on
    one kind of CPU. Raises InputError when the directory holds the run of another configuration.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _claim(directory, config)
    training, held_out = render_pool(config.pool, directory / "pool")
    encoder, history = train([PooledBuilding.open(path) for path in training], config, directory)
    validation = matching_precision(
        encoder, [PooledBuilding.open(path) for path in held_out], config.validation_pairs, config.seed
    )
    card = {
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "training": {"data": "procedural buildings made by this project", "config": config.model_dump(mode="json")},
        "final_loss": float(np.mean(history[-50:])),
        "validation": validation,
    }
    encoder.save(directory / "small.safetensors", card)
    return card


def train(
    buildings: Sequence[PooledBuilding], config: PretrainingConfig, directory: Path
) -> tuple[SmallFeatures, list[float]]:
    """The encoder after `config.steps` steps on the buildings, for evaluation, and the loss of each step.

    `directory` holds the checkpoint. Raises DivergenceError when the loss is no longer finite.
    """
    encoder = SmallFeatures().initialised(config.seed)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    history = _resumed(directory / "checkpoint.pt", encoder, optimizer)
    encoder.train()
    for step in range(len(history), config.steps):
        # Each step draws from its own stream: resuming needs no generator's state.
        generator = np.random.default_rng([config.seed, step])
        pairs, owners = draw_batch(
            buildings,
            (config.width_px, config.height_px),
            config.pairs,
            config.pairs_per_building,
            config.matches,
            generator,
        )
        loss = batch_loss(encoder, pairs, owners, config.temperature)
        if not torch.isfinite(loss):
            raise DivergenceError(f"pre-training: the loss is {loss.item()} at step {step}")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 5.0)
        optimizer.step()
        history.append(loss.item())
        if len(history) % config.checkpoint_every == 0 or len(history) == config.steps:
            _save_checkpoint(directory, encoder, optimizer, history)
    return encoder.eval(), history


def learning_rate(config: PretrainingConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to nothing at the last step."""
    warm = min(1.0, (step + 1) / config.warm_up)
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def batch_loss(
    encoder: torch.nn.Module,
    pairs: Sequence[Pair],
    owners: NDArray[np.int_],
    temperature: float,
) -> Tensor:
    """InfoNCE of a batch of pairs with the same number n of matches each; `owners` (pairs,) tells their buildings."""
    images = np.stack([pair.image_a for pair in pairs] + [pair.image_b for pair in pairs])
    features_a, features_b = encoder(torch.from_numpy(images).permute(0, 3, 1, 2)).split(len(pairs))
    rows_a = at_cells(features_a, [pair.match.cells_a for pair in pairs])
    rows_b = at_pixels(features_b, [pair.match.pixels_b for pair in pairs])
    others_a = at_cells(features_a, [pair.others_a.cells for pair in pairs])
    others_b = at_cells(features_b, [pair.others_b.cells for pair in pairs])
    points = _joined(pair.match.points_cad for pair in pairs)
    reach_m = _joined(pair.match.reach_m for pair in pairs)
    owner = torch.from_numpy(owners)
    same = same_point(points, reach_m, points, owner)
    same.fill_diagonal_(False)
    same_b, same_a = (
        same_point(points, reach_m, _joined(cells.points_cad for cells in others), owner)
        for others in ([pair.others_b for pair in pairs], [pair.others_a for pair in pairs])
    )
    forward = info_nce(rows_a, torch.cat([rows_b, others_b]), torch.cat([same, same_b], 1), temperature)
    backward = info_nce(rows_b, torch.cat([rows_a, others_a]), torch.cat([same, same_a], 1), temperature)
    return (forward + backward) / 2


def info_nce(rows: Tensor, columns: Tensor, ignored: Tensor, temperature: float) -> Tensor:
    """Mean over rows i of -log softmax_j(cosine(row i, column j) / temperature) at j = i.

    Rows (N, C), columns (M, C) with M >= N; columns marked in `ignored` (N, M) are no negatives of that row.
    """
    logits = normalize(rows, dim=1) @ normalize(columns, dim=1).T / temperature
    return cross_entropy(logits.masked_fill(ignored, -math.inf), torch.arange(len(rows)))


def same_point(points: Tensor, reach_m: Tensor, others: Tensor, owner: Tensor) -> Tensor:
    """Which of `others` (M, 3) lie within reach (N,) of which `points` (N, 3) of the same building: (N, M) bool.

    Points and others come in equal runs per pair; `owner` (pairs,) is each pair's building. NaN is nowhere near.
    """
    near = torch.cdist(points, others) < reach_m[:, None]
    runs = (len(points) // len(owner), len(others) // len(owner))
    rows, columns = (owner.repeat_interleave(run) for run in runs)
    return near & (rows[:, None] == columns[None, :])


def at_cells(features: Tensor, cells: Sequence[NDArray[np.int_]]) -> Tensor:
    """Features (images · n, C) of n cells per image, by flat index, from maps (images, C, rows, columns)."""
    index = torch.from_numpy(np.stack(cells))[:, None, :].expand(-1, features.shape[1], -1)
    return features.flatten(2).gather(2, index).transpose(1, 2).flatten(0, 1)


def at_pixels(features: Tensor, pixels: Sequence[Array]) -> Tensor:
    """Features (images · n, C) at n pixels (n, 2) per image, interpolated between the cells around."""
    size_px = torch.tensor([features.shape[3], features.shape[2]]) * STRIDE
    grid = 2 * torch.from_numpy(np.stack(pixels)).float() / size_px - 1
    sampled = grid_sample(features, grid[:, :, None], align_corners=False, padding_mode="border")
    return sampled[..., 0].transpose(1, 2).flatten(0, 1)


def matching_precision(
    encoder: Encoder, buildings: Sequence[PooledBuilding], pairs: int, seed: int
) -> dict[str, float]:
    """Share of cells whose best match in another view lies within one cell of the truth, on unseen buildings.

    `same_appearance` and `across_appearance` are means over up to `pairs` pairs each whose two views were rendered
    with the same, or with other, materials; light differs in both.
    """
    generator = np.random.default_rng([seed, 1])
    candidates = [(building, i, j) for building in buildings for i, j in building.pairs]
    order = generator.permutation(len(candidates))
    shares: dict[str, list[float]] = {"same_appearance": [], "across_appearance": []}
    for building, i, j in (candidates[k] for k in order):
        name = "same_appearance" if building.appearance[i] == building.appearance[j] else "across_appearance"
        if len(shares[name]) < pairs:
            shares[name].append(_precision(encoder, building, i, j, generator))
    return {name: float(np.mean(values)) for name, values in shares.items() if values}


def _precision(
    encoder: Encoder, building: PooledBuilding, first: int, second: int, generator: np.random.Generator
) -> float:
    views = plain_views(building)
    a, b = views[first], views[second]
    match = match_cells(a, b)
    images = torch.from_numpy(np.stack([under_sky(a, generator), under_sky(b, generator)])).permute(0, 3, 1, 2)
    features_a, features_b = normalize(encoder.encode(images), dim=1).flatten(2)
    best = (features_a.T[torch.from_numpy(match.cells_a)] @ features_b).argmax(1).numpy()
    off_px = np.abs(grid_of(b)[best] - match.pixels_b).max(axis=1)
    return float(np.mean(off_px <= STRIDE))


def _joined(arrays: Iterable[NDArray[np.float64]]) -> Tensor:
    return torch.from_numpy(np.concatenate(list(arrays)))


def _resumed(path: Path, encoder: SmallFeatures, optimizer: torch.optim.Optimizer) -> list[float]:
    """Losses so far; encoder and optimizer take the checkpoint's state. Empty when there is none."""
    if not path.is_file():
        return []
    state = torch.load(path, weights_only=True)
    encoder.load_state_dict(state["encoder"])
    optimizer.load_state_dict(state["optimizer"])
    return list(state["history"])


def _save_checkpoint(
    directory: Path, encoder: SmallFeatures, optimizer: torch.optim.Optimizer, history: list[float]
) -> None:
    state = {"encoder": encoder.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
    directory.mkdir(parents=True, exist_ok=True)
    aside = directory / "checkpoint.pt.partial"
    torch.save(state, aside)
    aside.replace(directory / "checkpoint.pt")


def _claim(directory: Path, config: PretrainingConfig) -> None:
    """Marks the directory as this configuration's."""
    place, mark = directory / "config.json", config.model_dump(mode="json")
    if place.is_file() and digest(json.loads(place.read_text())) != digest(mark):
        found, allowed = "a pre-training run of another configuration", "the same configuration, or an empty folder"
        raise InputError(Fault(str(place), "config", found, allowed, "choose another folder"))
    place.write_text(json.dumps(mark, indent=2) + "\n")
