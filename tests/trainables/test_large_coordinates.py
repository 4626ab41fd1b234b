"""A scene far from the origin localizes as well as at the origin: CAD, training, head, and the file of others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import torch
import trimesh

from cadloc.cad import load_cad
from cadloc.config import TrialConfig
from cadloc.geometry import Array, inverse, look_at, pinhole, project, transform_points
from cadloc.head_config import AceHead
from cadloc.heads import build
from cadloc.heads.ace import AcePerceptron
from cadloc.heads.ace_file import read_ace_head, write_ace_head
from cadloc.localization import localize
from cadloc.loss_config import CoordinateLoss, ReprojectionLoss
from cadloc.losses.reprojection import ReprojectionPhase
from cadloc.metrics import PoseErrors
from cadloc.raycasting import RayCaster
from cadloc.samples import Samples
from cadloc.scene_config import CadConfig, SceneConfig
from cadloc.training import Training, mean_loss
from cadloc.training_config import LocalizationConfig, TrainingConfig
from cadloc.viewpoints import Site, plan_viewpoints
from cadloc.views_config import ViewsConfig

CHANNELS = 48
HERE = np.zeros(3)
AFAR = np.array([5001.3, -2999.2, 101.7])
SIZE_PX = (480, 360)
SMALL = AceHead(width=64)


def ace(config: AceHead = SMALL) -> AcePerceptron:
    """An untrained head."""
    head = build(config, CHANNELS, seed=0)
    assert isinstance(head, AcePerceptron)
    return head


def samples(at: Array = HERE, seed: int = 0, *, views: int = 16, per_view: int = 120) -> Samples:
    """Cells of cameras around 8 m of rubble whose middle lies `at`; features are smooth, random functions of it."""
    generator, functions = np.random.default_rng(seed), np.random.default_rng(99)
    waves, phases = functions.normal(0, 0.6, (3, CHANNELS)), functions.uniform(0, 6, CHANNELS)
    K = pinhole(*SIZE_PX, 60)
    xyz = generator.uniform(-4, 4, (views, per_view, 3))
    angles = np.linspace(0, 2 * np.pi, views, endpoint=False) + 0.1 * seed
    eyes = np.stack([15 * np.cos(angles), 15 * np.sin(angles), generator.uniform(-2, 4, views)], axis=1)
    cad_from_cam = np.stack([look_at(eye, [0, 0, 0]) for eye in eyes])
    pixels = project(transform_points(inverse(cad_from_cam), xyz), K)
    cad_from_cam[:, :3, 3] += at
    features = np.cos(xyz @ waves + phases) + generator.normal(0, 0.05, (views, per_view, CHANNELS))
    return Samples(
        torch.from_numpy(features.reshape(-1, CHANNELS).astype(np.float16)),
        torch.from_numpy(pixels.reshape(-1, 2).astype(np.float32)),
        torch.arange(views).repeat_interleave(per_view),
        torch.from_numpy((xyz + at).reshape(-1, 3).astype(np.float32)),
        torch.from_numpy(inverse(cad_from_cam).astype(np.float32)),
        torch.from_numpy(np.stack([K] * views).astype(np.float32)),
    )


def trained(at: Array, folder: Path, precision: str = "float32") -> AcePerceptron:
    """A head taught briefly on a scene that lies `at`."""
    settings = {"iterations": 160, "batch_size": 192, "learning_rate": 5e-3, "validations": 1, "precision": precision}
    config = TrialConfig(
        scene=SceneConfig(name="gate", built_in=True),
        head=SMALL,
        loss=CoordinateLoss(),
        training=TrainingConfig.model_validate({**settings, "checkpoint": False}),
    )
    seen = samples(at)
    head = ace()
    head.fit(seen, seed=0)
    for _ in Training(head, seen, config, folder).run(lambda _: {}):
        pass
    return head.eval()


def median_error_m(head: AcePerceptron, at: Array) -> float:
    """Of the positions of cameras that were not trained on, in a scene that lies `at`."""
    unseen = samples(at, seed=1, views=10, per_view=300)
    points = head.predict(unseen.features).reshape(10, 300, 3).numpy()
    pixels = unseen.pixels.reshape(10, 300, 2).numpy()
    config = LocalizationConfig(threshold_px=20.0)
    found = [
        localize(*each, unseen.intrinsics[0].numpy(), *SIZE_PX, config, 0) for each in zip(points, pixels, strict=True)
    ]
    errors = PoseErrors.of(found, unseen.cam_from_cad.double().numpy())
    return float(np.median(errors.translation_m))


def moved(head: AcePerceptron, by: Array) -> AcePerceptron:
    """The same weights about a centre elsewhere."""
    copy = ace()
    copy.load_state_dict(head.state_dict())
    copy.centre.copy_(head.centre.double() + torch.from_numpy(by))
    return copy.eval()


Heads: TypeAlias = Mapping[str, AcePerceptron]


@pytest.fixture(scope="module")
def here_and_afar(tmp_path_factory: pytest.TempPathFactory) -> Heads:
    """Heads of the same scene, taught at the origin, and 5.8 km away in either precision."""
    folder = tmp_path_factory.mktemp("training")
    afar = {precision: trained(AFAR, folder, precision) for precision in ("float32", "bfloat16")}
    return {"origin": trained(HERE, folder), **afar}


def test_a_head_moved_with_its_scene_localizes_to_the_millimetre_as_before(here_and_afar: Heads) -> None:
    """The same weights about a centre 5.8 km away: median position error within 1 mm of that at the origin."""
    head = here_and_afar["origin"]
    assert median_error_m(moved(head, AFAR), AFAR) == pytest.approx(median_error_m(head, HERE), abs=1e-3)


def test_true_points_afar_are_seen_where_they_were_seen(here_and_afar: Heads) -> None:
    """Float32 has steps of half a millimetre there: a twentieth of a pixel at most, a thousandth of a trained loss."""
    seen = samples(AFAR)
    batch = seen.batch(torch.arange(len(seen)))
    points_cam = batch.in_camera(batch.scene_coordinates).double().numpy()
    errors_px = np.linalg.norm(project(points_cam, pinhole(*SIZE_PX, 60)) - batch.pixels.numpy(), axis=1)
    assert errors_px.max() < 0.05
    losses_px = []
    for at in (HERE, AFAR):
        seen = samples(at)
        losses_px.append(
            mean_loss(moved(here_and_afar["origin"], at), seen, ReprojectionPhase(ReprojectionLoss(), 0.9))
        )
    assert losses_px[1] == pytest.approx(losses_px[0], rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_scene_trained_five_kilometres_away_localizes_as_well_as_at_the_origin(
    precision: str, here_and_afar: Heads
) -> None:
    """Taught there, in either precision, the median position error is the origin's up to a third, which is chance."""
    at_origin_m = median_error_m(here_and_afar["origin"], HERE)
    assert at_origin_m < 0.2
    assert median_error_m(here_and_afar[precision], AFAR) < 4 / 3 * at_origin_m


