"""What is on disk about a sweep: whole, put right, or refused; never guessed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadloc.contract import InputError
from cadloc_sweep.durable_files import CorruptFile, append_sealed, read_sealed, sealed, unsealed, write_sealed
from cadloc_sweep.failures import StateCorrupt, SweepLocked
from cadloc_sweep.ledger import Ledger, read_results
from cadloc_sweep.lock import SweepLock
from cadloc_sweep.trials import SweepPaths, TrialResult

if TYPE_CHECKING:
    from conftest import ToySweep

EIGHTHS = range(8)


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text())
)
def test_a_seal_holds_until_a_byte_changes(data: dict[str, object]) -> None:
    """What was sealed is read back; another value under the same checksum is refused."""
    data.pop("checksum", None)
    assert unsealed(json.dumps(sealed(data))) == data
    with pytest.raises(CorruptFile):
        unsealed(json.dumps({**sealed(data), "one more": 1}))


def test_numbers_that_are_not_finite_cannot_be_written(tmp_path: Path) -> None:
    """NaN is no JSON; the old file stays."""
    write_sealed(tmp_path / "a.json", {"x": 1.5})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_sealed(tmp_path / "a.json", {"x": float("nan")})
    assert read_sealed(tmp_path / "a.json") == {"x": 1.5}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("eighth", EIGHTHS)
def test_a_ledger_cut_off_anywhere_loses_no_result(toys: ToySweep, eighth: int) -> None:
    """Whatever is left of the ledger, the next run finds every trial ended and runs none."""
    before = toys.run("repeats=1", "scenes=[gate]").results
    content = toys.paths.ledger.read_bytes()
    toys.paths.ledger.write_bytes(content[: len(content) * eighth // 8])
    again = toys.run("repeats=1", "scenes=[gate]")
    assert (again.results, again.run_now) == (before, 0)
    assert Ledger.open(toys.paths, pytest.fail).last_statuses() == dict.fromkeys(before, "finished")


def test_a_last_line_without_its_end_is_damage(toys: ToySweep) -> None:
    """A ledger that lacks its last newline only is put right: what is appended next is a line of its own."""
    toys.run("repeats=1", "scenes=[gate]")
    toys.paths.ledger.write_bytes(toys.paths.ledger.read_bytes()[:-1])
    assert toys.run("repeats=2", "scenes=[gate]").run_now == 2
    assert any("1 damaged" in note for note in toys.display.notes)
    assert len(Ledger.open(toys.paths, pytest.fail).last_statuses()) == 4


@pytest.mark.parametrize("eighth", EIGHTHS)
def test_a_spoiled_ledger_is_kept_and_put_right(toys: ToySweep, eighth: int) -> None:
    """A flipped bit is noticed; the damaged file stays beside the new one, and nothing runs again."""
    toys.run("repeats=1", "scenes=[gate]")
    content = bytearray(toys.paths.ledger.read_bytes())
    content[len(content) * eighth // 8 + 3] ^= 1
    toys.paths.ledger.write_bytes(content)
    assert toys.run("repeats=1", "scenes=[gate]").run_now == 0
    assert any("damaged" in note for note in toys.display.notes)
    assert toys.paths.ledger.with_suffix(".jsonl.damaged").read_bytes() == bytes(content)
    assert len(Ledger.open(toys.paths, pytest.fail).last_statuses()) == 2


@pytest.mark.parametrize("eighth", EIGHTHS)
def test_a_result_cut_off_anywhere_runs_again(toys: ToySweep, eighth: int) -> None:
    """A trial whose result is damaged runs again, with a note, alone, and to the same numbers."""
    before = toys.run("repeats=1", "scenes=[gate]")
    spoiled = toys.paths.trial(sorted(before.results)[0])
    content = spoiled.result.read_bytes()
    spoiled.result.write_bytes(content[: len(content) * eighth // 8])
    (spoiled.directory / "step.txt").unlink()
    again = toys.run("repeats=1", "scenes=[gate]")
    assert again.run_now == 1
    assert any(spoiled.directory.name in note for note in toys.display.notes)
    assert {k: r.metrics for k, r in again.results.items()} == {k: r.metrics for k, r in before.results.items()}


def test_without_its_ledger_a_sweep_is_rebuilt_from_results(toys: ToySweep) -> None:
    """The results alone are enough."""
    before = toys.run().results
    toys.paths.ledger.unlink()
    assert toys.run().run_now == 0
    assert Ledger.open(toys.paths, pytest.fail).last_statuses() == dict.fromkeys(before, "finished")


def test_a_missing_result_is_told_and_made_again(toys: ToySweep) -> None:
    """The ledger remembers that a trial ended; when its result is gone it runs again, and that is said."""
    before = toys.run("repeats=1")
    lost = toys.paths.trial(min(before.results))
    lost.result.unlink()
    assert toys.run("repeats=1").run_now == 1
    assert any("its result is gone" in note for note in toys.display.notes)


def test_a_result_of_another_trial_is_none(toys: ToySweep) -> None:
    """A result copied into another trial's folder is not believed."""
    results = toys.run("repeats=1").results
    first, second = sorted(results)[:2]
    toys.paths.trial(second).result.write_bytes(toys.paths.trial(first).result.read_bytes())
    assert second not in read_results(toys.paths)


