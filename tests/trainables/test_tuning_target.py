"""What an encoder is tuned towards, tested and validated on: one name on all scenes, stages shared by all trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cadloc import catalog
from cadloc.catalog import needs_gpu, stages_of, tuning_target, validation_domains
from cadloc.config import TrialConfig
from cadloc.contract import TrialContext
from cadloc.datasets.ace_layout import View
from cadloc.dcre import DCRE_METRICS, DcreErrors
from cadloc.localization import Estimate
from cadloc.metric_names import reported_metrics
from cadloc.testing import Answer, keep_answers

CAD = {"path": "gate.glb", "up": "z", "units": "m"}
GATE: dict[str, Any] = {"name": "gate", "built_in": True}
PLAIN: dict[str, Any] = {"name": "plain", "cad": CAD}
OTHER: dict[str, Any] = {**PLAIN, "query_sets": {"cad_c": {"cad": CAD}}}
PHOTOGRAPHED: dict[str, Any] = {**PLAIN, "photos": {"images": "./photos", "reconstruction": "./sparse"}}
TUNED = {"name": "features", "steps": 20, "warm_up": 2}


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model file: stages name the content of what they read."""
    monkeypatch.chdir(tmp_path)
    Path("gate.glb").write_bytes(b"a model")
    for folder in ("photos", "sparse"):
        Path(folder).mkdir()


def trial(scene: dict[str, Any], **changes: Any) -> TrialConfig:
    return TrialConfig.model_validate({"scene": scene, "domains": ["synthetic", "target"], **changes})


@pytest.mark.parametrize(
    ("scene", "target"), [(GATE, "photo"), (OTHER, "cad_c"), (PHOTOGRAPHED, "real"), (PLAIN, None)]
)
def test_the_target_is_the_best_that_a_scene_has(scene: dict[str, Any], target: str | None) -> None:
    """Photographs, else a built-in scene's twin, else the first other model; a lonely model has none, and no test."""
    config = trial(scene)
    assert tuning_target(config.scene) == target
    assert ("target" in catalog.test_sets(config)) == ("target" in validation_domains(config)) == (target is not None)


def test_the_target_is_tested_on_the_very_queries_of_its_own_name() -> None:
    """Two names, one stage: nothing is rendered or encoded twice."""
    stages = stages_of(trial(OTHER))
    assert stages["queries/target"].key == stages["queries/cad_c"].key
    assert {"test/target/translation_error_median_pct", "validation/target/translation_error_median_pct"} <= (
        reported_metrics(trial(OTHER)) or set()
    )


@pytest.mark.parametrize(("scene", "real"), [(PHOTOGRAPHED, True), (GATE, False), (OTHER, False)])
def test_a_target_of_photographs_is_measured_as_photographs_are(
    scene: dict[str, Any], real: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DCRE, named beforehand, and a page of the worst, which simulated photos and other models do not have."""
    cv2.imwrite("a.png", np.zeros((48, 64, 3), np.uint8))
    view = View("a", np.eye(4), np.diag([50.0, 50.0, 1.0]), Path("a.png"), None, 0.001)
    pages: list[Path] = []
    found = {
        "query_views": (view,),
        "kept_scene_model": None,
        "process_renderer": None,
        "_dcre": DcreErrors(np.array([0.1]), np.array([0.2]), np.array([0.1])),
    }
    for name, value in found.items():
        monkeypatch.setattr(f"cadloc.testing.{name}", lambda *_, value=value: value)
    monkeypatch.setattr("cadloc.testing.draw_failures", lambda path, *_, **__: pages.append(path))
    answer = Answer(Estimate(None, 0, 0.0, 0.0, 0.01), np.zeros((0, 2)), np.zeros((0, 3)), 10.0)
    metrics = keep_answers(trial(scene), TrialContext(tmp_path, {}), "target", [answer])
    known = reported_metrics(trial(scene)) or set()
    named = {name.rpartition("/")[2] for name in known if name.startswith("test/target/dcre_")}
    assert set(metrics) == named == (set(DCRE_METRICS) if real else set())
    assert [path.name for path in pages] == (["failures_target.png"] if real else [])


def test_choices_are_made_on_other_pictures_than_tests() -> None:
    """Tuning and validation read the target's mapping and validation views, a stage of its own without queries."""
    stages = stages_of(trial(GATE, finetuning=TUNED))
    tuned_on = stages["encoder"].inputs["photos"]
    assert stages["queries/validation/target"].inputs["views"].key == tuned_on.key
    assert stages["queries/target"].inputs["views"].key != tuned_on.key
    assert tuned_on.config["pairs"] == 60


def test_heads_losses_and_seeds_share_one_tuned_encoder() -> None:
    """What comes after the encoder does not change it; another strategy, or another seed of it, does."""

    def key(**changes: Any) -> str:
        return stages_of(trial(GATE, **{"finetuning": TUNED, **changes}))["encoder"].key

    assert len({key(), key(seed=4), key(loss={"name": "coordinate"}), key(head={"name": "ace"})}) == 1
    assert len({key(), key(finetuning={**TUNED, "seed": 1}), key(finetuning={**TUNED, "name": "adversarial"})}) == 3


def test_buffers_and_queries_know_which_encoder_made_them() -> None:
    """With another tuning, or none, they are other stages."""
    plain, tuned = stages_of(trial(GATE)), stages_of(trial(GATE, finetuning=TUNED))
    for role in ("buffer/synthetic", "queries/synthetic", "queries/target", "queries/validation/target"):
        assert plain[role].key != tuned[role].key
    assert plain["views/target"].key == tuned["views/target"].key


def test_only_a_tuning_on_a_gpu_asks_for_one() -> None:
    """The rest of a trial's stages are made on processors."""
    stages = stages_of(trial(GATE, finetuning={**TUNED, "device": "cuda"}))
    assert [role for role, spec in stages.items() if needs_gpu(spec)] == ["encoder"]
    assert not any(needs_gpu(spec) for spec in stages_of(trial(GATE, finetuning=TUNED)).values())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scene": PLAIN, "finetuning": TUNED}, "no photos and no other model"),
        ({"scene": GATE, "finetuning": TUNED, "encoder": {"name": "dense-hog"}}, "nothing to tune"),
        ({"scene": GATE, "finetuning": {**TUNED, "warm_up": 20}}, "never gets to the learning rate"),
        ({"scene": {**PLAIN, "query_sets": {"target": {"cad": CAD}}}}, "domains already"),
    ],
)
def test_what_cannot_be_tuned_is_refused(changes: dict[str, Any], told: str) -> None:
    """Before anything is rendered."""
    with pytest.raises(ValueError, match=told):
        TrialConfig.model_validate(changes)
