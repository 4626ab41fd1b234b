"""`python -m benchmarks [NAME …] [--json] [--out FILE]`: measures, prints a table, or a line of JSON per number."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.measurement import Measurement, readable

NAMES = ("render", "encode", "buffer", "train", "pnp", "packing", "prefix", "sweep", "overhead", "tracking")
"""In the order in which they run; each is a module with `measure() -> Iterator[Measurement]`."""

BY_NAME_ONLY = ("gpu",)
"""What needs a machine that most have not."""


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"some of: {', '.join(NAMES)}; all by default")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one line of JSON per number instead of a table")] = False,
    out: Annotated[Path | None, typer.Option(help="also write the lines of JSON here")] = None,
) -> None:
    """Measures what this code does on this machine, against baselines measured in the same run."""
    unknown = [name for name in names or () if name not in (*NAMES, *BY_NAME_ONLY)]
    if unknown:
        raise typer.BadParameter(
            f"{', '.join(unknown)}: found no such benchmark; allowed: {', '.join((*NAMES, *BY_NAME_ONLY))}"
        )
    found = []
    console = Console(stderr=True)
    for name in names or NAMES:
        console.print(f"{name} …", style="dim")
        for measurement in _measured(name):
            found.append(measurement)
            if as_json:
                print(json.dumps(measurement.to_json()), flush=True)
    if out is not None:
        out.write_text("".join(json.dumps(each.to_json()) + "\n" for each in found), encoding="utf-8")
    if not as_json:
        Console().print(_table(found))


def _measured(name: str) -> Iterator[Measurement]:
    yield from importlib.import_module(f"benchmarks.{name}").measure()


def _table(found: list[Measurement]) -> Table:
    table = Table(
        "benchmark", "value", "baseline", "times better", "of limit", "target", title=f"{os.cpu_count()} cores"
    )
    for each in found:
        baseline = "" if each.baseline is None else f"{readable(each.baseline)} ({each.what})"
        ratio = "" if each.ratio is None else f"{each.ratio:.2f}"
        of_limit = "" if each.of_limit is None else f"{each.of_limit:.0%} of {each.limit_is}"
        table.add_row(each.name, f"{readable(each.value)} {each.unit}", baseline, ratio, of_limit, each.target)
    return table


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    typer.run(main)
