"""The store of stages: content-addressed, whole or absent, shared without double work."""

from __future__ import annotations

import builtins
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cadloc.catalog import RESUMABLE, STAGES
from cadloc.contract import DivergenceError, StageSpec
from cadloc_sweep.stages import MANIFEST, StageStore, keys_in_use

if TYPE_CHECKING:
    from conftest import ToySweep

RAW = StageSpec("toy_trainable:RAW", "1", {"seed": 0})
NUMBERS = StageSpec("toy_trainable:NUMBERS", "1", {"fail": False}, {"raw": RAW})


def build(store: StageStore, spec: StageSpec) -> Path:
    """Builds one stage whose inputs are there."""
    job = store.begin(spec)
    items = sum(job.build_chunk(chunk) for chunk in range(job.chunks()))
    job.finish()
    return store.publish(job, items, 0.5)


def test_a_published_stage_is_there_for_everyone(tmp_path: Path) -> None:
    """What one store has published another one of the same folder has; its manifest says what it is."""
    store = StageStore(tmp_path)
    assert not store.has(RAW)
    build(store, RAW)
    build(store, NUMBERS)
    other = StageStore(tmp_path)
    assert other.has(NUMBERS)
    assert store.built == {RAW.kind: 1, NUMBERS.kind: 1}
    assert {(entry.kind, entry.items, entry.files) for entry in other.entries()} == {
        (RAW.kind, 3, 4),
        (NUMBERS.kind, 3, 1),
    }
    assert not any((tmp_path / "tmp").iterdir())


def test_half_a_stage_is_none(tmp_path: Path) -> None:
    """A build that ends in the middle leaves nothing that could be taken for the stage, and can be begun again."""
    store = StageStore(tmp_path)
    job = store.begin(RAW)
    job.build_chunk(0)
    assert not store.has(RAW)
    build(store, RAW)
    assert store.has(RAW)


@pytest.mark.parametrize("damage", ["content", "size", "missing", "manifest", "no manifest"])
def test_a_damaged_entry_is_built_again(tmp_path: Path, damage: str) -> None:
    """Any change to an entry is found on first use, told, and mended by building again."""
    directory = build(StageStore(tmp_path), RAW)
    file, manifest = directory / "0.txt", directory / MANIFEST
    match damage:
        case "content":
            file.write_text("9.9")
        case "size":
            file.write_text("0.00000")
        case "missing":
            file.unlink()
        case "manifest":
            manifest.write_text(manifest.read_text()[:-30])
        case "no manifest":
            manifest.unlink()
    notes: list[str] = []
    store = StageStore(tmp_path, notes.append)
    assert list(store.verify()) == [directory]
    assert not store.has(RAW)
    assert "built again" in notes[0]
    build(store, RAW)
    assert store.has(RAW)
    assert store.verify() == {}


def test_keys_cover_what_a_stage_is_made_from(tmp_path: Path) -> None:
    """Code version, configuration, files' contents and inputs are all in the key; a file's place is not."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("same")
    (tmp_path / "c.txt").write_text("other")
    keys = [
        StageSpec("k", "1", {"path": str(tmp_path / name), "n": n}, {"in": spec}, (tmp_path / name,)).key
        for name, n, spec in [
            ("a.txt", 1, RAW),
            ("b.txt", 1.0, RAW),
            ("c.txt", 1, RAW),
            ("a.txt", 2, RAW),
            ("a.txt", 1, NUMBERS),
        ]
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


def test_two_builders_at_a_time_build_once(tmp_path: Path) -> None:
    """Whoever comes second waits for the first and finds the stage made."""
    stores = [StageStore(tmp_path), StageStore(tmp_path)]
    inside = threading.Event()

    def work(store: StageStore) -> None:
        with store.locked([RAW, NUMBERS], waiting=inside.set):
            if not store.has(RAW):
                inside.wait(10)  # until the other one stands before the lock
                build(store, RAW)

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(sum(store.built.values()) for store in stores) == [0, 1]


def test_waiting_for_a_lock_can_be_given_up(tmp_path: Path) -> None:
    """`waiting` may raise."""

    def give_up() -> None:
        raise InterruptedError

    store = StageStore(tmp_path)
    with store.locked([RAW]), pytest.raises(InterruptedError), StageStore(tmp_path).locked([RAW], waiting=give_up):
        pass


def test_pruning_keeps_what_is_used_and_young(toys: ToySweep) -> None:
    """Entries of the sweeps' plans stay, as do young ones; the rest and left-overs go."""
    toys.run("repeats=1")
    store = toys.store
    used = keys_in_use(toys.paths.out)
    assert {entry.key for entry in store.entries()} == used
    build(store, RAW)
    store.begin(StageSpec("toy_trainable:RAW", "2", {}))
    assert store.prune(keep=used, older_than_s=3600) == []
    assert [entry.key for entry in store.prune(keep=used)] == [RAW.key]
    assert {entry.key for entry in store.entries()} == used
    assert not any((store.root / "tmp").iterdir())


