"""Splits: disjoint, none missing, by file, by source or by lot, and whatever the photos' order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadloc.contract import InputError
from cadloc.datasets.reconstruction import Camera, Photo, Reconstruction
from cadloc.datasets.splitting import assign_splits
from cadloc.scene_config import SplitsConfig


def named(count: int, stated: Sequence[str | None] = (None,)) -> Reconstruction:
    """Photos of names only."""
    camera = Camera("PINHOLE", 4, 4, (1.0, 1.0, 2.0, 2.0))
    names = [f"d/{index:03d}.jpg" for index in range(count)]
    photos = [
        Photo(name, Path(name), camera, np.eye(4), stated[index % len(stated)])  # type: ignore[arg-type]
        for index, name in enumerate(names)
    ]
    return Reconstruction(Path("made"), tuple(photos))


@given(
    count=st.integers(3, 60),
    query_share=st.floats(0.01, 0.99),
    validation_share=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
    stated=st.lists(st.sampled_from([None, "mapping", "query", "validation"]), min_size=1, max_size=5),
)
def test_splits_are_disjoint_and_need_no_order(
    count: int, query_share: float, validation_share: float, seed: int, stated: list[str | None]
) -> None:
    """Each photo is in one split, none of the needed is empty, and the photos' order decides nothing."""
    splits = SplitsConfig(query_share=query_share, validation_share=validation_share, seed=seed)
    made = named(count, stated)
    try:
        chosen = assign_splits(made, splits)
    except InputError:
        assert sum(photo.split != "query" for photo in made.photos) < 2
        return
    assert list(chosen) == [photo.name for photo in made.photos]
    assert {"mapping", "validation", "query"} == set(chosen.values())
    assert assign_splits(replace(made, photos=made.photos[::-1]), splits) == chosen
    for photo in made.photos:
        assert photo.split != "query" or chosen[photo.name] == "query"


def test_shares_are_those_asked_for() -> None:
    """Of a hundred photos 30 ask and a fifth of the rest decides; another seed draws others, as many."""
    draws = [assign_splits(named(100), SplitsConfig(seed=seed)) for seed in range(2)]
    for draw in draws:
        counts = {split: list(draw.values()).count(split) for split in ("mapping", "validation", "query")}
        assert counts == {"mapping": 56, "validation": 14, "query": 30}
    assert draws[0] != draws[1]


def test_files_win_over_what_the_source_says(tmp_path: Path) -> None:
    """Photos are what the files call them, suffix or not; with a mapping file the unnamed are left out."""
    files = {"mapping": "d/000\nd/001.jpg\n\n# none\nd/005\n", "query": "d/002.jpg", "validation": "d/003"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    given_all = SplitsConfig(**{name: str(tmp_path / name) for name in files})
    expected = {"mapping": ["000", "001", "005"], "query": ["002"], "validation": ["003"]}
    chosen = assign_splits(named(7, ["query"]), given_all)
    assert chosen == {f"d/{n}.jpg": split for split, names in expected.items() for n in names}
    chosen = assign_splits(named(7), SplitsConfig(query=str(tmp_path / "query")))
    assert [name for name, split in chosen.items() if split == "query"] == ["d/002.jpg"]
    assert len(chosen) == 7


def test_split_files_defects_are_told(tmp_path: Path) -> None:
    """A name in two files, a name nobody has, a file that is none: every one with its file and line."""
    (tmp_path / "mapping").write_text("d/000.jpg\nd/001.jpg\n")
    (tmp_path / "query").write_text("d/001\nd/9.jpg\n")
    splits = SplitsConfig(
        mapping=str(tmp_path / "mapping"), query=str(tmp_path / "query"), validation=str(tmp_path / "nothing")
    )
    with pytest.raises(InputError) as refused:
        assign_splits(named(4), splits)
    told = str(refused.value)
    assert f"{tmp_path / 'query'}:1" in told
    assert f"{tmp_path / 'query'}:2: photos.splits.query: found 'd/9.jpg'" in told
    assert "nothing: photos.splits.validation" in told


def test_a_split_that_would_be_empty_is_told() -> None:
    """Photos that are all queries leave nothing to learn from; one photo alone cannot be both."""
    for made in (named(4, ["query"]), named(1)):
        with pytest.raises(InputError, match=r"no (mapping|query) photo"):
            assign_splits(made, SplitsConfig())
