"""The cluster file at the top is one that Ray's launcher takes."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest

from cadloc.documents import load_document

FILE = Path(__file__).resolve().parents[2] / "cluster.yaml"
DOCUMENTATION = ipaddress.ip_network("192.0.2.0/24")


@pytest.fixture
def cluster() -> dict[str, Any]:
    """The file's data."""
    data: dict[str, Any] = load_document(FILE).data
    return data


def test_rays_launcher_accepts_it(cluster: dict[str, Any]) -> None:
    """It passes the launcher's own preparation and its schema, and keeps all its machines."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    prepared = util.prepare_config(cluster)
    util.validate_config(prepared)
    assert prepared["max_workers"] == len(cluster["provider"]["worker_ips"])


def test_it_names_no_real_machine(cluster: dict[str, Any]) -> None:
    """Every address is from the range reserved for documentation (RFC 5737)."""
    provider = cluster["provider"]
    addresses = [ipaddress.ip_address(text) for text in [provider["head_ip"], *provider["worker_ips"]]]
    assert all(address in DOCUMENTATION for address in addresses)


def test_its_nodes_ask_for_the_token(cluster: dict[str, Any]) -> None:
    """Head and workers start with token authentication, and the token travels with mode 600."""
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1]
        assert "chmod 600 ~/.ray/auth_token" in commands[-1]
    assert "~/.ray/auth_token" in cluster["file_mounts"]
