"""A real Prometheus scrapes a service, with the configuration that is shipped for it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from in_process import service, url_of
from modelyard.telemetry.metrics import FAMILIES
from running import ROOT, free_port, wait_until

CONFIGURATION = ROOT / "deploy" / "prometheus.yml"

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """Run a Prometheus that scrapes ``target`` as the shipped file says, ten times a second, and give its URL."""
    configuration = yaml.safe_load(CONFIGURATION.read_text())
    configuration["global"] = {"scrape_interval": "100ms", "scrape_timeout": "100ms"}
    configuration.pop("rule_files", None)
    for job in configuration["scrape_configs"]:
        job.pop("scrape_interval", None)
        job.pop("authorization", None)
        job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    port = free_port()
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def test_a_prometheus_has_every_family_and_its_values(tmp_path: Path) -> None:
    echo = {"name": "echo", "engine": "echo"}
    with service(tmp_path / "worker", [echo], metrics="open") as runtime:
        target = url_of(runtime).removeprefix("http://").partition("/")[0]
        with prometheus(tmp_path, target) as url:

            def asked(path: str, **query: str) -> Any:
                try:
                    answer = requests.get(f"{url}/api/v1/{path}", query, timeout=5)
                except requests.ConnectionError:
                    return None
                return answer.json()["data"] if answer.ok else None  # 503 while it starts

            def scraped() -> Any:
                data = asked("query", query="modelyard_num_slots")
                return data and data["result"]

            slots = wait_until(scraped, "a scrape")
            assert slots[0]["metric"]["model"] == "echo"
            assert asked("query", query="up")["result"][0]["value"][1] == "1"
            kinds = {name: entries[0]["type"] for name, entries in asked("metadata").items()}
    families = {family.name: family.kind for family in FAMILIES.values()}
    assert {name: kind for name, kind in kinds.items() if name.startswith("modelyard_")} == families