@pytest.mark.parametrize(
    "header", [{"event": "begun", "space": "others", "schema": 1}, {"event": "begun", "space": "toys", "schema": 99}]
)
def test_a_foreign_ledger_is_refused(toys: ToySweep, header: dict[str, object]) -> None:
    """A ledger of another space or of another version ends the run before anything is touched."""
    toys.paths.directory.mkdir(parents=True)
    append_sealed(toys.paths.ledger, header)
    with pytest.raises(StateCorrupt):
        toys.run()
    assert not toys.paths.trials.exists()


def test_a_ledger_that_cannot_be_read_is_corrupt(toys: ToySweep) -> None:
    """A folder in the ledger's place is told as corrupt state."""
    toys.paths.ledger.mkdir(parents=True)
    with pytest.raises(StateCorrupt):
        toys.run()


def test_results_come_back_as_written() -> None:
    """A result survives its way through JSON."""
    result = TrialResult(
        "0" * 12, "failed", {"a": 0.1}, error="E", traceback="T\n", seconds=1.5, versions={"python": "3"}
    )
    assert TrialResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_one_driver_at_a_time(tmp_path: Path) -> None:
    """A second driver is refused while the first lives, and welcome after."""
    paths = SweepPaths(tmp_path, "toys")
    with SweepLock(paths.lock), pytest.raises(SweepLocked, match=str(os.getpid())), SweepLock(paths.lock):
        pass
    with SweepLock(paths.lock):
        pass


def test_a_dead_drivers_lock_is_taken_over(tmp_path: Path) -> None:
    """The lock of a process that was killed holds nobody up, whoever has its number now."""
    lock = tmp_path / "lock"
    code = (
        "import os, sys; from pathlib import Path; from cadloc_sweep.lock import SweepLock\n"
        "SweepLock(Path(sys.argv[1])).__enter__(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(lock)], timeout=60, check=False)
    assert json.loads(lock.read_text())["pid"] != os.getpid()
    with SweepLock(lock):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    for owner in (
        {"pid": os.getpid(), "started": "1"},
        {"pid": os.getpid(), "boot": "another"},
        {"pid": 2**22 + 1},
        "junk",
    ):
        lock.write_text(json.dumps(owner))
        with SweepLock(lock):
            pass


def test_a_lock_of_another_machine_counts(tmp_path: Path) -> None:
    """Whether its process lives cannot be seen from here: the message names the machine and the file to delete."""
    lock = tmp_path / "lock"
    lock.write_text(json.dumps({"pid": 2**22 + 1, "host": "elsewhere"}))
    with pytest.raises(SweepLocked, match=f"{lock}.*elsewhere.*delete this file"), SweepLock(lock):
        pass
    lock.unlink()
    with SweepLock(lock):
        pass


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel cannot lock, that is what is said, and not that somebody holds the lock."""

    def unsupported(handle: int, kind: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.raises(InputError, match="without file locks"), SweepLock(tmp_path / "lock"):
        pass


def test_a_living_process_is_believed_without_a_kernel_lock(tmp_path: Path) -> None:
    """Where the file system knows no locks, the process named in the file decides."""
    lock = tmp_path / "lock"
    lock.write_text(json.dumps({"pid": os.getppid()}))
    with pytest.raises(SweepLocked), SweepLock(lock):
        pass
