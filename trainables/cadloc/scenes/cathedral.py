"""The cathedral: unequal towers, three portals, nave and aisles, one transept arm, a cloister wing, an apse."""

from __future__ import annotations

import numpy as np

from cadloc.scenes.architecture import buttress, flying_arch, parapet, quoins, rose_window, stairs, voussoirs
from cadloc.scenes.assembly import Assembly, Site, face_of
from cadloc.scenes.decals import Kind, decal
from cadloc.scenes.facades import Storey, facade, string_course
from cadloc.scenes.model import SceneModel, Wall
from cadloc.scenes.openings import Opening, WindowStyle, cuts, wall, window
from cadloc.scenes.palette import FITTINGS, GROUND
from cadloc.scenes.roofs import gable_roof, spire
from cadloc.scenes.sculpture import figure
from cadloc.scenes.solids import Surface, box, lathe, moved, plank, quads, slab, surface
from cadloc.scenes.surroundings import ground, scatter
from cadloc.scenes.textures import Finish

SEED = 1248
FRONT_M, BACK_M, NAVE_M, AISLE_M = -24.0, 17.0, 10.6, 4.6
EAVES_M, AISLE_EAVES_M = 18.5, 8.6
GOTHIC = WindowStyle(3, 4, "none", frame="trim", surround_m=0.22)
FINISHES = {
    "wall": Finish("ashlar", (196, 180, 148), (128, 118, 100), 0.42, 0.95, 0.03, 32.0, 2048, tone=0.2, hue=6.0),
    "trim": Finish("ashlar", (208, 200, 180), (136, 128, 114), 0.55, 1.3, 0.025, 30.0, 2048, tone=0.14),
    "accent": Finish("rubble", (150, 128, 108), (172, 160, 142), 0.42, 0.42, 0.03, 24.0, tone=0.22, hue=8.0),
    "roof": Finish("tiles", (92, 98, 108), (52, 54, 60), 0.36, 0.3, 0.02, 20.0, tone=0.24, hue=8.0),
    **FITTINGS,
    **GROUND,
    "glass": Finish("panes", (52, 62, 84), (150, 92, 70), extent_m=12.0, roughness=0.3),
}


def cathedral() -> SceneModel:
    """About 30 m wide, 54 m long and 50 m high; the portals look to -y."""
    rng = np.random.default_rng(SEED)
    assembly = Assembly(rng)
    ground(assembly, 110.0, rng, fields=6)
    _front(assembly, rng)
    _tower(assembly, Site((-9.2, FRONT_M + 3.9, 0.0)), 7.8, (8.0, 7.0, 6.5, 7.5, 5.0), rng, sharp_m=14.0)
    _tower(assembly, Site((9.4, FRONT_M + 4.3, 0.0)), 8.4, (8.0, 7.6, 6.2, 6.4), rng, sharp_m=0.0)
    _nave(assembly, rng)
    _apse(assembly, rng)
    _transept(assembly, rng)
    _cloister_wing(assembly, rng)
    scatter(assembly, rng, count=28, clear_m=(34.0, 58.0), reach_m=42.0)
    walls = (Wall(Site((-10.4, 6.0, 0.0), -90.0), 11.0, 8.0), Wall(Site((9.4, FRONT_M, 0.0)), 7.0, 7.0))
    return SceneModel(assembly, FINISHES, walls, (38.0, 62.0), 44.0, SEED)


def _front(assembly: Assembly, rng: np.random.Generator) -> None:
    """The west front between the towers: great portal, gallery of kings, rose, gable."""
    site, width = Site((0.0, FRONT_M + 0.6, 0.0)), NAVE_M + 0.8
    portal = Opening(0.0, 0.68, 4.4, 7.6, "pointed", 1.2)
    rose = Opening(0.0, 12.6, 7.4, 7.4, "round")
    assembly.add([*wall("wall", width, 0.0, 12.0, [portal]), *wall("wall", width, 12.0, 22.0, [])], site)
    assembly.add(moved(stairs(9.0, 4), (0.0, -1.6, 0.0)), site)
    assembly.put("trim", box((9.0, 2.2, 0.68), (0.0, -0.5, 0.0)), site)
    _portal(assembly, site, portal, rng, 2)
    assembly.add(string_course(width, 9.3, reach_m=0.5), site)
    for k, x in enumerate(np.linspace(-4.6, 4.6, 9)):
        if k != 6:
            assembly.add(moved(figure(1.9, rng, material="trim"), (float(x), -0.35, 9.35)), site, loose=k % 3 == 0)
        assembly.put("trim", plank(float(x) + 0.57, 9.3, 0.2, 2.4, -0.35, 0.0), site)
    assembly.add(string_course(width, 12.2, reach_m=0.4), site)
    assembly.add(moved(rose_window(rose.width_m / 2, 13), (0.0, -0.3, rose.z_m + rose.width_m / 2)), site)
    assembly.add(parapet(width, rng), site.raised(21.4))
    gable = slab([(-width / 2, 21.4), (width / 2, 21.4), (0.0, 27.6)], 1.0, 1.6)
    assembly.put("wall", gable, site)
    assembly.add(moved(rose_window(1.2, 7), (0.0, 0.7, 23.6)), site)
    assembly.add(figure(2.4, rng, material="metal"), Site((0.0, FRONT_M + 1.9, 27.5)))


