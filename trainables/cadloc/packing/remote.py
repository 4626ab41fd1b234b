"""The client's side: stretches are sent away instead of being run here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from cadloc.contract import WorkerLost
from cadloc.packing.requests import StretchAnswer, StretchRequest, packed, take_up, unpacked
from cadloc.stretch import Stretch

Submit = Callable[[StretchRequest], StretchAnswer]
"""Sends a request and waits for its answer."""


class PackedRunner:
    """A `Runner` whose steps a server takes: between stretches the learner is as if it had taken them itself.

    `submit` may send a request again, and elsewhere: it carries everything. Time in training is that on the server.
    """

    def __init__(self, submit: Submit, stages: Mapping[str, Path]) -> None:
        self._submit, self._stages = submit, stages

    def run(self, stretch: Stretch) -> None:
        """See `Runner`. Raises also what else was wrong with the request, or went wrong when it was run alone."""
        request = StretchRequest(stretch.learner.config, self._stages, packed(stretch), stretch.milestone)
        answer = self._submit(request)
        if isinstance(answer.error, WorkerLost):
            answer = self._submit(replace(request, alone=True))
        if answer.state:
            take_up(stretch, unpacked(answer.state))
        if answer.error is not None:
            raise answer.error
