"""Trial, result and every path of a sweep: value objects only, safe to send to another process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal, TypeAlias, assert_never

from cadloc.config import TrialConfig
from cadloc.contract import Json
from cadloc.settings import Count, NonNegative, Positive, Settings

TrialStatus: TypeAlias = Literal["finished", "stopped", "failed", "interrupted"]
"""`stopped`: ended early by the scheduler, on purpose; `interrupted`: to be taken up again by the next run."""


_PACKED = ("ace", "glace")
"""Trainables whose training a server can do; one of a user's own may know how to."""


class Resources(Settings):
    """What one trial occupies while it runs: `workers` times `cpu` and `gpu`; fractions of a GPU share it.

    A packed trial trains on a server, which has a whole GPU and trains up to `slots` trials at once; the trial itself
    occupies CPUs only. Nothing of this changes what a trial is: results agree.
    """

    cpu: Positive = 1
    gpu: NonNegative = 0
    workers: Count = 1
    """Processes that share the training of the trial, each with a part of every batch."""
    pack: Literal["auto", "never", "always"] = "auto"
    """`auto`: packed where the trial asks for a GPU and there is one; `always`: on a CPU as well, where gpu is 0."""
    slots: Count = 16
    """Trials that one server trains at once."""
    max_runtime_s: Positive | None = None
    """A trial that reports progress later than this after its start fails. None: no limit.

    A packed trial has started before it has a place on a server: what it waits for that counts, and steps are shared.
    """


@dataclass(frozen=True)
class Trial:
    """One configuration and one seed.

    `id` is 12 hex digits over everything its result depends on; `arm` 16 hex digits over the same without the
    seed (so it differs between scenes); `factors` are the dimensions that vary, the scene's name included, as
    the space writes them; `arm_label` says the factors without the scene in one line.
    """

    id: str
    config: TrialConfig
    factors: Mapping[str, Json]
    seed: int
    arm: str
    arm_label: str
    resources: Resources = field(default_factory=Resources)

    @property
    def scene(self) -> str:
        """Name of the scene."""
        return self.config.scene.name

    @property
    def device(self) -> str:
        """`cuda` when the trial asks for (a share of) a GPU, else `cpu`."""
        return "cuda" if self.resources.gpu > 0 else "cpu"

    @property
    def packs(self) -> bool:
        """Whether it is to be trained on a server, with others; no server is on a GPU that is not there."""
        match self.resources.pack:
            case "never":
                return False
            case "always":
                return self.resources.workers == 1
            case "auto":
                return self.device == "cuda" and self.resources.workers == 1 and self.config.trainable in _PACKED
            case _:
                assert_never(self.resources.pack)

    def to_json(self) -> dict[str, Json]:
        """The trial as JSON; `from_json` undoes it."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        return plain | {
            "config": self.config.model_dump(mode="json"),
            "factors": dict(self.factors),
            "resources": self.resources.model_dump(mode="json"),
        }

    @staticmethod
    def from_json(data: Mapping[str, Json]) -> Trial:
        """The trial that `to_json` wrote. Raises ValueError (pydantic's) or TypeError when it did not."""
        config = TrialConfig.model_validate(data["config"])
        resources = Resources.model_validate(data["resources"])
        return Trial(**{**data, "config": config, "resources": resources})


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended: the content of its `result.json`.

    `error` is the exception's last line, `log` the place of its output. `seconds` counts this attempt only;
    `versions` names the interpreter, the libraries and (when known) the commit of the code that ran;
    `started` and `ended` are seconds since 1970.
    """

    id: str
    status: TrialStatus
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    traceback: str | None = None
    log: str | None = None
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    started: float = 0.0
    ended: float = 0.0
    out_of_disk: bool = False

    def to_json(self) -> dict[str, Json]:
        """The result as JSON; `from_json` undoes it."""
        return asdict(self) | {"metrics": dict(self.metrics), "versions": dict(self.versions)}

    @staticmethod
    def from_json(data: Mapping[str, Json]) -> TrialResult:
        """The result that `to_json` wrote. Raises TypeError for any other keys."""
        return TrialResult(**data)


@dataclass(frozen=True)
class TrialPaths:
    """Every path below one trial's directory that another part reads."""

    directory: Path

    @property
    def config(self) -> Path:
        """The trial as it was run (`Trial.to_json`)."""
        return self.directory / "config.json"

    @property
    def result(self) -> Path:
        """How it ended, with a checksum; present means ended."""
        return self.directory / "result.json"

    @property
    def history(self) -> Path:
        """One JSON line per `Progress`."""
        return self.directory / "history.jsonl"

    @property
    def log(self) -> Path:
        """What went wrong, attempt after attempt."""
        return self.directory / "log.txt"

    @property
    def map(self) -> Path:
        """The trained head; `map.json` beside it says what it is."""
        return self.directory / "map.safetensors"

    @property
    def map_card(self) -> Path:
        """Head, encoder, scene and frame of the map."""
        return self.directory / "map.json"

    @property
    def figures(self) -> Path:
        """Folder of PNG figures."""
        return self.directory / "figures"

    @property
    def checkpoint(self) -> Path:
        """What training resumes from; gone when the trial has finished."""
        return self.directory / "checkpoint.pt"

    def poses(self, test_set: str) -> Path:
        """Estimated poses and their errors on one test set, one row per query."""
        return self.directory / f"poses_{test_set}.csv"


@dataclass(frozen=True)
class SweepPaths:
    """Every path of one sweep: `<out>/<space name>/…`, and what sweeps share beside it; absolute."""

    out: Path
    space_name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", self.out.expanduser().absolute())  # workers stand in other folders

    @property
    def directory(self) -> Path:
        """The sweep's own folder."""
        return self.out / self.space_name

    @property
    def space(self) -> Path:
        """The space with every variable filled in: it can be run as it stands."""
        return self.directory / "space.yaml"

    @property
    def plan(self) -> Path:
        """Trials and stages of the latest run, in order."""
        return self.directory / "plan.json"

    @property
    def ledger(self) -> Path:
        """What has happened, one checksummed line per event."""
        return self.directory / "ledger.jsonl"

    @property
    def lock(self) -> Path:
        """Who drives the sweep."""
        return self.directory / "lock"

    @property
    def control(self) -> Path:
        """Folder of requests to a running sweep."""
        return self.directory / "control"

    @property
    def stop_request(self) -> Path:
        """A file that, while it exists, asks the running sweep to drain."""
        return self.control / "stop"

    @property
    def trials(self) -> Path:
        """Folder of the trials' own folders."""
        return self.directory / "trials"

    @property
    def store(self) -> Path:
        """Where stages are stored unless another place is given."""
        return self.out / ".store"

    @property
    def mlflow_database(self) -> Path:
        """MLflow's database unless a tracking URI is given."""
        return self.out / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        """MLflow's artifacts unless a tracking URI is given."""
        return self.out / "mlartifacts"

    def trial(self, trial_id: str) -> TrialPaths:
        """Paths of one trial."""
        return TrialPaths(self.trials / trial_id)


def trial_from_file(paths: TrialPaths) -> Trial:
    """The trial that a worker wrote into its directory. Raises OSError, ValueError or TypeError if unreadable."""
    return Trial.from_json(json.loads(paths.config.read_text(encoding="utf-8")))
