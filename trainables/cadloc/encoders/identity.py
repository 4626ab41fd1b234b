"""Which encoder it is: whatever was learned from one encoder's features means nothing under another's."""

from __future__ import annotations

import hashlib

from safetensors.torch import save
from torch import nn

from cadloc.encoders import Encoder
from cadloc.encoders.folding import Folded


def encoder_digest(encoder: Encoder) -> str:
    """SHA-256 (64 hex digits) of the encoder's weights; of one that learned nothing, that of no weights."""
    learned = encoder.plain if isinstance(encoder, Folded) else encoder
    state = learned.state_dict() if isinstance(learned, nn.Module) else {}
    return hashlib.sha256(save({name: value.cpu().contiguous() for name, value in state.items()})).hexdigest()
