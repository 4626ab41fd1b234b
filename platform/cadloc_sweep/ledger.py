"""What has happened to a sweep, durable: resuming is the plan without what the ledger knows to have ended.

A trial's `result.json`, written by its worker, is the truth; `ledger.jsonl` is the order of events, and can be
written anew from the results.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from cadloc.contract import Json, canonical
from cadloc_sweep.durable_files import (
    CorruptFile,
    append_sealed,
    read_sealed,
    read_sealed_lines,
    sealed,
    write_aside,
    write_sealed,
)
from cadloc_sweep.failures import StateCorrupt
from cadloc_sweep.trials import SweepPaths, TrialPaths, TrialResult

SCHEMA = 1


def write_result(paths: TrialPaths, result: TrialResult) -> None:
    """Writes a trial's `result.json`: checksummed, whole or not at all."""
    write_sealed(paths.result, result.to_json())


def read_result(paths: TrialPaths) -> TrialResult:
    """A trial's result. Raises FileNotFoundError when it has none, CorruptFile when it is not what was written."""
    data = read_sealed(paths.result)
    try:
        result = TrialResult.from_json(data)
    except TypeError as error:
        raise CorruptFile(f"{paths.result}: keys of another version ({error})") from error
    if result.id != paths.directory.name:
        raise CorruptFile(f"{paths.result}: the result of another trial, {result.id}")
    return result


def read_results(paths: SweepPaths, note: Callable[[str], None] = lambda _: None) -> dict[str, TrialResult]:
    """Results of all trials that have one, by id; a corrupt one is noted and left out: its trial runs again."""
    results: dict[str, TrialResult] = {}
    folders = sorted(paths.trials.iterdir()) if paths.trials.is_dir() else []
    for folder in folders:
        try:
            results[folder.name] = read_result(TrialPaths(folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except CorruptFile as error:
            note(f"{error}; the trial runs again")
    return results


class Ledger:
    """The events of one sweep, in order, and the results of its trials."""

    def __init__(self, paths: SweepPaths, events: list[dict[str, Json]], results: dict[str, TrialResult]) -> None:
        self._path = paths.ledger
        self.events = events
        self.results = results

    @staticmethod
    def open(paths: SweepPaths, note: Callable[[str], None]) -> Ledger:
        """The ledger, begun if there is none; a damaged one is put right from the results, with a note.

        Raises StateCorrupt when it belongs to another space or version, or cannot be written anew.
        """
        results = read_results(paths, note)
        events, bad = _read_events(paths.ledger)
        if events:
            _check_header(events[0], paths, bad)
        if bad or not _begins(events):
            events = _recovered(paths, events, results, bad, note)
        ledger = Ledger(paths, events, results)
        for trial_id, status in ledger.last_statuses().items():
            if status != "interrupted" and trial_id not in results:
                note(f"trial {trial_id}: the ledger says {status}, its result is gone; the trial runs again")
        return ledger

    def record(self, event: str, **fields: Json) -> None:
        """Appends an event; on disk when this returns."""
        entry = {"event": event, "time_s": round(time.time(), 3), **fields}
        append_sealed(self._path, entry)
        self.events.append(entry)

    def told(self) -> dict[str, str]:
        """The status that each trial ended with when a driver was there to tell the trackers."""
        ended = (event for event in self.events if event["event"] == "ended" and not event.get("recovered"))
        return {event["trial"]: event["status"] for event in ended}

    def last_statuses(self) -> dict[str, str]:
        """The status that each trial last ended with."""
        return {event["trial"]: event["status"] for event in self.events if event["event"] == "ended"}


def _read_events(path: Path) -> tuple[list[dict[str, Json]], int]:
    try:
        return read_sealed_lines(path)
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise StateCorrupt(f"{path}: cannot be read ({error.strerror})") from error


def _begins(events: list[dict[str, Json]]) -> bool:
    return bool(events) and events[0]["event"] == "begun"


def _check_header(first: dict[str, Json], paths: SweepPaths, bad: int) -> None:
    if first.get("event") != "begun":
        if not bad:
            raise StateCorrupt(f"{paths.ledger}: does not begin with its header; move it away to write it anew")
        return
    if first.get("schema") != SCHEMA:
        found = f"schema {first.get('schema')}, this version reads {SCHEMA}"
        raise StateCorrupt(f"{paths.ledger}: {found}; use the version that wrote it or another --out")
    if first.get("space") != paths.space_name:
        raise StateCorrupt(f"{paths.ledger}: belongs to the space {first.get('space')!r}, not {paths.space_name!r}")


def _recovered(
    paths: SweepPaths,
    events: list[dict[str, Json]],
    results: dict[str, TrialResult],
    bad: int,
    note: Callable[[str], None],
) -> list[dict[str, Json]]:
    """Writes the ledger anew: its whole lines, then the ends that only the results know. The damaged one is kept."""
    header = {"event": "begun", "time_s": round(time.time(), 3), "space": paths.space_name, "schema": SCHEMA}
    kept = events if _begins(events) else [header, *events]
    told = {event["trial"] for event in kept if event["event"] == "ended"}
    kept += [
        {"event": "ended", "time_s": result.ended, "trial": result.id, "status": result.status, "recovered": True}
        for result in results.values()
        if result.id not in told
    ]
    try:
        if bad:
            os.replace(paths.ledger, paths.ledger.with_suffix(".jsonl.damaged"))
            note(f"{paths.ledger}: {bad} damaged line(s); put right from the trials' results")
        write_aside(paths.ledger, "".join(canonical(sealed(entry)) + "\n" for entry in kept))
    except OSError as error:
        raise StateCorrupt(f"{paths.ledger}: damaged, and cannot be written anew ({error.strerror})") from error
    return kept
