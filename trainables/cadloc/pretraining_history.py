"""What a pre-training run said, step by step."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

Row: TypeAlias = dict[str, float]
"""What one step of the history says: `step` (counted from 1), `loss`, `learning_rate`, `precision/KIND` at times."""


@dataclass
class History:
    """What every step so far said."""

    rows: list[Row] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return [row["loss"] for row in self.rows]

    def write(self, path: Path) -> None:
        """As CSV; empty where a step measured nothing."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        aside = path.with_name(path.name + ".partial")
        aside.write_text(text.getvalue())
        aside.replace(path)

    @classmethod
    def read(cls, path: Path) -> History:
        """The history that `write` wrote."""
        with open(path, newline="") as file:
            rows = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
        return cls(rows)
