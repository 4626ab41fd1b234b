"""Several objectives, one set of weights: do their gradients agree, and what to do where they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from cadloc.finetuning.settings import GradientRule

_SMALLEST = 1e-12


def flat(gradients: Sequence[Tensor]) -> Tensor:
    """One vector (P,) of a gradient per parameter."""
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def unflatten(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The parts of a vector (P,), in the shapes of the parameters."""
    pieces = torch.split(vector, [parameter.numel() for parameter in parameters])
    return [piece.view_as(parameter) for piece, parameter in zip(pieces, parameters, strict=True)]


def combined(gradients: Mapping[str, Tensor], rule: GradientRule, generator: np.random.Generator) -> Tensor:
    """One gradient (P,) of those of all objectives, (P,) each."""
    match rule:
        case "sum":
            parts = gradients
        case "pcgrad":
            parts = pcgrad(gradients, generator)
        case "equalised":
            parts = equalised(gradients)
        case _:
            assert_never(rule)
    return torch.stack(list(parts.values())).sum(dim=0)


def pcgrad(gradients: Mapping[str, Tensor], generator: np.random.Generator) -> dict[str, Tensor]:
    """Each gradient without its components against the others' (Yu et al., 2020, algorithm 1).

    The others are visited in random order and as they were given, not as projected. Of two objectives, neither
    works against the other afterwards; of more, a later projection may bring back some of an earlier conflict.
    """
    names = list(gradients)
    projected = {}
    for name in names:
        result = gradients[name].clone()
        others = [other for other in names if other != name]
        for index in generator.permutation(len(others)):
            other = gradients[others[index]]
            inner = result @ other
            if inner < 0:
                result -= inner / (other @ other).clamp_min(_SMALLEST) * other
        projected[name] = result
    return projected


def equalised(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients at their mean norm, so that none drowns another; a zero gradient stays one."""
    norms = {name: float(gradient.norm()) for name, gradient in gradients.items()}
    pulling = [norm for norm in norms.values() if norm > _SMALLEST]
    mean = float(np.mean(pulling)) if pulling else 0.0
    return {
        name: gradient * (mean / norms[name] if norms[name] > _SMALLEST else 0.0)
        for name, gradient in gradients.items()
    }


def cosines(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """Cosine between every two objectives' gradients, by `a~b`: below zero they conflict. 0 where one is zero."""
    return {
        f"{a}~{b}": float(torch.nn.functional.cosine_similarity(gradients[a], gradients[b], dim=0))
        for a, b in combinations(gradients, 2)
    }
