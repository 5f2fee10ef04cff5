"""``modelyard inspect``: a table for people, JSON for programs, and the table of a configuration that runs it."""

from __future__ import annotations

import tomllib

import pytest
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


def test_a_model_in_several_files_is_shown_as_one(tmp_path):
    whole = tiny_gguf.make(tmp_path / "Mine.gguf")
    first, second = tiny_gguf.split(whole, 2)
    ran = modelyard("inspect", first)
    assert ran.status == 0, ran.err
    assert "GGUF, 2 files" in ran.out
    table = tomllib.loads(ran.out.partition("\n\n")[2])["models"][0]
    assert table == {"name": "mine", "model_path": "Mine-00001-of-00002.gguf"}
    shown, of_whole = (modelyard("inspect", path, "--json").json for path in (first, whole))
    assert (shown["files"], shown["parameters"]) == (2, of_whole["parameters"])
    assert shown["weights_bytes"] == first.stat().st_size + second.stat().st_size
    second.unlink()
    ran = modelyard("inspect", first)
    assert (ran.status, "part 2 of 2 is missing" in ran.complaint) == (1, True)


@pytest.mark.parametrize(
    ("make", "holds", "table"),
    [
        (tiny_gguf.make_adapter, "a LoRA adapter of rank 4, for models of this architecture", {"lora": ["x.gguf"]}),
        (
            tiny_gguf.make_projector,
            "a projector of images of 32 pixels, for the model it was made with",
            {"mmproj": "x.gguf"},
        ),
    ],
)
def test_what_a_model_is_given_is_shown_with_the_key_that_names_it(tmp_path, make, holds, table):
    ran = modelyard("inspect", make(tmp_path / "x.gguf"))
    assert ran.status == 0, ran.err
    shown, _, snippet = ran.out.partition("\n\n")
    rows = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert (rows["holds"], rows["engine"]) == (holds, "llama.cpp")
    assert rows["memory"].endswith("beside its model")
    assert table.items() <= tomllib.loads(snippet)["models"][0].items()
