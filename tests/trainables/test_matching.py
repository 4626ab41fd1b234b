"""Local matching between images, retrieval, and plug-in matchers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cadloc.cad import CadModel
from cadloc.config import (
    EncoderFeatures,
    MatcherConfig,
    MatchingConfig,
    PluginFeatures,
    SiftFeatures,
    SmallEncoder,
    TrialConfig,
)
from cadloc.contract import InputError
from cadloc.datasets.ace_layout import Dataset, write_card, write_view
from cadloc.geometry import inverse, look_at, pinhole, project, transform_points, translation_error_m
from cadloc.matching import Matcher, build
from cadloc.matching.database import Database
from cadloc.matching.dense import DenseMatcher
from cadloc.matching.local_features import mutual_nearest, ratio_tested
from cadloc.matching.localizer import Localizer
from cadloc.matching.retrieval import Vocabulary, nearest_first
from cadloc.rendering import Light, depth_m, process_renderer
from cadloc.scene_config import SceneConfig
from cadloc.scene_models import load_scene_model

SIFT = SiftFeatures(keypoints=800, ratio=0.8)
CONFIGS: dict[str, MatcherConfig] = {"sift": SIFT, "encoder": EncoderFeatures()}


@pytest.fixture(params=CONFIGS)
def matcher(request: pytest.FixtureRequest) -> Matcher:
    """Every built-in matcher."""
    return build(CONFIGS[request.param], SmallEncoder())


def collage(seed: int, width: int = 480, height: int = 320) -> NDArray[np.uint8]:
    """Many random rectangles of random grey on grey: corners of all sizes, none like another."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128, np.uint8)
    for _ in range(160):
        u, v = rng.uniform((-20, -20), (width, height))
        w, h = rng.uniform(8, 90, size=2)
        corner, opposite = (int(u), int(v)), (int(u + w), int(v + h))
        cv2.rectangle(image, corner, opposite, rng.integers(0, 256, 3).tolist(), -1)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 0.8), np.uint8)


def moved(image: NDArray[np.uint8], right_px: int, down_px: int) -> NDArray[np.uint8]:
    """The image's content moved, what comes in is what lay on the other side."""
    return np.roll(image, (down_px, right_px), axis=(0, 1))


@pytest.mark.parametrize("shift_px", [(16, 8), (11, -5)])
def test_matches_follow_a_shift(matcher: Matcher, shift_px: tuple[int, int]) -> None:
    """Of an image and itself moved, the matches are displaced by that motion, between cells too: within 1 px."""
    query = collage(1)
    matches = matcher.match(matcher.describe(query), matcher.describe(moved(query, *shift_px)))
    displacements = matches.render_pixels - matches.query_pixels
    assert len(matches) > 100
    np.testing.assert_allclose(np.median(displacements, axis=0), shift_px, atol=1.0)
    assert np.mean(np.linalg.norm(displacements - shift_px, axis=1) < 4) > 0.8


def test_sift_places_the_first_pixel_s_centre_at_one_half() -> None:
    """In an image of twice the size, every pixel position doubles: no half pixel is lost on the way."""
    matcher = build(SIFT, SmallEncoder())
    small = collage(2)
    large = np.asarray(cv2.resize(small, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR), np.uint8)
    matches = matcher.match(matcher.describe(small), matcher.describe(large))
    assert len(matches) > 100
    np.testing.assert_allclose(np.median(matches.render_pixels - 2 * matches.query_pixels, axis=0), 0, atol=0.15)


def test_upright_descriptors_do_not_turn() -> None:
    """An image turned by 90 degrees matches itself with orientations, and does not without them."""
    turned = np.ascontiguousarray(np.rot90(collage(3)))
    counts = []
    for upright in (False, True):
        matcher = build(SIFT.model_copy(update={"upright": upright}), SmallEncoder())
        counts.append(len(matcher.match(matcher.describe(collage(3)), matcher.describe(turned))))
    assert counts[0] > 100
    assert counts[1] < 0.2 * counts[0]


def test_a_reach_bounds_the_matches(matcher: Matcher) -> None:
    """With `near_px`, no match reaches farther than that, for a short side of 480 px."""
    query, render = matcher.describe(collage(4)), matcher.describe(moved(collage(4), 40, 0))
    near = matcher.match(query, render, near_px=24.0)
    within_cell_px = 4 * np.sqrt(2) if isinstance(matcher, DenseMatcher) else 0
    reach_px = np.linalg.norm(near.render_pixels - near.query_pixels, axis=1).max(initial=0)
    assert reach_px <= 24 * 320 / 480 + within_cell_px
    wide = matcher.match(query, render, near_px=90.0)
    displacements = wide.render_pixels - wide.query_pixels
    np.testing.assert_allclose(np.median(displacements, axis=0), (40, 0), atol=0.8)


