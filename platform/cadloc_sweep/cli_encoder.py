"""`cadloc-sweep encoder …`: encoders of one's own, and the shipped one anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cadloc_sweep.cli_options import Address, TrackingUri
from cadloc_sweep.failures import ExitCode

encoder_app = typer.Typer(no_args_is_help=True, help="Make encoders.")


@encoder_app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="Folder for pool, checkpoints, weights and card.")],
    config: Annotated[Path | None, typer.Option(help="YAML with keys of the pre-training.", show_default=False)] = None,
    workers: Annotated[int, typer.Option(help="Processes that share every step, on Ray if more than one.")] = 1,
    gpus_per_worker: Annotated[int, typer.Option(help="0 or 1 GPU for each worker; 1 means Ray.")] = 0,
    address: Address = "local",
    loaders: Annotated[int, typer.Option(help="Processes per worker that draw data ahead.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda: where one worker without Ray trains.")] = "cpu",
    tracking_uri: TrackingUri = None,
    mlflow: Annotated[bool, typer.Option(help="Record the run in MLflow.")] = True,
) -> int:
    """Train an encoder on procedural buildings, and print its card; started again, it goes on from its checkpoint."""
    from cadloc_sweep.encoder_training import TrainingPlace, pretrain_encoder

    place = TrainingPlace(workers, gpus_per_worker, address, loaders, device)
    try:
        card = pretrain_encoder(out, config, place, mlflow=mlflow, tracking_uri=tracking_uri, say=_say)
    except KeyboardInterrupt:  # typer would end with a code of its own
        return ExitCode.INTERRUPTED
    print(json.dumps(card, indent=1))
    return ExitCode.FINISHED


@encoder_app.command()
def pretrain_global(
    out: Annotated[Path, typer.Option(help="Folder for weights and card; of `pretrain`, to use its pool.")],
    encoder: Annotated[str, typer.Option(help="small, dense-hog, or an encoder's weights: whose features.")] = "small",
    config: Annotated[Path | None, typer.Option(help="YAML with keys of the training.", show_default=False)] = None,
) -> int:
    """Train global features (one vector per image, for the head glace) of a frozen encoder, and print their card.

    It takes minutes once the pool is rendered: pairs of views of made-up buildings that see the same surface teach
    which images belong together. Stopped, it starts anew, but for the pool. The weights serve that encoder only:
    `head: {name: glace, global_features: {name: gem, weights: FILE}}`.
    """
    from cadloc_sweep.global_training import train_global_features

    try:
        card = train_global_features(out, encoder, config, say=_say)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    print(json.dumps(card, indent=1))
    return ExitCode.FINISHED


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
