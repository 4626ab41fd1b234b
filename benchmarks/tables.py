"""`python -m benchmarks.tables NUMBERS.jsonl PAGE.md …`: writes what `python -m benchmarks --out` measured into pages.

A page says where and which: everything between `<!-- numbers: NAME, NAME … -->` and `<!-- end of numbers -->` is
replaced by a table of the measurements whose names begin so (all of them, if there is none).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measurement import Measurement, readable

_BLOCK = re.compile(r"(<!-- numbers:(?P<names>[^>]*)-->\n).*?(<!-- end of numbers -->)", re.DOTALL)
_COMPUTED = ("ratio", "of_limit")


def read(path: Path) -> list[Measurement]:
    """The measurements of a file of JSON lines."""
    return [_measurement(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def filled(page: str, found: list[Measurement]) -> str:
    """The page with its tables made anew. Raises ValueError for a name that was not measured."""

    def table(block: re.Match[str]) -> str:
        return block[1] + _table(_chosen(found, _names(block["names"]))) + block[3]

    return _BLOCK.sub(table, page)


def main(
    numbers: Annotated[Path, typer.Argument(help="what `python -m benchmarks --out` wrote")],
    pages: Annotated[list[Path], typer.Argument(help="Markdown pages to fill in")],
) -> None:
    """Fills measured numbers into pages."""
    found = read(numbers)
    for page in pages:
        page.write_text(filled(page.read_text(encoding="utf-8"), found), encoding="utf-8")


def _measurement(line: dict[str, Any]) -> Measurement:
    return Measurement(**{key: value for key, value in line.items() if key not in _COMPUTED})


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]


def _chosen(found: list[Measurement], names: list[str]) -> list[Measurement]:
    missing = [name for name in names if not any(each.name.startswith(name) for each in found)]
    if missing:
        raise ValueError(f"no measurement begins with {', '.join(missing)}")
    return [each for each in found if not names or any(each.name.startswith(name) for name in names)]


def _table(found: list[Measurement]) -> str:
    rows = ["| what | measured | baseline | times better | of the limit | target |", "|---|---|---|---|---|---|"]
    for each in found:
        baseline = "" if each.baseline is None else f"{readable(each.baseline)}: {each.what}"
        ratio = "" if each.ratio is None else f"{each.ratio:.2f}"
        limit = "" if each.of_limit is None else f"{each.of_limit:.0%} of {each.limit_is}"
        rows.append(
            f"| {each.name} | {readable(each.value)} {each.unit} | {baseline} | {ratio} | {limit} | {each.target} |"
        )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    typer.run(main)