def _portal(assembly: Assembly, site: Site, door: Opening, rng: np.random.Generator, orders: int) -> None:
    """A door under receding arches, with a carved tympanum and figures beside it."""
    assembly.add(window(door, WindowStyle(2, 3, "none", frame="metal", fill="wood")), site)
    spring = door.z_m + door.height_m - door.rise_m
    for k in range(orders):
        radius = door.width_m / 2 + 0.25 + 0.5 * k
        assembly.add(
            moved(voussoirs(radius, 0.45, rng, stones=15, reach_m=0.3 + 0.3 * k), (door.x_m, 0.0, spring + 0.6)),
            site,
        )
        for side in (-1, 1):
            assembly.put(
                "trim",
                plank(door.x_m + side * (radius + 0.2), 0.0, 0.3, spring + 0.6, -0.3 - 0.3 * k, 0.0),
                site,
            )
    for side in (-1, 1):
        statue = moved(figure(1.7, rng, material="trim"), (door.x_m + side * (door.width_m / 2 + 1.6), -0.8, 1.1))
        assembly.add(statue, site, loose=True)
    picture: Kind = "relief" if door.width_m > 3.0 else "mural"
    size = 0.52 * door.width_m
    assembly.add(decal(picture, int(rng.integers(96)), door.x_m, spring - 0.2, size, size, door.depth_m - 0.12), site)


def _tower(
    assembly: Assembly,
    centre: Site,
    side_m: float,
    floors_m: tuple[float, ...],
    rng: np.random.Generator,
    *,
    sharp_m: float,
) -> None:
    """A tower of storeys with unlike windows on each face; with a spire of that height, or flat behind a parapet."""
    height = 0.0
    for k in range(4):
        own = [
            Storey(
                high,
                1 + (level + k) % 2 if level else 1,
                1.1 + 0.25 * (level > 1),
                1.6,
                0.62 * high,
                "pointed",
                GOTHIC,
                blind=0.15,
                lively=0.3,
            )
            for level, high in enumerate(floors_m)
        ]
        face = face_of(centre, 90.0 * k, side_m / 2)
        free = [(-3.0, 3.0)] if k == 0 else []
        height = facade(assembly, face, side_m, own[:1], rng, free=free)
        height = facade(
            assembly,
            face,
            side_m,
            own[1:],
            rng,
            z0_m=height,
            material="accent" if (k + len(floors_m)) % 4 == 1 else "wall",
        )
    for k, (sx, sy) in enumerate(((-1, -1), (1, -1), (1, 1), (-1, 1))):
        pier = buttress(height - 6.0 - 2.0 * k, 1.3, 1.2, pinnacle=k != 2)
        assembly.add(
            moved(pier, (-sy * sx * (side_m / 2 - 0.8), 0.0, 0.0)),
            face_of(centre, 0.0 if sy < 0 else 180.0, side_m / 2),
        )
        assembly.add(moved(quoins(height, rng, (sx, sy), stone_m=1.0), (sx * side_m / 2, sy * side_m / 2, 0.0)), centre)
    front = face_of(centre, 0.0, side_m / 2)
    _portal(
        assembly,
        front,
        Opening(0.0, 0.3, 2.0 if sharp_m else 2.5, 4.0, "pointed", 0.6),
        rng,
        1 if sharp_m else 2,
    )
    assembly.add(decal("sign", 2 if sharp_m else 6, 0.3, height - 10.4, 2.4, 2.4, -0.3), front)
    _tower_head(assembly, centre.raised(height), side_m, rng, sharp_m)


