"""Global features: pooling by definition, for one encoder alone, the stage, plug-ins, and training that learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cadloc import global_features
from cadloc.config import DenseHog, EncoderConfig, SmallEncoder
from cadloc.contract import Fault, InputError
from cadloc.datasets.ace_layout import Dataset, Split, write_card, write_view
from cadloc.encoders import build
from cadloc.encoders.global_gem import DIMENSIONS, SHIPPED, SHRINKAGE, GlobalGem
from cadloc.geometry import pinhole, rigid
from cadloc.global_config import GemFeatures, GlobalFeaturesConfig, GlobalPlugin, GlobalPretrainingConfig, misfit
from cadloc.global_features import GlobalFeatures, open_describer, retrieve
from cadloc.pretraining_global import contrast, gem_vectors, pretrain_global, train
from cadloc.pretraining_global_views import EncodedViews, Retrieval, covisibility, mean_pooled, recall_at_1
from cadloc.pretraining_pairs import PooledBuilding

WIDTH, HEIGHT = 96, 64
HOG = DenseHog()
PCA = GemFeatures(weights="pca")


def cells(seed: int, count: int = 30, channels: int = 5) -> NDArray[np.float32]:
    """Features (count, channels) of both signs."""
    return np.random.default_rng(seed).normal(size=(count, channels)).astype(np.float32)


# --- pooling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 3.0, 6.5])
def test_pooling_is_the_generalised_mean(power: float) -> None:
    """Pooled are (mean of x ** p) ** (1 / p) of what the layer leaves positive, at unit length."""
    gem = GlobalGem.initialised(5, 7, seed=1).requires_grad_(False)
    gem.power.fill_(power)
    x = cells(0).astype(np.float64)
    lifted = np.maximum(x @ gem.lift.weight.numpy().T, 1e-4)
    means = np.mean(lifted**power, axis=0) ** (1 / power)
    np.testing.assert_allclose(gem.pooled(cells(0)), means / np.linalg.norm(means), rtol=2e-4)


def test_untrained_pooling_keeps_the_sign_and_forgets_the_strength() -> None:
    """Negated features swap the halves of what is pooled; stronger ones, however strong, change nothing."""
    gem, x = GlobalGem.untrained(5), cells(1)
    positive, negative = np.split(gem.pooled(x), 2)
    np.testing.assert_allclose(gem.pooled(-x), np.concatenate([negative, positive]), rtol=1e-5)
    np.testing.assert_allclose(gem.pooled(1e15 * x), gem.pooled(x), rtol=1e-3)


def test_whitened_components_are_uncorrelated_with_shrunk_variances() -> None:
    """On the images it is fitted on, the covariance of the projection is diagonal: v / (v + the mean of v)."""
    gem, pooled = GlobalGem.untrained(4), cells(2, 500, 8) * np.arange(1, 9, dtype=np.float32)
    gem.whiten(pooled)
    values = np.linalg.eigvalsh(np.cov(pooled.T, bias=True))[::-1]
    covariance = np.cov((pooled @ gem.projection.weight.numpy().T + gem.projection.bias.numpy())[:, :8].T, bias=True)
    np.testing.assert_allclose(covariance, np.diag(values / (values + SHRINKAGE * values.mean())), atol=1e-4)


def test_few_images_leave_numbers_at_zero_and_equal_ones_are_refused() -> None:
    """Three images span two components; of images that do not differ nothing can be learned."""
    gem, pooled = GlobalGem.untrained(4), cells(3, 3, 8)
    gem.whiten(pooled)
    vectors = np.stack([gem.projected(vector) for vector in pooled])
    assert np.abs(vectors[:, :2]).min(axis=0).max() > 0
    assert not vectors[:, 2:].any()
    with pytest.raises(ValueError, match="do not differ"):
        gem.whiten(np.ones((3, 8), np.float32))


def test_weights_serve_the_encoder_they_were_made_for(tmp_path: Path) -> None:
    """What was saved describes as before, bit for bit; under another encoder it is refused, as a damaged file is."""
    encoder = build(SmallEncoder(weights="random"))
    gem = GlobalGem.initialised(encoder.dimensions, 8, seed=3)
    path = tmp_path / "global.safetensors"
    gem.save(path, encoder, {})
    x = cells(4, 12, encoder.dimensions)
    np.testing.assert_array_equal(GlobalGem.from_file(path, encoder).describe(x), gem.describe(x))
    with pytest.raises(InputError, match=r"not of this one .*weights: pca"):
        GlobalGem.from_file(path, build(SmallEncoder(weights="random", seed=1)))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"global_features\.weights: found SafetensorError"):
        GlobalGem.from_file(path, encoder)


def test_the_shipped_weights_are_those_of_the_shipped_encoder() -> None:
    """They load with it, and settings that pair them with another are told why not."""
    assert GlobalGem.from_file(SHIPPED, build(SmallEncoder())).describe(cells(5, 6, 128)).shape == (DIMENSIONS,)
    small = SmallEncoder().model_dump()
    assert misfit(GemFeatures(), small, tuned=False) is None
    assert misfit(PCA, HOG.model_dump(), tuned=True) is None
    assert "fine-tuned" in str(misfit(GemFeatures(), small, tuned=True))
    assert "dense-hog" in str(misfit(GemFeatures(), HOG.model_dump(), tuned=False))


# --- the stage --------------------------------------------------------------------------------------------


def picture(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """52 mapping views, two chunks of them, and 3 queries that show what the mapping views 50, 7 and 21 show."""
    directory = tmp_path_factory.mktemp("pictures")
    shown: dict[Split, tuple[int, ...]] = {"mapping": tuple(range(52)), "query": (50, 7, 21)}
    for split, seeds in shown.items():
        for number, seed in enumerate(seeds):
            write_view(
                directory, split, f"{split}_{number:06d}", image=picture(seed),
                depth_m=np.full((HEIGHT, WIDTH), 5.0), cad_from_cam=np.eye(4),
                intrinsics=pinhole(WIDTH, HEIGHT, 60), step_m=0.001,
            )  # fmt: skip
    write_card(directory, {"depth_step_m": 0.001})
    return directory


def made(
    directory: Path,
    inputs: dict[str, Path],
    split: Split = "mapping",
    features: GlobalFeaturesConfig = PCA,
    encoder: EncoderConfig = HOG,
    backwards: bool = False,
) -> GlobalFeatures:
    directory.mkdir(exist_ok=True)
    config = {
        "encoder": encoder.model_dump(mode="json"),
        "global_features": features.model_dump(mode="json"),
        "split": split,
    }
    order = range(global_features.chunks(config, inputs))
    for chunk in reversed(order) if backwards else order:
        global_features.build_chunk(config, inputs, directory, chunk)
    global_features.finish(config, inputs, directory)
    return GlobalFeatures.open(directory)


@pytest.fixture(scope="module")
def mapping(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished stage of the mapping views, by pca."""
    directory = tmp_path_factory.mktemp("mapping")
    made(directory, {"views": dataset})
    return directory


