"""Encoders for encoding only: the same features, and the same identity."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cadloc.config import AceEncoder, DenseHog, SmallEncoder
from cadloc.encoders import Encoder, build
from cadloc.encoders.ace import AceFeatures
from cadloc.encoders.folding import folded
from cadloc.encoders.identity import encoder_digest
from cadloc.encoders.small import SmallFeatures
from cadloc.finetuning.adapters import with_adapters

IMAGES = torch.randint(0, 255, (2, 3, 48, 72), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def adapted(encoder: Encoder) -> Encoder:
    """With adapters that do something."""
    assert isinstance(encoder, SmallFeatures | AceFeatures)
    tuned = with_adapters(encoder, 4).eval()
    for name, parameter in tuned.named_parameters():
        if ".adapter." in name:
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return tuned


@pytest.mark.parametrize(
    "encoder",
    [build(SmallEncoder()), adapted(build(SmallEncoder())), build(AceEncoder()), adapted(build(AceEncoder()))],
    ids=["small", "small adapted", "ace", "ace adapted"],
)
def test_folding_changes_neither_features_nor_identity(encoder: Encoder) -> None:
    """Normalisations within, adapters around: features agree to rounding, alone and in a batch; so does the digest."""
    quick = folded(encoder)
    with torch.no_grad():
        expected, found = encoder.encode(IMAGES), quick.encode(IMAGES)
    assert quick is not encoder
    assert (found - expected).abs().max() < 1e-4 * expected.abs().mean()
    assert (quick.encode(IMAGES[1:]) - found[1:]).abs().max() < 1e-4 * expected.abs().mean()
    assert encoder_digest(quick) == encoder_digest(encoder)
    assert (quick.dimensions, quick.stride) == (encoder.dimensions, encoder.stride)


def test_folding_leaves_the_encoder_as_it_was() -> None:
    """Its normalisations are its own still, and may be tuned."""
    encoder = build(SmallEncoder())
    before = encoder_digest(encoder)
    folded(encoder)
    assert encoder_digest(encoder) == before
    assert isinstance(encoder, SmallFeatures)
    assert isinstance(encoder.centring, nn.BatchNorm2d)


def test_what_has_nothing_to_fold_stays_itself() -> None:
    """Histograms have no layers, and what is folded has been."""
    histograms, quick = build(DenseHog()), folded(build(SmallEncoder()))
    assert folded(histograms) is histograms
    assert folded(quick) is quick