def test_features_lie_where_depth_is_known(matcher: Matcher) -> None:
    """A mask keeps features out of what it excludes, and keeps those within it."""
    known = np.zeros((320, 480), bool)
    known[80:240, 100:300] = True
    column, row = np.floor(matcher.describe(collage(5), known).pixels).astype(int).T
    assert len(row) > 50
    assert known[row, column].all()


def test_a_blank_image_has_no_matches_by_key_points() -> None:
    """Nothing to see is an empty answer, not an error."""
    matcher = build(SIFT, SmallEncoder())
    blank = matcher.describe(np.full((120, 160, 3), 200, np.uint8))
    assert len(matcher.match(blank, matcher.describe(collage(6)))) == 0


def test_mutual_nearest_agrees_with_the_definition() -> None:
    """Every returned pair is the largest of its row and column, and every such pair is returned."""
    cosines = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (40, 30)).astype(np.float32))
    rows, columns = mutual_nearest(cosines, least=0.2)
    expected = {
        (i, j)
        for i in range(40)
        for j in range(30)
        if cosines[i, j] == cosines[i].max() == cosines[:, j].max() and cosines[i, j] >= 0.2
    }
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == expected


def test_the_ratio_test_drops_what_has_a_rival() -> None:
    """A descriptor as near to two others is matched with neither; one with a single neighbour is kept."""
    cosines = torch.tensor([[0.99, 0.1, 0.1], [0.1, 0.9, 0.9], [0.1, 0.2, 0.2]])
    rows, columns = ratio_tested(cosines, 0.8)
    assert (rows.tolist(), columns.tolist()) == ([0], [0])


def test_retrieval_finds_the_same_place(matcher: Matcher) -> None:
    """An image moved a little is nearest to the image it was made from, among others; twice the same."""
    described = [matcher.describe(collage(seed)) for seed in range(6)]
    vocabulary = Vocabulary.learned(np.concatenate([features.descriptors for features in described]))
    database = [vocabulary.describe(features) for features in described]
    for seed in range(6):
        query = vocabulary.describe(matcher.describe(moved(collage(seed), 16, 8)))
        assert nearest_first(query, database)[0] == seed
    again = Vocabulary.learned(np.concatenate([features.descriptors for features in described]))
    np.testing.assert_array_equal(again.describe(described[0]), database[0])


def test_the_database_lifts_matches_to_what_they_see(matcher: Matcher, tmp_path: Path) -> None:
    """Points matched with a view of a tilted plane lie on it, and project onto the query's pixels at its true pose."""
    K = pinhole(480, 320, 60.0)
    poses = {"near": look_at((0, -10, 1), (0, 0, 0)), "far": look_at((1, -10, 1.5), (0, 0, 0))}
    texture = collage(7, 960, 640)
    images = {name: _plane(texture, pose, K, tmp_path / "scene", name) for name, pose in poses.items()}
    write_card(tmp_path / "scene", {"depth_step_m": 0.001})
    database = Database(Dataset.open(tmp_path / "scene").views("mapping"), matcher, matcher)
    query = matcher.describe(images["far"])
    order = database.retrieve(query, 5)
    assert sorted(order) == [0, 1]
    pixels, points = database.correspondences(query, 1)
    np.testing.assert_allclose(points[:, 1], 0, atol=0.002)
    error_px = np.linalg.norm(project(transform_points(inverse(poses["far"]), points), K) - pixels, axis=1)
    assert len(pixels) > 100
    assert np.median(error_px) < 2.5


def _plane(texture: NDArray[np.uint8], cad_from_cam: NDArray, K: NDArray, folder: Path, name: str) -> NDArray[np.uint8]:  # type: ignore[type-arg]
    """Writes and returns a view of the textured wall y = 0, 12 m wide and 8 m high."""
    corners = np.array([[-6, 0, 4], [6, 0, 4], [6, 0, -4], [-6, 0, -4]], np.float64)
    seen = project(transform_points(inverse(cad_from_cam), corners), K)
    height, width = texture.shape[:2]
    edges = np.array([[0, 0], [width, 0], [width, height], [0, height]])
    # OpenCV's first pixel has its centre at (0, 0).
    warp = cv2.getPerspectiveTransform((edges - 0.5).astype(np.float32), (seen - 0.5).astype(np.float32))
    image = np.asarray(cv2.warpPerspective(texture, warp, (480, 320)), np.uint8)
    u, v = np.meshgrid(np.arange(480) + 0.5, np.arange(320) + 0.5)
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T
    depth_m = -cad_from_cam[1, 3] / (rays @ cad_from_cam[1, :3])
    arguments = {"image": image, "depth_m": depth_m, "cad_from_cam": cad_from_cam, "intrinsics": K, "step_m": 0.001}
    write_view(folder, "mapping", name, **arguments)
    return image


