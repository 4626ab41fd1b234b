"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class ExecutorChoice(StrEnum):
    """Where the work is done."""

    ray = "ray"
    inline = "inline"


class ReportFormat(StrEnum):
    """How a report is printed."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"


Space = Annotated[str, typer.Argument(help="A space file, or the name of a shipped space.")]
Sweep = Annotated[Path, typer.Argument(help="A sweep's folder: OUT/SPACE.", metavar="DIR")]
Out = Annotated[Path, typer.Option(help="Where sweeps are kept; each space has its folder in it.")]
Store = Annotated[Path | None, typer.Option(help="Where stages are kept. [default: OUT/.store]", show_default=False)]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A space's key, or a variable.")]
Where = Annotated[ExecutorChoice, typer.Option(help="Ray, or everything in this process.")]
Address = Annotated[str, typer.Option(help="local, auto, or HOST:PORT of a Ray cluster's head.")]
Cpus = Annotated[int | None, typer.Option(min=1, help="CPUs of the local Ray. [default: all]", show_default=False)]
Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs of the local Ray. [default: all]", show_default=False)]
TrackingUri = Annotated[str | None, typer.Option(help="Another MLflow. [default: OUT/mlflow.db]", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SWEEPS = Path("sweeps")
