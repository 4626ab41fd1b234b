"""What the pages say was measured is what the file of measurements says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.measurement import Measurement, readable
from benchmarks.tables import filled, read

ROOT = Path(__file__).parents[2]
NUMBERS = ROOT / "docs" / "benchmarks.jsonl"
FOUND = [
    Measurement("train.512", 80.0, "GF/s", 40.0, 100.0, "a slow loop", "the best product"),
    Measurement("start", 0.5, "s", 2.0, None, "a cold start", better="less"),
]


@pytest.mark.parametrize("page", ["README.md", "docs/speed.md"])
def test_the_tables_of_a_page_are_those_of_the_stored_numbers(page: str) -> None:
    """Whoever changes a number in a page by hand, or measures anew without filling it in, is told."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- numbers:" in text
    assert filled(text, read(NUMBERS)) == text


def test_a_table_has_the_rows_that_its_page_asks_for_and_no_others() -> None:
    """A page chooses by the beginning of names, and loses nothing else."""
    page = filled("a\n<!-- numbers: train -->\nold\n<!-- end of numbers -->\nb\n", FOUND)
    assert "train.512" in page
    assert "old" not in page
    assert "start" not in page
    assert "2.00" in page
    assert "80% of the best product" in page


@pytest.mark.parametrize(
    ("number", "said"), [(0.02314, "0.0231"), (37.04, "37"), (28_836.0, "28,800"), (999.6, "1,000")]
)
def test_numbers_have_three_figures(number: float, said: str) -> None:
    """Large ones with commas, small ones as they are."""
    assert readable(number) == said


def test_a_cost_that_is_a_quarter_of_the_baseline_is_four_times_better() -> None:
    """The ratio of costs is turned around."""
    assert FOUND[1].ratio == 4.0


def test_a_page_that_asks_for_what_was_not_measured_is_refused() -> None:
    """Rather than leaving an old number in place."""
    with pytest.raises(ValueError, match="speed_of_light"):
        filled("<!-- numbers: speed_of_light -->\n<!-- end of numbers -->", FOUND)
