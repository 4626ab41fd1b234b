"""What a run's progress can be counted in; light enough for the command line to offer."""

from __future__ import annotations

from enum import StrEnum


class ProgressAxis(StrEnum):
    """The horizontal axis of a loss progression."""

    iterations = "iterations"
    samples = "samples"
    seconds = "seconds"
