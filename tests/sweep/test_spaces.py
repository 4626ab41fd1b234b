"""Spaces that are right: what they mean, where they are found, and what may be laid on top."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trimesh
import yaml

from cadloc.config import TrialConfig, with_preset
from cadloc.contract import InputError
from cadloc.presets import PRESETS
from cadloc.scene_config import scene_viewpoints
from cadloc.settings import merged
from cadloc_sweep.scene_files import check_models
from cadloc_sweep.spaces import load_space, shipped_spaces

SWITCHING = """\
# When to switch?
name: when
scenes: [gate]
trial: {preset: smoke, head: {width: 32}}
factors:
  loss:
    - {name: coordinate}
    - {name: switching}
  loss.at: {values: [0.25, 0.5], when: {loss: switching}}
  training.iterations: [10, 2e1]
"""


def write(folder: Path, text: str, name: str = "space.yaml") -> str:
    """The text in a file; returns its path."""
    (folder / name).write_text(text)
    return str(folder / name)


def test_shipped_spaces_are_right() -> None:
    """Every shipped space can be read, by name, states its question, and is named like its file."""
    for name, path in shipped_spaces().items():
        if "data_root" in path.read_text():
            continue
        space = load_space(name)
        assert space.name == name
        assert space.question.endswith(("?", ".")), name
        assert len(space.arms) >= 2


def test_shipped_spaces_with_data_ask_for_it() -> None:
    """A space that needs the user's data says which setting gives it."""
    with pytest.raises(Exception, match="pass --set data_root="):
        load_space("cad_models")


def test_shipped_scenes_find_their_models(shared_data: Path) -> None:
    """With the data's place given, the scenes of real CAD models are complete, the second model's registration too."""
    space = load_space("cad_models", [f"data_root={shared_data}"])
    assert [scene.name for scene in space.scenes] == ["pantheon", "brandenburg"]
    assert set(space.scenes[1].query_sets) == {"cad_c"}


def test_conditional_factors_apply_where_they_mean_something(tmp_path: Path) -> None:
    """A factor with `when` multiplies only the arms that meet it; a scalar overrides, a mapping merges."""
    space = load_space(write(tmp_path, SWITCHING))
    told = [
        (arm.config.loss.name, getattr(arm.config.loss, "at", None), arm.config.training.iterations)
        for arm in space.arms
    ]
    assert told == [
        ("coordinate", None, 10), ("coordinate", None, 20),
        ("switching", 0.25, 10), ("switching", 0.25, 20), ("switching", 0.5, 10), ("switching", 0.5, 20),
    ]  # fmt: skip
    assert space.question == "When to switch?"


def test_presets_lie_below_the_trials_own_keys(tmp_path: Path) -> None:
    """An own key replaces the preset's, its neighbours stay; another choice replaces all of them."""
    config = load_space(write(tmp_path, SWITCHING)).arms[0].config
    smoke = PRESETS["smoke"]
    assert (config.head.name, config.head.width) == ("anchor", 32)
    assert config.head.anchors == smoke["head"]["anchors"]
    other = load_space(write(tmp_path, SWITCHING), ["trial.head={name: ace}"]).arms[0].config
    assert other.head == TrialConfig(scene={"name": "gate", "built_in": True}, head={"name": "ace"}).head
    assert merged({"a": {"name": "x", "b": 1}}, {"a": {"c": 2}}) == {"a": {"name": "x", "b": 1, "c": 2}}
    assert with_preset({"seed": 3}) == {"seed": 3}


def test_settings_lie_on_top(tmp_path: Path) -> None:
    """`--set` reaches any key, typed like YAML; later ones win."""
    file = write(tmp_path, SWITCHING)
    settings = [
        "repeats=2",
        "repeats=3",
        "trial.training.learning_rate=1e-4",
        "factors.training.iterations=[5]",
        "design=one_factor",
    ]
    space = load_space(file, settings)
    assert space.repeats == 3
    assert space.arms[0].config.training.learning_rate == 1e-4
    assert {arm.config.training.iterations for arm in space.arms} == {5}
    assert space.design.name == "one_factor"