def test_a_query_finds_the_view_that_shows_the_same(dataset: Path, mapping: Path, tmp_path: Path) -> None:
    """Queries are projected as the mapping views were: an image that is among those is found there, at cosine 1."""
    known = GlobalFeatures.open(mapping)
    queries = made(tmp_path, {"views": dataset, "mapping": mapping}, "query")
    assert len(known) == 52
    np.testing.assert_allclose(np.linalg.norm(known.vectors, axis=1), 1, rtol=1e-5)
    assert [retrieve(vector, known.vectors, 1).tolist() for vector in queries.vectors] == [[50], [7], [21]]
    np.testing.assert_array_equal(queries.vectors, known.vectors[[50, 7, 21]])


def test_who_makes_which_chunk_changes_nothing(dataset: Path, mapping: Path, tmp_path: Path) -> None:
    """Chunks in another order give the same bits."""
    again = made(tmp_path, {"views": dataset}, backwards=True)
    np.testing.assert_array_equal(again.vectors, GlobalFeatures.open(mapping).vectors)


def test_an_image_alone_is_described_as_in_the_stage(dataset: Path, mapping: Path) -> None:
    """What the stage leaves describes a photograph later, bit for bit as it described the views."""
    describer = open_describer(PCA, build(HOG), mapping)
    np.testing.assert_array_equal(
        describer.describe(Dataset.open(dataset).views("mapping")[7].read_image()),
        GlobalFeatures.open(mapping).vectors[7],
    )