def test_a_map_far_away_survives_the_file_unless_its_centre_is_halved(here_and_afar: Heads, tmp_path: Path) -> None:
    """Through our file the error changes by under a centimetre; with its centre halved, it is half a metre more, and
    the reader says how far off it may be."""
    head = here_and_afar["bfloat16"]
    before_m = median_error_m(head, AFAR)
    write_ace_head(tmp_path / "ours.pt", head)
    ours = read_ace_head(tmp_path / "ours.pt", CHANNELS)
    assert median_error_m(ours.head, AFAR) == pytest.approx(before_m, abs=0.01)
    assert ours.centre_rounding_m < 1e-3
    state = torch.load(tmp_path / "ours.pt", weights_only=True)
    torch.save({**state, "mean": state["mean"].half()}, tmp_path / "halved.pt")
    theirs = read_ace_head(tmp_path / "halved.pt", CHANNELS)
    assert median_error_m(theirs.head, AFAR) > before_m + 0.5
    assert theirs.centre_rounding_m > 1


def test_a_cad_file_far_away_gives_the_views_of_the_one_at_the_origin(tmp_path: Path) -> None:
    """The same building 5.8 km off is planned from the same cameras, which see the same depths, to 0.1 mm."""
    whole = np.round(AFAR)  # as is what `cadloc.cad` subtracts
    seen = []
    for name, at in (("near", HERE), ("far", whole)):
        mesh = trimesh.creation.box([12.34, 10.2, 8.7])
        mesh.apply_translation(at)
        mesh.export(tmp_path / f"{name}.obj", digits=6)
        model = load_cad(CadConfig(path=str(tmp_path / f"{name}.obj"), up="z", units="m"))
        np.testing.assert_array_equal(model.origin_m, at)
        views = ViewsConfig.model_validate({"counts": {"mapping": 4, "validation": 1, "query": 1}})
        cameras = plan_viewpoints(Site(model), views)["mapping"]
        caster, K = RayCaster(model), pinhole(32, 24, 60)
        depths_m = [caster.first_hit_depth(camera.cad_from_cam, K, 32, 24) for camera in cameras]
        assert all((depth_m > 0).any() for depth_m in depths_m)
        seen.append((np.stack([camera.cad_from_cam for camera in cameras]), np.stack(depths_m)))
    for near, far in zip(*seen, strict=True):
        np.testing.assert_allclose(far, near, rtol=0, atol=1e-4)