@pytest.fixture(scope="module")
def gate() -> CadModel:
    """A built-in scene."""
    return load_scene_model(SceneConfig(name="gate", built_in=True), "synthetic")


def test_refinement_brings_the_pose_closer(gate: CadModel, tmp_path: Path) -> None:
    """Matched with renders from elsewhere a query is found roughly; with renders at the estimate, several times better.

    And the same again gives the same bits.
    """
    K, size, middle = pinhole(320, 240, 60.0), (320, 240), gate.bounds.mean(axis=0)
    away_m = 0.4 * np.linalg.norm(gate.bounds[1] - gate.bounds[0])
    for i, azimuth in enumerate(np.deg2rad([-115, -100, -80, -65])):
        eye = middle + away_m * np.array([np.cos(azimuth), np.sin(azimuth), 0.1])
        pose = look_at(eye, middle)
        render = process_renderer("gl").render(gate, pose, K, *size, Light(), colour_samples=4)
        depth = depth_m(render, pose)
        arguments = {"image": render.image, "depth_m": depth, "cad_from_cam": pose, "intrinsics": K, "step_m": 0.01}
        write_view(tmp_path / "scene", "mapping", f"view_{i}", **arguments)
    write_card(tmp_path / "scene", {"depth_step_m": 0.01})
    true = look_at(middle + away_m * np.array([0.05, -0.97, 0.02]), middle + 0.5)
    query = process_renderer("gl").render(gate, true, K, *size, Light(), colour_samples=4).image

    def found(refinements: int) -> NDArray[np.float64]:
        matching = MatchingConfig(refinements=refinements, max_iterations=3000)
        scene = SceneConfig(name="gate", built_in=True)
        config = TrialConfig(scene=scene, trainable="render_and_match", matching=matching)
        database = Database.of(config, Dataset.open(tmp_path / "scene").views("mapping"))
        answer = Localizer(config, database, gate, process_renderer("gl")).localize(query, K)
        assert answer.estimate.cad_from_cam is not None
        return answer.estimate.cad_from_cam

    rough, refined = found(0), found(2)
    assert translation_error_m(rough, true) < 0.05 * away_m
    assert translation_error_m(refined, true) < 0.3 * translation_error_m(rough, true)
    np.testing.assert_array_equal(found(2), refined)


PLUGIN = """\
import numpy as np

def corners(query, render, count=4):
    return np.full((count, 2), 10.5), np.full((count, 2), 30.5)

def broken(query, render):
    return np.zeros((4, 2)), np.zeros((3, 2))
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that brings two matchers."""
    (tmp_path / "a_matcher.py").write_text(PLUGIN)
    info = tmp_path / "a_matcher-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-matcher\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[cadloc.matchers]\ncorners = a_matcher:corners\nbroken = a_matcher:broken\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("plugins")
def test_an_installed_matcher_is_asked() -> None:
    """A plug-in gets both images and its settings; its pixels come back, those out of reach left out."""
    matcher = build(PluginFeatures(entry_point="corners", settings={"count": 7}), SmallEncoder())
    query, render = matcher.describe(collage(8)), matcher.describe(collage(9))
    matches = matcher.match(query, render)
    assert len(matches) == 7
    assert matches.query_pixels[0].tolist() == [10.5, 10.5]
    assert matches.render_pixels[0].tolist() == [30.5, 30.5]
    assert len(matcher.match(query, render, near_px=24.0)) == 0


@pytest.mark.usefixtures("plugins")
def test_a_matcher_that_answers_nonsense_is_named() -> None:
    """Arrays that do not pair up are a fault of that plug-in."""
    matcher = build(PluginFeatures(entry_point="broken"), SmallEncoder())
    image = matcher.describe(collage(8))
    with pytest.raises(InputError, match=r"broken: .*\(4, 2\), \(3, 2\)"):
        matcher.match(image, image)


@pytest.mark.usefixtures("plugins")
def test_a_matcher_that_is_not_installed_is_named() -> None:
    """The fault says which matchers there are."""
    with pytest.raises(InputError, match=r"'lightglue'; allowed: .*cadloc\.matchers: broken, corners"):
        build(PluginFeatures(entry_point="lightglue"), SmallEncoder())
