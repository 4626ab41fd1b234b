"""Heads: features of cells become scene coordinates."""

from __future__ import annotations

from typing import assert_never

import torch

from cadloc.head_config import AceHead, AnchorHead, EnsembleHead, GlaceHead, HeadConfig
from cadloc.heads.ace import AcePerceptron
from cadloc.heads.anchor import AnchorClassifier
from cadloc.heads.ensemble import Ensemble
from cadloc.heads.glace import GlacePerceptron
from cadloc.heads.head import Head


def build(
    config: HeadConfig, dimensions: int, seed: int, *, global_dimensions: int = 0, deviation: bool = False
) -> Head:
    """An untrained head for features of `dimensions` channels; `Head.fit` and training make a map of it.

    With `deviation` it says how far it may be off. The seed alone decides the initial weights; the process's own
    generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match config:
            case AceHead():
                return AcePerceptron(config, dimensions, deviation)
            case GlaceHead():
                return GlacePerceptron(config, dimensions, global_dimensions, deviation)
            case AnchorHead():
                return AnchorClassifier(config, dimensions, deviation)
            case EnsembleHead():
                seeds = range(seed * config.members, (seed + 1) * config.members)  # no two seeds share a member
                return Ensemble([build(config.member, dimensions, each, deviation=deviation) for each in seeds])
            case _:
                assert_never(config)
