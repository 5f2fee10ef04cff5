"""The model host's own process, run as a web process runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from modelyard.cluster.hosting.folder import HostLock, noted
from modelyard.settings.loading import serialize
from modelyard.settings.settings import Settings

FAULTS = {
    "settings that broke off": serialize(Settings())[:-20],
    "settings of another version": json.dumps({"own": {"unheard_of": 1}, "models": [], "overrides": []}),
    "a registry that is none": serialize(Settings(role="worker", registry="nonsense:")),
}


@pytest.mark.parametrize("handed", FAULTS.values(), ids=FAULTS)
def test_one_that_can_not_even_begin_counts_as_a_failure(tmp_path: Path, handed: str) -> None:
    lock = HostLock.take(tmp_path / "host.lock")
    assert lock is not None
    lock.note(starts=3, since=time.monotonic(), settings=1)
    command = [sys.executable, "-P", "-m", "modelyard.server.host_process", str(tmp_path), str(tmp_path / "host.sock")]
    ran = subprocess.run(
        [*command, str(lock.fd)],
        input=handed,
        pass_fds=[lock.fd],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=60,
    )
    lock.close()
    assert ran.returncode != 0
    assert noted(tmp_path / "host.lock")["starts"] == 3, "the pauses grow"
