"""Gradients of a batch over more images than memory holds the graphs of (GradCache, Gao et al., 2021).

A batch that mixes the cells of many views is what makes scene coordinate regression converge (ACE, section 3.2); with
a trainable encoder its graph would hold every image. First all are encoded without a graph, and the objectives
give the derivative with respect to each cell's feature; then a few images at a time are encoded again, with a graph,
and that derivative is carried on into the weights. The result is that of one pass, for twice the encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cadloc.finetuning.gradients import flat

Encode = Callable[[slice], Tensor]
"""Features (rows, C) of the gathered cells of some images of the batch, image by image; called once or twice."""
Objectives = Callable[[Tensor], Mapping[str, Tensor]]
"""Scalars by name, of the features (N, C) of all gathered cells of the batch."""


@dataclass(frozen=True)
class BatchGradients:
    """`losses` by objective, detached; the encoder's gradient (P,) by objective, or all under `sum`; and those of
    the objectives' sum with respect to the strategy's own parameters (None: of no influence)."""

    losses: Mapping[str, Tensor]
    encoder: Mapping[str, Tensor]
    own: Sequence[Tensor | None]


def batch_gradients(
    encode: Encode,
    images: int,
    objectives: Objectives,
    encoder_parameters: Sequence[Tensor],
    own_parameters: Sequence[Tensor] = (),
    *,
    chunk: int,
    separate: bool = False,
) -> BatchGradients:
    """Losses and gradients of a batch of `images` images, at most `chunk` of which are in memory with their graph.

    `separate` keeps the objectives' gradients with respect to the encoder apart, for a backward pass each. The
    encoder must be deterministic and treat images one by one (normalisation in evaluation mode).
    """
    slices = [slice(start, min(start + chunk, images)) for start in range(0, images, chunk)]
    with torch.set_grad_enabled(len(slices) == 1):  # one chunk: its graph is kept and the second pass saved
        first = [encode(some) for some in slices]
    leaf = torch.cat(first).detach().requires_grad_()
    losses = dict(objectives(leaf))
    by_feature = {name: _derivative(loss, leaf) for name, loss in losses.items()}
    own = _own_gradients(losses.values(), own_parameters)
    if not separate:
        by_feature = {"sum": torch.stack(list(by_feature.values())).sum(dim=0)}
    lengths = [len(rows) for rows in first]
    # A generator: one graph at a time.
    graphs: Iterable[Tensor] = first if len(slices) == 1 else (encode(some) for some in slices)
    encoder = _carried_on(graphs, lengths, by_feature, encoder_parameters)
    return BatchGradients({name: loss.detach() for name, loss in losses.items()}, encoder, own)


def _derivative(loss: Tensor, leaf: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient


def _own_gradients(losses: Iterable[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    total = torch.stack(list(losses)).sum()
    return torch.autograd.grad(total, list(parameters), allow_unused=True) if parameters else ()


def _carried_on(
    graphs: Iterable[Tensor], lengths: Sequence[int], by_feature: Mapping[str, Tensor], parameters: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The encoder's gradient (P,) of each derivative with respect to the features."""
    totals = {name: torch.zeros_like(flat([p.detach() for p in parameters])) for name in by_feature}
    start = 0
    for rows, length in zip(graphs, lengths, strict=True):
        names = list(by_feature)
        for name in names:
            piece = by_feature[name][start : start + length]
            gradients = torch.autograd.grad(
                rows, list(parameters), piece, retain_graph=name != names[-1], allow_unused=True
            )
            filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
            totals[name] += flat(filled)
        start += length
    return totals