def test_variables_are_seen_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a scene are relative to the scene file, values given on the command line to where the user stands."""
    (tmp_path / "spaces").mkdir()
    (tmp_path / "models").mkdir()
    for place in ("spaces/near.obj", "models/far.obj"):
        (tmp_path / place).write_text("v 0 0 0\n")
    write(tmp_path / "spaces", "name: near\ncad: {path: near.obj, up: z, units: m}\n", "near.yaml")
    write(tmp_path / "spaces", 'name: far\ncad: {path: "${models}/far.obj", up: z, units: m}\n', "far.yaml")
    file = write(tmp_path / "spaces", "name: two\nscenes: [near.yaml, far.yaml]\n")
    monkeypatch.chdir(tmp_path)
    places = [Path(scene.cad.path) for scene in load_space(file, ["models=models"]).scenes if scene.cad]
    assert places == [tmp_path / "spaces" / "near.obj", tmp_path / "models" / "far.obj"]


def test_the_resolved_space_means_the_same(tmp_path: Path) -> None:
    """The copy kept with the results can be run as it stands, without the settings that made it."""
    (tmp_path / "hut.obj").write_text("v 0 0 0\n")
    write(tmp_path, 'name: hut\ncad: {path: "${here}/hut.obj", up: y, units: cm}\n', "hut.yaml")
    space = load_space(write(tmp_path, SWITCHING), ["scenes=[gate, hut.yaml]", f"here={tmp_path}", "repeats=2"])
    (tmp_path / "elsewhere").mkdir()
    again = load_space(write(tmp_path / "elsewhere", yaml.safe_dump(dict(space.resolved))))
    assert (again.scenes, again.repeats, again.arms) == (space.scenes, space.repeats, space.arms)


def test_planning_needs_nothing_heavy() -> None:
    """Reading a space and planning it imports none of the numerical and distributed libraries."""
    code = (
        "import sys; import cadloc_sweep.sweep; from cadloc_sweep.spaces import load_space;"
        "from cadloc_sweep.plan import make_plan;"
        "make_plan(load_space('losses', ['trial.encoder={name: dense-hog}']));"
        "print([m for m in ('ray', 'torch', 'mlflow', 'numpy', 'trimesh', 'pyrender', 'cv2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


SCENE_WITH_PHOTOS = """\
name: house
cad: {path: house.glb, up: -z, units: m}
photos: {images: images, reconstruction: poses.json, splits: {query: query.txt}}
viewpoints: {azimuth_deg: [0, 90]}
"""


def scene_with_photos(folder: Path) -> None:
    """A scene file beside everything it names."""
    (folder / "images").mkdir()
    for name in ("house.glb", "poses.json", "query.txt"):
        (folder / name).write_text("content")
    write(folder, SCENE_WITH_PHOTOS, "house.yaml")


def test_places_of_photos_are_seen_from_the_scene_file(tmp_path: Path) -> None:
    """Images, poses and lists of names are found beside the scene file, wherever the space lies."""
    scene_with_photos(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    text = "name: gap\nscenes: [../house.yaml]\ntrial: {train_on: [real]}\n"
    photos = load_space(write(tmp_path / "elsewhere", text)).scenes[0].photos
    assert photos is not None
    assert photos.images == str(tmp_path / "images")
    assert photos.splits.query == str(tmp_path / "query.txt")
    assert photos.registration is None


def test_every_missing_place_of_photos_is_told(tmp_path: Path) -> None:
    """Folder, poses, registration and lists that are not there are faults of their keys, all at once."""
    scene_with_photos(tmp_path)
    for name in ("poses.json", "query.txt"):
        (tmp_path / name).unlink()
    (tmp_path / "images").rmdir()
    (tmp_path / "house.yaml").write_text(SCENE_WITH_PHOTOS.replace("images,", "images, registration: none.txt,"))
    with pytest.raises(InputError) as caught:
        load_space(write(tmp_path, "name: gap\nscenes: [house.yaml]\n"))
    assert {fault.key for fault in caught.value.faults} == {
        "photos.images",
        "photos.reconstruction",
        "photos.registration",
        "photos.splits.query",
    }


def test_an_arm_that_a_later_scene_cannot_run_is_a_fault(tmp_path: Path) -> None:
    """Training on photographs is refused where any of the scenes has none, and the scene is named."""
    scene_with_photos(tmp_path)
    text = "name: gap\nscenes: [house.yaml, gate]\nfactors: {train_on: [[real], [synthetic]]}\n"
    with pytest.raises(InputError, match="gate has no photos"):
        load_space(write(tmp_path, text))


def test_an_unreadable_scene_hides_no_fault_and_adds_none(tmp_path: Path) -> None:
    """Where a scene file is missing, that is the only fault: arms are not measured by some other scene."""
    text = "name: gap\nscenes: [nowhere.yaml]\nfactors: {train_on: [[real], [synthetic]]}\n"
    with pytest.raises(InputError) as caught:
        load_space(write(tmp_path, text))
    assert [fault.key for fault in caught.value.faults] == ["scenes[0]"]


def test_poses_of_photos_are_read_before_work_starts(tmp_path: Path) -> None:
    """A reconstruction that cannot be used stops a sweep before its first stage, with the file's name."""
    scene_with_photos(tmp_path)
    trimesh.creation.box().export(tmp_path / "house.glb")
    scenes = load_space(write(tmp_path, "name: gap\nscenes: [house.yaml]\n")).scenes
    with pytest.raises(InputError, match=r"poses\.json"):
        check_models(scenes)


def test_a_scenes_own_viewpoints_win_and_are_checked(tmp_path: Path) -> None:
    """Keys of the scene lie on top of the space's; an unknown one is a fault."""
    scene_with_photos(tmp_path)
    text = "name: gap\nscenes: [house.yaml]\ntrial: {views: {viewpoints: {azimuth_deg: [-9, 9], roll_deg: 7}}}\n"
    config = load_space(write(tmp_path, text)).arms[0].config
    viewpoints = scene_viewpoints(config.views.viewpoints, config.scene)
    assert (viewpoints.azimuth_deg, viewpoints.roll_deg) == ((0, 90), 7)
    write(tmp_path, SCENE_WITH_PHOTOS.replace("azimuth_deg", "azimut_deg"), "house.yaml")
    with pytest.raises(InputError, match="azimut_deg"):
        load_space(write(tmp_path, text))


def test_settings_of_another_trainable_are_refused(tmp_path: Path) -> None:
    """`matching` belongs to `render_and_match`: where nobody reads it, it is a fault and no part of a trial."""
    with pytest.raises(InputError, match="matching"):
        load_space(write(tmp_path, "name: m\nscenes: [gate]\ntrial: {matching: {retrieved: 3}}\n"))
    text = "name: m\nscenes: [gate]\ntrial: {trainable: render_and_match, matching: {retrieved: 3}}\n"
    matching = load_space(write(tmp_path, text)).arms[0].config.matching
    assert matching is not None
    assert matching.retrieved == 3