# --- stages that go on ------------------------------------------------------------------------------------

STEPS = "resumable_stage:STEPS"
KILLED, OUT_OF_MEMORY, DIVERGED = "KeyboardInterrupt", "RuntimeError", "DivergenceError"  # torch's is a RuntimeError


@pytest.fixture
def trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that stops the toy kind at its third of four steps; the kind goes on from what was left."""
    monkeypatch.setattr("cadloc_sweep.stages.RESUMABLE", frozenset({STEPS}))
    monkeypatch.setattr(builtins, DIVERGED, DivergenceError, raising=False)  # where the toy kind looks errors up
    monkeypatch.chdir(tmp_path)
    return tmp_path / "trouble.txt"


def stopped(store: StageStore, trouble: Path, ending: str) -> StageSpec:
    """A stage that an earlier attempt, given up as the driver does, did not finish."""
    spec = StageSpec(STEPS, "1", {"trouble": str(trouble)})
    trouble.write_text(ending)
    job = store.begin(spec)
    with pytest.raises((KeyboardInterrupt, OSError, RuntimeError, DivergenceError)):
        job.build_chunk(0)
    store.abandon(job)
    trouble.unlink()
    return spec


def test_kinds_that_go_on_exist() -> None:
    """Encoders are tuned for hours: theirs is such a kind."""
    assert {"encoder"} <= RESUMABLE <= set(STAGES)


@pytest.mark.parametrize(("ending", "left"), [(KILLED, 2), (OUT_OF_MEMORY, 2), ("OSError", 2), (DIVERGED, 4)])
def test_a_killed_stage_goes_on_and_one_that_diverged_begins_anew(
    tmp_path: Path, trouble: Path, ending: str, left: int
) -> None:
    """Steps done before a kill, or an error that says nothing against them, are not done again; divergence takes them
    along.

    What was half written then, or set aside since, is not part of the stage.
    """
    store = StageStore(tmp_path / "store")
    spec = stopped(store, trouble, ending)
    assert not store.has(spec)
    job = store.begin(spec)
    assert job.build_chunk(0) == left
    (job.directory / "steps.txt.damaged").write_text("?")
    job.finish()
    directory = store.publish(job, 4, 0.5)
    assert {path.name for path in directory.iterdir()} == {"steps.txt", MANIFEST, "used"}
    assert not any((store.root / "tmp").iterdir())


def test_a_stage_killed_while_it_is_published_is_whole_in_the_end(tmp_path: Path, trouble: Path) -> None:
    """A manifest left beside its files by a kill is not taken for one of them."""
    store = StageStore(tmp_path / "store")
    spec = stopped(store, trouble, KILLED)
    job = store.begin(spec)
    (job.directory / MANIFEST).write_text("{}")
    directory = build(store, spec)
    assert store.verify() == {}
    assert directory.is_dir()


def test_pruning_keeps_what_a_wanted_stage_goes_on_from(tmp_path: Path, trouble: Path) -> None:
    """Unfinished work stays while a plan asks for it, while it is young and while it is worked on; then it goes."""
    store = StageStore(tmp_path / "store")
    spec = stopped(store, trouble, KILLED)
    store.prune(keep=[spec.key])
    store.prune(older_than_s=3600)
    with StageStore(store.root).locked([spec]):
        store.prune()
    assert len(list((store.root / "tmp").iterdir())) == 1
    store.prune()
    assert not any((store.root / "tmp").iterdir())


@pytest.mark.parametrize(("ending", "items"), [(KILLED, 2), (OUT_OF_MEMORY, 2), (DIVERGED, 4)])
def test_a_sweep_takes_a_stage_up_where_it_was_killed(toys: ToySweep, trouble: Path, ending: str, items: int) -> None:
    """The second run makes the steps that the first left, or all of them if it diverged, and ends well."""
    toys.text = toys.text.replace("toy_trainable:train", "resumable_stage:train")
    trouble.write_text(ending)
    if ending == KILLED:
        with pytest.raises(KeyboardInterrupt):
            toys.run()
    else:
        assert {result.status for result in toys.run().results.values()} == {"failed"}
    trouble.unlink()
    outcome = toys.run(retry_failed=True)
    assert {result.status for result in outcome.results.values()} == {"finished"}
    assert [entry.items for entry in toys.store.entries()] == [items]
