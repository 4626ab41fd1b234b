"""Training of global features: what two views of one surface have in common, whatever it looks like that day.

The encoder is frozen. Pairs are views of one made-up building that see enough of the same surface, in any two
appearances, under any light and sky; negatives are the other views of the batch that have nothing in common with them
(InfoNCE, van den Oord et al. 2018). Every view is encoded once, and then the pooling alone is trained: minutes on one
core. A run that was stopped starts anew; its pool stays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from cadloc.config import AceEncoder, DenseHog, EncoderConfig, SmallEncoder
from cadloc.contract import DivergenceError, Fault, InputError, Json, canonical
from cadloc.encoders.global_gem import GlobalGem
from cadloc.encoding import process_encoder
from cadloc.global_config import GlobalPretrainingConfig
from cadloc.pretraining_data import render_pool
from cadloc.pretraining_files import write_forced
from cadloc.pretraining_global_views import Describe, EncodedViews, Retrieval, mean_pooled, rounded, to_learn_from
from cadloc.pretraining_history import History, Row
from cadloc.pretraining_pairs import PooledBuilding

CONFIG, HISTORY = "global_config.json", "global_history.csv"

AMBIGUOUS = 0.05
"""Views that have more in common than that are no negatives of one another."""

_POWER_RATE = 20.0
"""The power's learning rate, in those of the weights: it is one number of size 4, they are many of size 0.1."""


@dataclass(frozen=True)
class Listeners:
    """Who hears of a run: of buildings rendered of how many, of views to be encoded, of every row of the history."""

    on_building: Callable[[int, int], None] | None = None
    on_encoding: Callable[[int], None] = lambda views: None
    on_row: Callable[[Row], None] = lambda row: None


def encoder_named(name: str) -> EncoderConfig:
    """`small` (as shipped), `dense-hog`, or the place of a .safetensors file of the one, or of ACE's state dict."""
    if name == "small":
        return SmallEncoder()
    if name == "dense-hog":
        return DenseHog()
    if Path(name).suffix == ".safetensors":
        return SmallEncoder(weights=str(Path(name).absolute()))
    if Path(name).suffix in (".pt", ".pth"):
        return AceEncoder(weights=str(Path(name).absolute()))
    allowed = "small, dense-hog, or a .safetensors or .pt file of an encoder"
    raise InputError(Fault("command line", "--encoder", name, allowed))


def pretrain_global(
    config: GlobalPretrainingConfig, encoder: EncoderConfig, directory: Path, listeners: Listeners = Listeners()
) -> dict[str, Json]:
    """Leaves `ENCODER_global.safetensors`, its card and `global_history.csv` in `directory`; returns the card.

    Renders what is missing of the pool below it. The card compares the recall of covisible held-out views with that of
    mean pooling, and of untrained GeM whitened on the very views that are searched. Raises InputError for a folder with
    another pool, an encoder that cannot be used, or a pool of no two covisible views; DivergenceError.
    """
    check_pool(directory, config)
    used = process_encoder(canonical(encoder.model_dump(mode="json")))
    write_forced(directory / CONFIG, (json.dumps(config.model_dump(mode="json"), indent=2) + "\n").encode())
    pool = render_pool(config.pool, directory / "pool", listeners.on_building)
    training, held_out, photographs = (
        [PooledBuilding.open(path) for path in part] for part in (pool.training, pool.held_out, pool.photographs)
    )
    listeners.on_encoding(sum(len(building.images) for building in training))
    views = to_learn_from(used, training, config.kept_cells, config.seed)
    gem, history = train(views, config, listeners.on_row)
    history.write(directory / HISTORY)
    retrieval = Retrieval.encoded(used, held_out, photographs, config.min_covisibility, config.seed)
    card = {
        "encoder": encoder.name,
        "training": {"data": "procedural buildings made by this project", "config": config.model_dump(mode="json")},
        "final_loss": float(np.mean(history.losses[-50:])),
        "recall_at_1": measured(gem, retrieval),
    }
    gem.save(directory / f"{encoder.name}_global.safetensors", used, card)
    return card


