"""A corpus of wrong spaces, scene files and CAD models: each is told with file and key before any work starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trimesh

from cadloc.contract import InputError
from cadloc_sweep.scene_files import check_models
from cadloc_sweep.spaces import load_space

HEAD = "name: bad\nscenes: [gate]\n"
SCENE = "name: hut\ncad: {path: hut.glb, up: z, units: m}\n"
LOSSES = "factors:\n  loss:\n    - {name: reprojection}\n    - {name: coordinate}\n"
RATES = "factors:\n  training.learning_rate: [0.1, 0.2]\n"


@dataclass(frozen=True)
class Malformed:
    """A space file, a scene file beside it, and the file and key that the fault must name."""

    title: str
    key: str
    space: str = "name: bad\nscenes: [hut.yaml]\n"
    scene: str = SCENE
    file: str = "bad.yaml"
    line: int | None = None
    settings: Sequence[str] = ()

    def __str__(self) -> str:
        return self.title


SPACES = [
    Malformed("no name", "name", "scenes: [gate]\n"),
    Malformed("name with a slash", "name", "name: a/b\nscenes: [gate]\n", line=1),
    Malformed("wrong key", "repeets", HEAD + "repeets: 3\n", line=3),
    Malformed("dotted key of the file", "trial.preset", HEAD + "trial.preset: quick\n", line=3),
    Malformed("empty key", "the whole file", HEAD + "'': quick\n", line=3),
    Malformed("wrong type", "repeats", HEAD + "repeats: many\n", line=3),
    Malformed("no repeats", "repeats", HEAD + "repeats: 0\n"),
    Malformed("a word for a number", "repeats", HEAD + "repeats: '3'\n"),
    Malformed("no scenes", "scenes", "name: bad\nscenes: []\n"),
    Malformed("unknown scene", "scenes[1]", "name: bad\nscenes: [gate, gaet]\n"),
    Malformed("scene of a number", "scenes[0]", "name: bad\nscenes: [1]\n"),
    Malformed("scene twice", "scenes[1]", "name: bad\nscenes: [gate, gate]\n"),
    Malformed("unknown preset", "trial.preset", HEAD + "trial: {preset: qick}\n", line=3),
    Malformed("preset of a list", "trial.preset", HEAD + "trial: {preset: [quick]}\n"),
    Malformed("trial of a list", "trial", HEAD + "trial: [quick]\n"),
    Malformed("unknown trial key", "trial.trainig", HEAD + "trial: {trainig: {}}\n"),
    Malformed("unknown nested key", "trial.training.iteration", HEAD + "trial: {training: {iteration: 3}}\n"),
    Malformed("value out of range", "trial.views.image.width_px",
              HEAD + "trial: {views: {image: {width_px: 100}}}\n"),
    Malformed("trial sets the seed", "trial.seed", HEAD + "trial: {seed: 3}\n"),
    Malformed("trial sets the scene", "trial.scene", HEAD + "trial: {scene: gate}\n"),
    Malformed("unknown trainable", "trial.trainable", HEAD + "trial: {trainable: acee}\n"),
    Malformed("trainable that cannot be imported", "trial.trainable", HEAD + 'trial: {trainable: "absent:f"}\n'),
    Malformed("trainable without its function", "trial.trainable", HEAD + 'trial: {trainable: "toy_trainable:f"}\n'),
    Malformed("weights that are not there", "trial.encoder.weights",
              HEAD + "trial: {encoder: {name: ace, weights: w.pt}}\n"),
    Malformed("unknown loss", "factors.loss[2].name", HEAD + LOSSES + "    - {name: photometric}\n", line=7),
    Malformed("misspelt name", "factors.loss[2].nmae", HEAD + LOSSES + "    - {nmae: switching}\n", line=7),
    Malformed("key of another loss", "factors.loss[2].at",
              HEAD + LOSSES + "    - {name: coordinate, at: 0.5}\n", line=7),
    Malformed("duplicate arm", "factors.loss[2]", HEAD + LOSSES + "    - {name: coordinate}\n", line=7),
    Malformed("duplicate by default value", "factors.loss[1]",
              HEAD + "factors:\n  loss: [{name: reprojection}, {name: reprojection, soft_clamp_px: 5e1}]\n"),
    Malformed("empty grid", "factors.loss", HEAD + "factors: {loss: []}\n", line=3),
    Malformed("factors of a list", "factors", HEAD + "factors: [loss]\n"),
    Malformed("factor of a word", "factors.loss", HEAD + "factors: {loss: coordinate}\n"),
    Malformed("unknown factor", "factors.lss", HEAD + "factors: {lss: [1]}\n"),
    Malformed("unknown dotted factor", "factors.training.iteratons",
              HEAD + "factors: {training.iteratons: [1, 2]}\n"),
    Malformed("seed as a factor", "factors.seed", HEAD + "factors: {seed: [1, 2]}\n"),
    Malformed("factor without its condition", "factors.loss.at", HEAD + LOSSES + "  loss.at: [0.2, 0.5]\n", line=7),
    Malformed("condition on nothing", "factors.loss.at.when.los",
              HEAD + LOSSES + "  loss.at: {values: [0.2], when: {los: switching}}\n"),
    Malformed("condition never met", "factors.loss.at.when.loss",
              HEAD + LOSSES + "  loss.at: {values: [0.2], when: {loss: switching}}\n"),
    Malformed("condition misspelt", "factors.loss.at.wen",
              HEAD + LOSSES + "  loss.at: {values: [0.2], wen: {loss: coordinate}}\n"),
    Malformed("unknown design", "design.name", HEAD + "design: factorail\n"),
    Malformed("adaptive design", "design.name", HEAD + "design: adaptive\n"),
    Malformed("random without samples", "design.samples", HEAD + "design: random\n"),
    Malformed("nothing to leave out", "factors.loss",
              HEAD + "factors: {loss: [{name: coordinate}]}\ndesign: leave_one_out\n"),
    Malformed("baseline of an unknown factor", "baseline.los", HEAD + LOSSES + "baseline: {los: coordinate}\n"),
    Malformed("baseline of an unknown value", "baseline.loss", HEAD + LOSSES + "baseline: {loss: switching}\n"),
    Malformed("baseline that is no number", "baseline.training.learning_rate",
              HEAD + RATES + "baseline: {training.learning_rate: .nan}\n", line=5),
    Malformed("condition that is no number", "factors.training.batch_size.when.training.learning_rate",
              HEAD + RATES + "  training.batch_size: {values: [64], when: {training.learning_rate: .inf}}\n"),
    Malformed("value that is no number", "factors.training.learning_rate[1]",
              HEAD + RATES.replace("0.2", ".nan")),
    Malformed("objective nobody reports", "objective.metric",
              HEAD + "objective: {metric: test/synthetic/translation_error_m}\n", line=3),
    Malformed("objective on another query set", "objective.metric",
              HEAD + "objective: {metric: test/cad_c/failures}\n"),
    Malformed("neither min nor max", "objective.mode", HEAD + "objective: {mode: best}\n"),
    Malformed("unknown scheduler", "stop.scheduler", HEAD + "stop: {scheduler: hyperband}\n"),
    Malformed("stopping by the test", "stop.metric",
              HEAD + "stop: {scheduler: asha, metric: test/synthetic/failures}\n"),
    Malformed("no processor", "resources.cpu", HEAD + "resources: {cpu: 0}\n"),
    Malformed("variable without a value", "scenes[0]", 'name: bad\nscenes: ["${data_root}/hut.yaml"]\n', line=2),
    Malformed("not a mapping", "the whole file", "- name: bad\n"),
    Malformed("tabs", "the whole file", "name: bad\n\tscenes: [gate]\n", line=2),
    Malformed("key twice", "name", HEAD + "name: worse\n", line=3),
    Malformed("setting nobody reads", "reapets", HEAD, file="--set", settings=["reapets=3"]),
    Malformed("setting without a value", "repeats", HEAD, file="--set", settings=["repeats"]),
    Malformed("setting out of range", "repeats", HEAD, file="--set", settings=["repeats=0"]),
    Malformed("setting below a number", "repeats.x", HEAD + "repeats: 2\n", file="--set", settings=["repeats.x=0"]),
    Malformed("scene file not there", "scenes[0]", "name: bad\nscenes: [shed.yaml]\n"),
    Malformed("scene without axes", "cad.up",
              scene="name: hut\ncad: {path: hut.glb, units: m}\n", file="hut.yaml", line=2),
    Malformed("scene with a wrong key", "cda",
              scene="name: hut\ncda: {path: hut.glb, up: z}\n", file="hut.yaml", line=2),
    Malformed("scene without a model", "the whole file", scene="name: hut\n", file="hut.yaml"),
    Malformed("unknown unit", "cad.units",
              scene="name: hut\ncad: {path: hut.glb, up: z, units: km}\n", file="hut.yaml"),
    Malformed("model not there", "cad.path",
              scene="name: hut\ncad: {path: shed.glb, up: z}\n", file="hut.yaml", line=2),
    Malformed("query set named like a domain", "the whole file",
              scene=SCENE + "query_sets: {photo: {cad: {path: hut.glb, up: z}}}\n", file="hut.yaml"),
    Malformed("registration not there", "query_sets.b.registration",
              scene=SCENE + "query_sets:\n  b: {cad: {path: hut.glb, up: z}, registration: r.txt}\n",
              file="hut.yaml", line=4),
    Malformed("registration of words", "query_sets.b.registration",
              scene=SCENE + "query_sets:\n  b: {cad: {path: hut.glb, up: z}, registration: hut.yaml}\n",
              file="hut.yaml"),
    Malformed("registration of nine numbers", "query_sets.b.registration",
              scene=SCENE + "query_sets:\n  b: {cad: {path: hut.glb, up: z}, registration: nine.txt}\n",
              file="hut.yaml"),
    Malformed("scene variable without a value", "cad.path",
              scene='name: hut\ncad: {path: "${data_root}/hut.glb", up: z}\n', file="hut.yaml", line=2),
]  # fmt: skip

MODELS = {
    "nan.obj": "cad.path", "cut.glb": "cad.path", "empty.glb": "cad.path", "points.ply": "cad.path",
    "model.blend": "cad.path",
    "text.stl": "cad.path", "unitless.ply": "cad.units", "flat.obj": "cad.path",
}  # fmt: skip


def write_models(folder: Path) -> None:
    """A good model and bad ones."""
    box = trimesh.creation.box((4, 5, 6))
    box.export(folder / "hut.glb")
    box.export(folder / "unitless.ply")
    (folder / "cut.glb").write_bytes((folder / "hut.glb").read_bytes()[:200])
    (folder / "empty.glb").write_bytes(b"")
    (folder / "nan.obj").write_text("v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n")
    (folder / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    (folder / "text.stl").write_text("once upon a time")
    (folder / "model.blend").write_bytes(b"BLENDER")
    trimesh.PointCloud(np.eye(3)).export(folder / "points.ply")
    np.savetxt(folder / "nine.txt", np.eye(3))


def load_and_check(space: Path, settings: Sequence[str] = ()) -> None:
    """What the command line does before it starts anything."""
    check_models(load_space(str(space), settings).scenes)


@pytest.mark.parametrize("case", SPACES, ids=str)
def test_a_malformed_space_is_told_at_its_key(case: Malformed, tmp_path: Path) -> None:
    """One mistake is one fault, at the file, line and key where it was made."""
    write_models(tmp_path)
    (tmp_path / "bad.yaml").write_text(case.space)
    (tmp_path / "hut.yaml").write_text(case.scene)
    with pytest.raises(InputError) as caught:
        load_and_check(tmp_path / "bad.yaml", case.settings)
    (fault,) = caught.value.faults
    assert (Path(fault.file).name, fault.key) == (case.file, case.key)
    assert case.line in (None, fault.line)


@pytest.mark.parametrize("name", MODELS)
def test_a_bad_model_is_told_by_its_name(name: str, tmp_path: Path) -> None:
    """A model that cannot be used is found before anything is built, and named."""
    write_models(tmp_path)
    unit = ", units: m" if name not in ("unitless.ply", "cut.glb") else ""
    (tmp_path / "hut.yaml").write_text(f"name: hut\ncad: {{path: {name}, up: z{unit}}}\n")
    (tmp_path / "bad.yaml").write_text("name: bad\nscenes: [hut.yaml]\n")
    with pytest.raises(InputError) as caught:
        load_and_check(tmp_path / "bad.yaml")
    (fault,) = caught.value.faults
    assert name in str(fault)
    assert fault.key == MODELS[name]


def test_the_command_line_refuses_before_ray_is_loaded(tmp_path: Path) -> None:
    """`run` answers 2 to a malformed space, in a process that has not imported ray."""
    (tmp_path / "hut.yaml").write_text(SCENE)
    cases = [case for case in SPACES if case.file == "bad.yaml"][::8]
    for number, case in enumerate(cases):
        (tmp_path / f"{number}.yaml").write_text(case.space)
    code = (
        "import sys; from cadloc_sweep.cli import run_command\n"
        "print([int(run_command(['run', f'{n}.yaml'])) for n in range(int(sys.argv[1]))], 'ray' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(len(cases))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert ended.stdout.strip() == f"{[2] * len(cases)} False", ended.stderr
    assert not (tmp_path / "sweeps").exists()


def test_several_mistakes_are_told_together(tmp_path: Path) -> None:
    """All faults of a space come at once, each with its own line."""
    (tmp_path / "bad.yaml").write_text(
        "nmae: bad\nscenes: [gate, gaet]\nrepeats: -1\ntrial: {preset: quick, trainig: {}}\n"
        "factors:\n  loss:\n    - {name: reproj}\n    - {name: coordinate}\n"
    )
    with pytest.raises(InputError) as caught:
        load_space(str(tmp_path / "bad.yaml"))
    places = {(fault.key, fault.line) for fault in caught.value.faults}
    assert places == {("nmae", 1), ("scenes[1]", 2), ("repeats", 3), ("trial.trainig", 4), ("factors.loss[0].name", 7)}


def test_the_corpus_has_a_good_member(tmp_path: Path) -> None:
    """The files that the corpus spoils are right before."""
    write_models(tmp_path)
    (tmp_path / "hut.yaml").write_text(SCENE)
    (tmp_path / "bad.yaml").write_text("name: good\nscenes: [hut.yaml, gate]\n" + LOSSES)
    load_and_check(tmp_path / "bad.yaml")