def _tower_head(assembly: Assembly, top: Site, side_m: float, rng: np.random.Generator, sharp_m: float) -> None:
    for k in range(4):
        assembly.add(parapet(side_m, rng, height_m=1.2), face_of(top, 90.0 * k, side_m / 2 - 0.2))
    assembly.put("roof", box((side_m, side_m, 0.1)), top)
    if sharp_m:
        assembly.add(spire(side_m - 1.6, sharp_m, 8), top)
        for sx, sy in ((-1, -1), (1, -1), (1, 1)):
            assembly.add(
                moved(
                    spire(1.3, 3.6, 4, material="trim"),
                    (sx * (side_m / 2 - 0.7), sy * (side_m / 2 - 0.7), 0.0),
                ),
                top,
            )
    else:
        assembly.add(gable_roof(side_m - 2.0, side_m - 3.0, 2.6, 0.2), Site(top.at_m, 90.0))
        assembly.put("metal", box((0.1, 0.1, 5.0)), Site((top.at_m[0] + 2.6, top.at_m[1] - 2.6, top.at_m[2])))


def _nave(assembly: Assembly, rng: np.random.Generator) -> None:
    """Clerestory, aisles with buttresses and flying arches, and the roofs; the two sides differ in every bay."""
    length, middle = BACK_M - FRONT_M - 7.0, (BACK_M + FRONT_M + 7.0) / 2
    for side, turn in ((-1, -90.0), (1, 90.0)):
        high = face_of(Site((0.0, middle, 0.0)), turn, NAVE_M / 2)
        low = face_of(Site((0.0, middle, 0.0)), turn, NAVE_M / 2 + AISLE_M)
        bays = 7 if side < 0 else 6
        clerestory = Storey(
            EAVES_M - AISLE_EAVES_M - 3.0, bays, 2.0, 0.8, 5.4, "pointed", GOTHIC, blind=0.06, lively=0.0
        )
        facade(assembly, high, length, [clerestory], rng, z0_m=AISLE_EAVES_M + 3.0)
        aisle = Storey(AISLE_EAVES_M, bays, 1.9, 2.0, 4.8, "pointed", GOTHIC, blind=0.12, lively=0.5)
        facade(assembly, low, length, [aisle], rng, material="wall" if side < 0 else "accent")
        assembly.add(parapet(length, rng, height_m=0.8), low.raised(AISLE_EAVES_M))
        _aisle_roof(assembly, low, length)
        for k, x in enumerate(cuts(length, length / bays + 1e-6)):
            _pier(assembly, low, float(x), k, rng)
    roof = moved(gable_roof(length + 6.0, NAVE_M, 6.4, 0.5), (0.0, 0.0, 0.0), 90.0)
    assembly.add(roof, Site((0.0, middle - 3.0, EAVES_M)))
    assembly.add(spire(1.6, 9.0, 8), Site((0.0, 9.5, EAVES_M + 5.6)))
    for x, y in ((-3.4, -6.0), (3.4, -1.0), (3.2, 5.5), (-3.4, 11.0)):
        assembly.put("wood", box((1.1, 1.4, 1.5)), Site((x, y, EAVES_M + 1.6)))


def _aisle_roof(assembly: Assembly, low: Site, length_m: float) -> None:
    half, rise = length_m / 2, AISLE_EAVES_M + 3.2
    slope = quads(
        (-half, -0.3, AISLE_EAVES_M),
        (half, -0.3, AISLE_EAVES_M),
        (half, AISLE_M, rise),
        (-half, AISLE_M, rise),
    )
    assembly.put("roof", slope, low)


def _pier(assembly: Assembly, low: Site, x_m: float, k: int, rng: np.random.Generator) -> None:
    """A buttress between two bays; most carry a flying arch to the nave, some a statue."""
    reach, high = float(rng.uniform(1.1, 1.8)), float(rng.uniform(9.6, 11.5))
    assembly.add(moved(buttress(high, reach, 1.0, pinnacle=rng.random() < 0.75), (x_m, 0.0, 0.0)), low)
    if rng.random() < 0.85:
        assembly.add(moved(flying_arch(AISLE_M + 0.5, high, 15.6 + 0.5 * (k % 2)), (x_m, AISLE_M, 0.0)), low)
    if rng.random() < 0.4:
        assembly.add(moved(figure(1.6, rng, material="trim"), (x_m, -reach - 0.3, 3.0)), low, loose=True)


