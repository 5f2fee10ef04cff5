"""``modelyard inspect``: a table for people, JSON for programs, and the table of a configuration that runs it."""

from __future__ import annotations

import tomllib

import tiny_gguf
from commands import modelyard


def test_weights_are_shown_with_the_table_that_runs_them(tmp_path):
    path = tiny_gguf.make(tmp_path / "Mine.gguf")
    ran = modelyard("inspect", path)
    assert ran.status == 0, ran.err
    shown, _, snippet = ran.out.partition("\n\n")
    rows = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert (rows["format"], rows["type"], rows["engine"]) == ("GGUF", "llm", "llama.cpp")
    assert rows["memory"].endswith("for each of 8 slots of 2048 tokens")
    assert tomllib.loads(snippet) == {"models": [{"name": "mine", "model_path": "Mine.gguf"}]}


def test_memory_is_of_the_slots_and_tokens_that_are_given(tmp_path):
    path = tiny_gguf.make(tmp_path / "m.gguf")
    small, large = (
        modelyard("inspect", path, "--slots", slots, "--n-ctx", 1024, "--json").json["memory_bytes"] for slots in (1, 3)
    )
    assert large - small == 2 * 1024 * modelyard("inspect", path, "--json").json["kv_bytes_per_token"]


def test_what_can_not_be_run_ends_with_the_reason(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    ran = modelyard("inspect", folder)
    assert (ran.status, "none: no engine here runs a ViTForImageClassification" in ran.out) == (1, True)
    ran = modelyard("inspect", tmp_path / "gone")
    assert (ran.status, ran.complaint) == (1, f"there is no file or folder {tmp_path / 'gone'}")
