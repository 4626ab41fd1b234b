"""Which photos teach, which decide, which test: by files of names, by what the source says, or by lot."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from cadloc.contract import Fault, InputError
from cadloc.datasets.ace_layout import Split
from cadloc.datasets.reconstruction import Reconstruction
from cadloc.scene_config import SplitsConfig

SPLITS: tuple[Split, ...] = ("mapping", "validation", "query")


def assign_splits(reconstruction: Reconstruction, splits: SplitsConfig) -> dict[str, Split]:
    """The split of every photo that is used, by name, sorted: the same whatever the photos' order.

    * query: the file's photos; else those that the source says; else a seeded share of those that no file names.
    * validation: the file's; else those that the source says; else a seeded share of the mapping photos, one of two
      at least, never all.
    * mapping: the file's; else every other photo. With a `mapping` file, photos that nobody names are left out.

    Names in files may lack their suffix. Raises InputError with all faults: files that cannot be read, names that
    are unknown or in two files, a split without a photo.
    """
    faults: list[Fault] = []
    named = _named(reconstruction, splits, faults)
    if faults:
        raise InputError(faults)
    names = sorted(photo.name for photo in reconstruction.photos)
    query = named.get("query", _query(reconstruction, splits, named))
    free = [name for name in names if name not in query and name not in named.get("validation", ())]
    mapping = named.get("mapping", frozenset(free))
    validation = named.get("validation", _validation(reconstruction, splits, mapping))
    chosen: dict[Split, frozenset[str]] = {
        "mapping": mapping - validation,
        "validation": validation,
        "query": query,
    }
    for split in SPLITS:
        if not chosen[split]:
            found = f"no {split} photo among {len(names)}"
            faults.append(Fault(str(reconstruction.source), f"photos.splits.{split}", found, "one photo at least"))
    if faults:
        raise InputError(faults)
    return {name: split for name in names for split in SPLITS if name in chosen[split]}


def _query(reconstruction: Reconstruction, splits: SplitsConfig, named: dict[Split, frozenset[str]]) -> frozenset[str]:
    taken = frozenset[str]().union(*named.values())
    stated = _stated(reconstruction, "query") - taken
    free = [photo.name for photo in reconstruction.photos if photo.name not in taken]
    return stated or _share(free, splits.query_share, splits.seed, "query", all_but=0 if "mapping" in named else 2)


def _validation(reconstruction: Reconstruction, splits: SplitsConfig, mapping: frozenset[str]) -> frozenset[str]:
    stated = _stated(reconstruction, "validation") & mapping
    if stated and stated != mapping:
        return stated
    return _share(mapping, splits.validation_share, splits.seed, "validation", all_but=1)


def _stated(reconstruction: Reconstruction, split: Split) -> frozenset[str]:
    return frozenset(photo.name for photo in reconstruction.photos if photo.split == split)


def _share(names: Iterable[str], share: float, seed: int, role: str, *, all_but: int) -> frozenset[str]:
    """A share of the names, one at least and `all_but` at most, drawn by each name's own lot: no order matters."""
    by_lot = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{role}:{name}".encode()).digest())
    count = min(max(round(share * len(by_lot)), 1), len(by_lot) - all_but)
    return frozenset(by_lot[: max(count, 0)])


def _named(reconstruction: Reconstruction, splits: SplitsConfig, faults: list[Fault]) -> dict[Split, frozenset[str]]:
    """The photos named by each split's file, for the splits that have one."""
    lookup = _lookup(photo.name for photo in reconstruction.photos)
    owners: dict[str, tuple[Split, str]] = {}
    named: dict[Split, frozenset[str]] = {}
    for split in SPLITS:
        file = getattr(splits, split)
        if file is not None:
            named[split] = frozenset(_read_names(Path(file), split, lookup, owners, faults))
    return named


def _lookup(names: Iterable[str]) -> dict[str, str | None]:
    """Full names by what a file may call them: themselves, or without suffix; None where that fits several."""
    full = list(names)
    short: dict[str, str | None] = {}
    for name in full:
        stem = str(PurePosixPath(name).with_suffix(""))
        short[stem] = None if stem in short else name
    return {**short, **{name: name for name in full}}


def _read_names(
    file: Path,
    split: Split,
    lookup: dict[str, str | None],
    owners: dict[str, tuple[Split, str]],
    faults: list[Fault],
) -> list[str]:
    key = f"photos.splits.{split}"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        faults.append(Fault(str(file), key, f"no readable text ({error})", "a text file, one photo name per line"))
        return []
    names = []
    for number, line in enumerate(lines, start=1):
        word = line.strip()
        if not word or word.startswith("#"):
            continue
        name = lookup.get(word)
        if name is None:
            found = f"'{word}', which fits several photos" if word in lookup else f"'{word}', no photo's name"
            faults.append(Fault(str(file), key, found, "the names of posed photos", line=number))
        elif owners.setdefault(name, (split, str(file)))[0] != split:
            found = f"'{word}', which is in {owners[name][1]} too"
            faults.append(Fault(str(file), key, found, "each photo in one split", line=number))
        else:
            names.append(name)
    return names