def test_nothing_takes_the_place_of_what_is_not_there(dataset: Path, tmp_path: Path) -> None:
    """Queries by pca need the mapping views' stage; shipped weights are refused for an encoder that is not theirs."""
    with pytest.raises(ValueError, match="take those of the mapping views"):
        made(tmp_path / "a", {"views": dataset}, "query")
    with pytest.raises(InputError, match="not of this one"):
        made(tmp_path / "b", {"views": dataset}, features=GemFeatures())


def test_retrieval_is_by_cosine_and_ties_keep_their_order() -> None:
    """Nearest first, no more than there are."""
    mapping = np.array([[0, 1], [1, 0], [0.6, 0.8], [1, 0]], np.float32)
    query = np.array([1, 0], np.float32)
    assert retrieve(query, mapping, 3).tolist() == [1, 3, 2]
    assert retrieve(query, mapping, 9).tolist() == [1, 3, 2, 0]


# --- plug-ins ---------------------------------------------------------------------------------------------

PLUGIN = """\
import numpy as np

def colours(image, power=1):
    return image.mean(axis=(0, 1)) ** power

def broken(image):
    return np.zeros(3)
"""


@pytest.fixture
def _plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that brings two models."""
    (tmp_path / "a_model.py").write_text(PLUGIN)
    info = tmp_path / "a_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-model\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[cadloc.global_features]\ncolours = a_model:colours\nbroken = a_model:broken\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("_plugins")
def test_an_installed_model_is_asked(dataset: Path, tmp_path: Path) -> None:
    """A plug-in gets the image and its settings; its vectors, of its own length, are stored at unit length."""
    plugin = GlobalPlugin(entry_point="colours", settings={"power": 2})
    found = made(tmp_path / "stage", {"views": dataset}, "query", plugin)
    expected = Dataset.open(dataset).views("query")[1].read_image().mean(axis=(0, 1)) ** 2
    np.testing.assert_allclose(found.vectors[1], expected / np.linalg.norm(expected), rtol=1e-6)


@pytest.mark.usefixtures("_plugins")
@pytest.mark.parametrize(
    ("name", "message"),
    [("broken", r"broken: .*length 0"), ("r2former", r"'r2former'; allowed: .*cadloc\.global_features: broken, col")],
)
def test_a_model_that_cannot_be_used_is_named(name: str, message: str) -> None:
    """One that answers nonsense, and one that is not installed, with those that are."""
    with pytest.raises(InputError, match=message):
        open_describer(GlobalPlugin(entry_point=name), build(HOG), Path()).describe(picture(0))


# --- training ---------------------------------------------------------------------------------------------


def wall(seed: int) -> PooledBuilding:
    """Three views of a noisy wall from 8 m: one, one moved by a quarter of what it sees, one beside both."""
    K = pinhole(WIDTH, HEIGHT, 60)
    seen_m = WIDTH / K[0, 0] * 8
    generator = np.random.default_rng(seed)
    texture = generator.integers(0, 256, (HEIGHT // 8, 4 * WIDTH // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    shifts = (0, WIDTH // 4, 2 * WIDTH)
    images = np.stack([texture[:, shift : shift + WIDTH] for shift in shifts])
    poses = np.stack([rigid(np.eye(3), [shift / WIDTH * seen_m, 0, -8]) for shift in shifts])
    depths_m = np.full((3, HEIGHT, WIDTH), 8, np.float16)
    return PooledBuilding(images, depths_m, poses, np.stack([K] * 3), np.array([0, 0, 1]), np.array([[0, 1]]))


def test_covisibility_is_the_share_of_common_surface() -> None:
    """Before a plane it is what overlaps: all with itself, three quarters when moved by a quarter, else nothing."""
    np.testing.assert_allclose(covisibility(wall(0)), [[1, 0.75, 0], [0.75, 1, 0], [0, 0, 1]], atol=0.05)


def test_contrast_is_its_definition() -> None:
    """The loss equals the sum written out; what has something in common but is not the pair counts for nothing."""
    generator = np.random.default_rng(0)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in generator.normal(size=(2, 4, 6)))
    common = np.where(generator.random((4, 4)) < 0.3, 0.2, 0.0)
    total = 0.0
    for i in range(4):
        for row, others, held in ((a[i], b, common[i]), (b[i], a, common[:, i])):
            counted = [j for j in range(4) if j == i or held[j] <= 0.05]
            likeness = np.exp([row @ others[j] / 0.1 for j in counted])
            total -= np.log(np.exp(row @ others[i] / 0.1) / likeness.sum()) / 8
    loss = contrast(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(common), 0.1)
    assert loss.item() == pytest.approx(total)


def test_recall_counts_what_can_be_found() -> None:
    """A query without a right view does not count; what is not allowed is not found, however like."""
    likeness = np.array([[0.9, 0.8, 0.1], [0.9, 0.8, 0.1], [0.5, 0.6, 0.7]], np.float32)
    allowed = np.array([[False, True, True], [True, True, True], [True, True, True]])
    right = np.array([[True, True, False], [False, True, False], [False, False, False]])
    assert recall_at_1(likeness, allowed, right) == 0.5


def made_up_views(seed: int, places: int) -> EncodedViews:
    """Two views of each place: half of the channels show what is its own, half what is the view's, and stronger."""
    generator = np.random.default_rng(seed)
    own = np.broadcast_to(generator.normal(size=(places, 1, 1, 4)), (places, 2, 8, 4))
    passing = np.broadcast_to(3 * generator.normal(size=(places, 2, 1, 4)), (places, 2, 8, 4))
    features = np.concatenate([own, passing], axis=-1) + 0.3 * generator.normal(size=(places, 2, 8, 8))
    pair = np.kron(np.eye(places, dtype=np.float32), np.ones((2, 2), np.float32))
    return EncodedViews(features.reshape(2 * places, 8, 8).astype(np.float16), pair, np.zeros(2 * places, int))


