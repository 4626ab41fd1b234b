"""Statues: people and horses, in frames of their own (feet on z = 0, looking to -y, metres)."""

from __future__ import annotations

import numpy as np

from cadloc.scenes.solids import (
    Part,
    beam,
    ellipsoid,
    surface,
    turned,
)


def figure(height_m: float, rng: np.random.Generator, *, material: str = "metal") -> Part:
    """A statue of a standing person: robe, head, arms in a pose of their own, perhaps a staff."""
    unit = height_m / 1.8
    robe = turned(
        material,
        np.array([(0.30, 0.0), (0.26, 0.5), (0.20, 0.95), (0.27, 1.35), (0.09, 1.5), (0.08, 1.56)]) * unit,
        8,
    )
    head = ellipsoid(material, (0.11 * unit, 0.12 * unit, 0.15 * unit), (0.0, 0.0, 1.66 * unit), 6)
    hands = [
        np.array([side * rng.uniform(0.25, 0.6), rng.uniform(-0.5, 0.0), rng.uniform(0.8, 1.9)]) for side in (-1, 1)
    ]
    arms = [
        beam(np.array([side * 0.24, 0.0, 1.33]) * unit, hand * unit, 0.12 * unit)
        for side, hand in zip((-1, 1), hands, strict=True)
    ]
    staff = (
        [
            beam(
                [hands[1][0] * unit, hands[1][1] * unit, 0.0],
                hands[1] * unit + [0.0, 0.0, 0.7 * unit],
                0.06 * unit,
            )
        ]
        if rng.random() < 0.5
        else []
    )
    return [robe, head, surface(material, np.concatenate([*arms, *staff]))]


def horse(length_m: float, rng: np.random.Generator, *, material: str = "metal") -> Part:
    """A striding horse that looks to -y."""
    n = length_m / 2.4
    legs = [
        beam(
            (sx * 0.25 * n, y * n, 1.2 * n),
            (sx * 0.25 * n, (y + rng.uniform(-0.45, 0.25)) * n, 0.0),
            0.17 * n,
        )
        for sx in (-1, 1)
        for y in (-0.75, 0.75)
    ]
    neck, head = (
        beam((0, -0.9 * n, 1.45 * n), (0, -1.35 * n, 2.25 * n), 0.34 * n),
        beam((0, -1.25 * n, 2.3 * n), (0, -1.75 * n, 1.95 * n), 0.26 * n),
    )
    tail = beam((0, 1.05 * n, 1.5 * n), (rng.uniform(-0.2, 0.2) * n, 1.5 * n, 0.7 * n), 0.15 * n)
    return [
        ellipsoid(material, (0.42 * n, 1.15 * n, 0.5 * n), (0.0, 0.0, 1.45 * n), 10),
        surface(material, np.concatenate([*legs, neck, head, tail])),
    ]
