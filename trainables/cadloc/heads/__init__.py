"""Heads: features of cells become scene coordinates."""

from __future__ import annotations

from typing import assert_never

import torch

from cadloc.config import AceHead, AnchorHead, HeadConfig
from cadloc.heads.ace import AcePerceptron
from cadloc.heads.anchor import AnchorClassifier
from cadloc.heads.head import Head


def build(config: HeadConfig, dimensions: int, seed: int) -> Head:
    """An untrained head for features of `dimensions` channels; `Head.fit` and training make a map of it.

    The seed alone decides the initial weights; the process's own generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match config:
            case AceHead():
                return AcePerceptron(config, dimensions)
            case AnchorHead():
                return AnchorClassifier(config, dimensions)
            case _:
                assert_never(config)