def test_training_finds_what_views_have_in_common() -> None:
    """On places it has not seen, the trained pooling finds the other view more often than mean pooling does."""
    config = GlobalPretrainingConfig(steps=60, pairs=48, cells=4, hidden=32, learning_rate=3e-2, warm_up=5)
    views = made_up_views(0, 200)
    gem, _ = train(views, config)
    unseen = made_up_views(1, 20)
    kind = "same_appearance"
    retrieval = Retrieval(unseen, unseen.cells[:0], 0.3)
    trained, mean = (retrieval.recall(describe)[kind] for describe in (gem_vectors(gem), mean_pooled))
    assert trained > mean + 0.3


def test_a_run_is_a_function_of_its_seed() -> None:
    """The same settings give the same bits, another seed others."""
    config = GlobalPretrainingConfig(steps=3, pairs=8, cells=8, hidden=8)
    views = made_up_views(0, 20)
    first, again, other = (train(views, config.model_copy(update={"seed": seed}))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.projection.weight, again.projection.weight)
    assert not torch.equal(first.projection.weight, other.projection.weight)


def pooled_walls(directory: Path) -> Path:
    """A run's folder whose pool is made already: three walls, and photographs that equal the last one."""
    for number, name in enumerate(("building_0000", "building_0001", "building_0002", "photographs_0002")):
        place = directory / "pool" / name
        place.mkdir(parents=True)
        wall(min(number, 2)).save(place)
    return directory


WALLS: dict[str, Any] = {
    "pool": {"buildings": 3, "held_out": 1},
    "steps": 2,
    "hidden": 8,
    "kept_cells": 20,
    "cells": 10,
}


def test_a_run_leaves_weights_that_can_be_used(tmp_path: Path) -> None:
    """Weights, card and history are in the folder; a run with another pool is refused there."""
    directory = pooled_walls(tmp_path / "run")
    card = pretrain_global(GlobalPretrainingConfig.model_validate(WALLS), HOG, directory)
    gem = GlobalGem.from_file(directory / "dense-hog_global.safetensors", build(HOG))
    assert gem.lift.weight.shape == (8, build(HOG).dimensions)
    assert set(card["recall_at_1"]["trained"]) == {"same_appearance", "across_appearance", "photo"}
    assert len((directory / "global_history.csv").read_text().splitlines()) == 3
    other = GlobalPretrainingConfig.model_validate({**WALLS, "pool": {"buildings": 4, "held_out": 1}})
    with pytest.raises(InputError, match="the same pool"):
        pretrain_global(other, HOG, directory)


def test_a_pool_without_common_surface_is_refused() -> None:
    """Views that share nothing teach nothing: the fault names the setting."""
    lonely = EncodedViews(np.zeros((3, 4, 2), np.float16), np.eye(3, dtype=np.float32), np.zeros(3, int))
    with pytest.raises(InputError) as error:
        train(lonely, GlobalPretrainingConfig())
    assert isinstance(error.value.faults[0], Fault)
    assert error.value.faults[0].key == "pool.views_per_target"
