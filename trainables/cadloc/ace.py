"""Scene coordinate regression as in ACE (Brachmann et al., CVPR 2023): a head on frozen features, one map per scene."""

from __future__ import annotations

from collections.abc import Iterator

from cadloc.config import TrialConfig
from cadloc.contract import Progress, TrialContext
from cadloc.regression import NothingTold, train_head


def train(config: TrialConfig, context: TrialContext) -> Iterator[Progress]:
    """Trains a head on the features of cells alone, one map per scene, then localizes every query set with it.

    Yields the validation's metrics at every milestone and, at the end, the test's. Leaves map, poses, history
    and figures in `context.directory`; started there again, it resumes from its last checkpoint.
    """
    yield from train_head(config, context, NothingTold())