def _apse(assembly: Assembly, rng: np.random.Generator) -> None:
    """The round east end with its half cone, a low chapel and buttresses."""
    radius = NAVE_M / 2
    site = Site((0.0, BACK_M, 0.0), 180.0, radius)
    storeys = [
        Storey(8.0, 5, 1.3, 2.2, 4.6, "pointed", GOTHIC, blind=0.1, lively=0.4),
        Storey(7.0, 6, 1.1, 1.2, 4.4, "pointed", GOTHIC, blind=0.2, lively=0.0),
    ]
    height = facade(assembly, site, np.pi * radius, storeys, rng, material="wall")
    triangles, uv = lathe([(radius + 0.4, 0.0), (0.05, 5.6)], 18, start_deg=0.0, end_deg=180.0)
    assembly.add([Surface("roof", triangles, uv)], Site((0.0, BACK_M, height)))
    assembly.add(
        [surface("wall", plank(0.0, height, NAVE_M, EAVES_M - height, -0.2, 0.2))],
        Site((0.0, BACK_M, 0.0), 180.0),
    )
    for k, turn in enumerate((-72.0, -30.0, 8.0, 66.0)):
        assembly.add(
            buttress(7.0 + 1.5 * k, 1.2 + 0.2 * k, 0.9),
            face_of(Site((0.0, BACK_M, 0.0), 180.0), turn, radius),
        )
    chapel = face_of(Site((0.0, BACK_M, 0.0), 180.0), 38.0, radius + 1.0)
    low = facade(
        assembly,
        Site(chapel.at_m, chapel.turn_deg, 2.6),
        2 * np.pi * 2.6,
        [Storey(4.6, 6, 0.9, 1.2, 2.6, "round", lively=0.7)],
        rng,
        material="accent",
    )
    assembly.add(spire(5.6, 3.0, 8), chapel.raised(low))


def _transept(assembly: Assembly, rng: np.random.Generator) -> None:
    """The arm on the right, with a rose of its own, a side portal and a turret."""
    centre, width, depth = Site((NAVE_M / 2 + AISLE_M + 1.2, 8.0, 0.0), 90.0), 9.0, 7.0
    front = face_of(centre, 0.0, depth / 2)
    door = Opening(-0.8, 0.2, 2.2, 4.2, "pointed", 0.7)
    assembly.add(wall("wall", width, 0.0, 15.5, [door]), front)
    _portal(assembly, front, door, rng, 1)
    assembly.add(moved(rose_window(2.3, 8, turn_deg=20.0), (0.3, -0.3, 10.0)), front)
    assembly.add(decal("inscription", 1, 0.0, 6.4, 4.0, 0.8), front)
    for turn in (90.0, -90.0):
        facade(
            assembly,
            face_of(centre, turn, width / 2),
            depth,
            [Storey(15.5, 2 if turn > 0 else 1, 1.4, 5.0, 7.0, "pointed", GOTHIC, lively=0.0)],
            rng,
        )
    assembly.add(moved(gable_roof(depth + 3.0, width, 5.2), (0.0, 1.5, 0.0), 90.0), centre.raised(15.5))
    turret = Site((front.at_m[0] - 0.6, front.at_m[1] + 4.6, 0.0), 90.0, 1.5)
    top = facade(
        assembly,
        turret,
        2 * np.pi * 1.5,
        [Storey(4.4, 2, 0.5, 1.5, 1.6, "pointed", lively=0.2)] * 4,
        rng,
        material="accent",
    )
    assembly.add(spire(3.2, 4.8, 8), Site((*turret.at_m[:2], top)))


def _cloister_wing(assembly: Assembly, rng: np.random.Generator) -> None:
    """The low wing on the left: sacristy and cloister, tiled, with chimneys and a row of unlike windows."""
    centre, width, depth, height = Site((-13.6, -6.5, 0.0), -90.0), 13.0, 6.6, 0.0
    for k, (length, reach) in enumerate(((width, depth), (depth, width)) * 2):
        storeys = [
            Storey(3.6, 5 - 2 * (k % 2), 1.5, 0.7, 2.3, "round", WindowStyle(2, 2, "none"), lively=0.8),
            Storey(2.8, 6 - 3 * (k % 2), 0.9, 0.8, 1.4, "flat", WindowStyle(2, 2, "flat"), lively=0.8),
        ]
        height = facade(assembly, face_of(centre, 90.0 * k, reach / 2), length, storeys, rng, material="accent")
    assembly.add(gable_roof(width, depth, 3.4), centre.raised(height))
    for x in (-3.6, 4.4):
        assembly.put("accent", box((0.9, 0.8, 4.2)), Site((centre.at_m[0], centre.at_m[1] + x, height)), loose=True)