def train(
    views: EncodedViews, config: GlobalPretrainingConfig, on_row: Callable[[Row], None] = lambda row: None
) -> tuple[GlobalGem, History]:
    """The pooling after `config.steps` steps on the views, frozen, and its history.

    Raises InputError where no two views have enough in common, DivergenceError when the loss is not finite.
    """
    pairs = views.pairs(config.min_covisibility)
    if len(pairs) < 2:
        found = f"{config.pool.views_per_target}, and no two views that see the same surface"
        raise InputError(Fault("configuration", "pool.views_per_target", found, "a pool to learn from"))
    gem = GlobalGem.initialised(views.cells.shape[-1], config.hidden, config.seed)
    weights = [parameter for name, parameter in gem.named_parameters() if name != "power"]
    power = {"params": [gem.power], "weight_decay": 0.0, "rate": _POWER_RATE}
    optimizer = torch.optim.AdamW([{"params": weights, "rate": 1.0}, power], weight_decay=config.weight_decay)
    history = History()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * config.learning_rate * schedule(config, step)
        loss = _step_loss(gem, views, pairs, config, step)
        if not math.isfinite(loss.item()):
            raise DivergenceError(f"global features: the loss is {loss.item()} at step {step}")
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        history.rows.append({"step": step + 1, "loss": loss.item(), "power": gem.power.item()})
        on_row(history.rows[-1])
    return gem.eval().requires_grad_(False), history


def schedule(config: GlobalPretrainingConfig, step: int) -> float:
    """Factor of the learning rates: linear warm-up, then half a cosine down to nothing at the last step."""
    return min(1.0, (step + 1) / config.warm_up) * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def contrast(vectors_a: Tensor, vectors_b: Tensor, common: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE of unit vectors (B, G) of B pairs; `common` (B, B): how much a's i and b's j have in common.

    Only what has next to nothing in common is a negative.
    """
    logits = vectors_a @ vectors_b.T / temperature
    ignored = (common > AMBIGUOUS) & ~torch.eye(len(common), dtype=torch.bool)
    logits = logits.masked_fill(ignored, -torch.inf)
    own = torch.arange(len(logits))
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def measured(gem: GlobalGem, retrieval: Retrieval) -> dict[str, Json]:
    """Recall at 1 of covisible held-out views, of each kind: of the trained pooling and of what it should beat."""
    return {
        "trained": rounded(retrieval.recall(gem_vectors(gem))),
        "gem_pca": rounded(retrieval.recall(gem_vectors(whitened_gem(retrieval.views.cells)))),
        "mean_pooling": rounded(retrieval.recall(mean_pooled)),
        "views": len(retrieval.views.cells),
    }


def whitened_gem(cells: NDArray[np.float16]) -> GlobalGem:
    """Untrained GeM, whitened on the views (V, N, C): what `weights: pca` makes of a scene's mapping views."""
    gem = GlobalGem.untrained(cells.shape[-1])
    gem.whiten(np.stack([gem.pooled(view.astype(np.float32)) for view in cells]))
    return gem


def gem_vectors(gem: GlobalGem) -> Describe:
    """What describes views (V, N, C) by the pooling."""
    return lambda cells: np.stack([gem.describe(view.astype(np.float32)) for view in cells])


def check_pool(directory: Path, config: GlobalPretrainingConfig) -> None:
    """Raises InputError when the folder's pool is, or would be, that of a run with other settings of it."""
    for place in (directory / "config.json", directory / CONFIG):
        try:
            other = json.loads(place.read_text())["pool"] if place.is_file() else None
        except (ValueError, KeyError, TypeError):
            other = "nothing that can be read"
        if other is not None and other != config.pool.model_dump(mode="json"):
            allowed = "the same pool, or an empty folder"
            raise InputError(Fault(str(place), "pool", f"{other}", allowed, "choose another folder"))


def _step_loss(
    gem: GlobalGem, views: EncodedViews, pairs: NDArray[np.int_], config: GlobalPretrainingConfig, step: int
) -> Tensor:
    """The loss of one step's pairs, of random cells of theirs; a draw depends on seed and step only."""
    generator = np.random.default_rng([config.seed, step])
    a, b = pairs[generator.choice(len(pairs), min(config.pairs, len(pairs)), replace=False)].T
    kept = views.cells.shape[1]
    cells = np.sort(generator.choice(kept, min(config.cells, kept), replace=False))
    drawn = torch.from_numpy(views.cells[np.concatenate([a, b])[:, None], cells].astype(np.float32))
    vectors_a, vectors_b = gem(drawn).chunk(2)
    return contrast(vectors_a, vectors_b, torch.from_numpy(views.covisibility[np.ix_(a, b)]), config.temperature)
