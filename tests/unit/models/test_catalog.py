"""The catalogue: what the package knows, what the configuration says, what lies in the models folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
from modelyard.errors import ConfigError
from modelyard.models.catalog import Catalog, CatalogEntry, Source

SHA256 = "0" * 64
HASH: dict[str, Any] = {"sha256": SHA256, "size": 5, "license": "MIT"}
PARTS: dict[str, Any] = {"later_parts": [f"{SHA256}:5"]}
SOURCE: dict[str, Any] = {
    "package": "some-weights",
    "version": "1.0",
    "member": "some/w.gguf",
    "sha256": SHA256,
    "size": 5,
    "license": "MIT",
}


def load(*tables: dict[str, Any], folder: Path | None = None, package: bool = True) -> Catalog:
    return Catalog.load(tables, [folder] if folder else [], package, origin="my.toml")


def entry(catalog: Catalog, name: str) -> CatalogEntry:
    found = catalog.get(name)
    assert found is not None
    return found


def test_the_package_knows_two_models_with_weights_and_two_without() -> None:
    catalog = load()
    assert [(e.name, e.engine, e.worker_type) for e in catalog] == [
        ("smollm2-135m", "llama.cpp", "llm"),
        ("minilm-l6", "llama.cpp", "text2vec"),
        ("echo", "echo", "llm"),
        ("echo-embed", "echo", "text2vec"),
    ]
    for found in catalog:
        assert (found.source is None) == (found.engine == "echo")
        assert found.source is None or found.source.license == "Apache-2.0"
        assert found.pull_command == (f"modelyard pull {found.name}" if found.source else None)


def test_without_a_configuration_the_models_with_weights_are_started() -> None:
    catalog = load()
    assert catalog.names_to_start() == ["smollm2-135m", "minilm-l6"]
    assert catalog.names_to_start(["echo", "echo"]) == ["echo"]
    assert catalog.names_to_start([]) == []


def test_the_models_that_the_configuration_names_are_started_and_no_others() -> None:
    catalog = load(
        {"name": "echo"},
        {"name": "mine", "engine": "echo"},
        {"name": "later", "engine": "echo", "start": False},
    )
    assert catalog.configured == ("echo", "mine", "later")
    assert catalog.names_to_start() == ["echo", "mine"]
    assert len(catalog) == 6


def test_a_disabled_model_is_not_started_and_asking_for_it_is_an_error() -> None:
    catalog = load({"name": "echo"}, {"name": "mine", "engine": "echo", "enabled": False, "description": "too big"})
    assert catalog.names_to_start() == ["echo"]
    with pytest.raises(ConfigError, match=r"'mine' is disabled \(my\.toml\): too big"):
        catalog.names_to_start(["mine"])


def test_asking_for_a_model_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no model 'smolm2-135m': did you mean smollm2-135m\?"):
        load().names_to_start(["smolm2-135m"])
    with pytest.raises(ConfigError, match="there are echo, echo-embed, minilm-l6, smollm2-135m"):
        load().names_to_start(["zzz"])


def test_the_package_can_be_left_out() -> None:
    assert [e.name for e in load({"name": "mine", "engine": "echo"}, package=False)] == ["mine"]


def test_a_known_name_is_changed_key_by_key() -> None:
    before, after = (
        entry(load(), "smollm2-135m"),
        entry(load({"name": "smollm2-135m", "n_batch": 64}), "smollm2-135m"),
    )
    assert after.params == {"n_ctx": 2048, "n_batch": 64}
    assert (after.model_path, after.source, after.worker_type) == (before.model_path, before.source, "llm")
    assert after.origin == "my.toml"


def test_the_source_of_a_known_name_is_changed_key_by_key() -> None:
    changed = entry(load({"name": "smollm2-135m", "source": {"package": "my-mirror"}}), "smollm2-135m").source
    assert changed is not None
    assert (changed.package, changed.version) == ("my-mirror", "0.1.2")


def test_weights_of_ones_own_under_a_known_name_are_never_fetched_over() -> None:
    changed = entry(load({"name": "smollm2-135m", "model_path": "mine.gguf"}), "smollm2-135m")
    assert (changed.source, changed.pull_command, changed.params) == (None, None, {"n_ctx": 2048})


def test_another_engine_takes_nothing_of_the_old_ones() -> None:
    changed = entry(load({"name": "smollm2-135m", "engine": "echo"}), "smollm2-135m")
    assert (changed.params, changed.model_path, changed.source) == ({}, None, None)


def test_keys_that_the_catalogue_does_not_know_are_the_engines_parameters() -> None:
    found = entry(load({"name": "mine", "engine": "other", "n_ctx": 5, "anything": ["a"]}), "mine")
    assert found.params == {"n_ctx": 5, "anything": ["a"]}


def test_a_gguf_file_needs_no_engine_and_neither_does_a_class() -> None:
    assert entry(load({"name": "mine", "model_path": "x.GGUF"}), "mine").engine == "llama.cpp"
    found = entry(load({"name": "mine", "worker_class": "my.module:Engine"}), "mine")
    assert found.params == {"worker_class": "my.module:Engine"}


def test_a_source_of_ones_own_is_taken() -> None:
    found = entry(load({"name": "mine", "model_path": "w.gguf", "source": SOURCE}), "mine")
    assert found.source == Source(**SOURCE)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": " x", "engine": "echo"}, "name: ' x' is not a valid name"),
        ({"name": "x"}, 'engine: must be set, as in engine = "llama.cpp"'),
        ({"name": "x", "model_path": "x.bin"}, "engine: must be set"),
        ({"name": "x", "engine": 5}, "engine: must be a string, not an integer"),
        (
            {"name": "x", "engine": "echo", "worker_type": "chat"},
            "worker_type: 'chat' is not one of llm, text2vec, reranker",
        ),
        ({"name": "x", "engine": "echo", "start": "yes"}, "start: must be true or false, not a string"),
        ({"name": "x", "model_path": ["a"]}, "model_path: must be a string, not a list"),
        ({"name": "x", "engine": "e", "source": "pip"}, "source: must be a table"),
        ({"name": "x", "engine": "e", "source": SOURCE}, "model_path: a model with a source needs one"),
        ({"name": "x", "model_path": "/a/x.gguf", "source": SOURCE}, "relative to the models folder"),
        ({"name": "x", "model_path": "w.gguf", "source": {}}, "source: missing: sha256, size, license"),
        (
            {"name": "x", "model_path": "w.gguf", "source": {**SOURCE, "url": "https://a/b"}},
            "source: needs one of package (with version and member), url, and hub_model (with hub_file)",
        ),
        (
            {"name": "x", "model_path": "w.gguf", "source": {**SOURCE, "member": None}},
            "package: needs version and member",
        ),
        (
            {"name": "x", "model_path": "w.gguf", "source": {**HASH, "url": "ftp://a/b"}},
            "url: 'ftp://a/b' is not an address of http or https",
        ),
        (
            {"name": "x", "model_path": "w.gguf", "source": {**HASH, "url": "https://a/b", "convert": "minilm"}},
            "convert: only the member of a package is converted",
        ),
        (
            {"name": "x", "model_path": "w.gguf", "source": {**HASH, "hub_model": "a/b"}},
            "hub_model: must be like owner/name, with a hub_file",
        ),
        (
            {"name": "x", "model_path": "w.gguf", "source": {**SOURCE, "sise": 1}},
            "source: sise: no such parameter",
        ),
        ({"name": "x", "model_path": "w.gguf", "source": {**SOURCE, "size": 0}}, "size: 0 is less than 1"),
        (
            {"name": "x", "model_path": "w.gguf", "source": {**SOURCE, "convert": "x"}},
            "convert: 'x' is not one of minilm",
        ),
        (
            {"name": "x", "model_path": "w.gguf", "source": {**SOURCE, "sha256": "abc"}},
            "sha256: 'abc' is not a SHA-256",
        ),
        (
            {"name": "x", "model_path": "w.gguf", "source": {**SOURCE, "package": "--index"}},
            "not a valid name of a package",
        ),
        (
            {"name": "x", "model_path": "w.gguf", "source": {**SOURCE, "package": "a @ http://b"}},
            "not a valid name of a package",
        ),
        (
            {"name": "x", "model_path": "w.gguf", "source": {**SOURCE, "version": ">=1"}},
            "'>=1' is not a valid version",
        ),
        (
            {"name": "x", "model_path": "w.gguf", "source": {**SOURCE, "later_parts": [f"{'0' * 64}:1"]}},
            "later_parts: only a url or a hub_model may have several files",
        ),
        (
            {"name": "x", "model_path": "w.gguf", "source": {**HASH, "url": "https://a/b", "later_parts": ["abc:1"]}},
            "later_parts: 'abc:1' is not like SHA256:SIZE",
        ),
        (
            {"name": "x", "model_path": "w.gguf", "source": {**HASH, **PARTS, "url": "https://a/b"}},
            "url: with 1 later_parts, must be like NAME-00001-of-00002.gguf",
        ),
        (
            {
                "name": "x",
                "model_path": "w.gguf",
                "source": {**HASH, **PARTS, "url": "https://a/b-00001-of-00002.gguf"},
            },
            "model_path: with 1 later_parts, must be like NAME-00001-of-00002.gguf",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_its_place_and_key(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        load(table)
    assert str(refused.value).startswith("my.toml")


def test_two_tables_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="'mine' is there twice"):
        load({"name": "mine", "engine": "echo"}, {"name": "mine", "engine": "echo"})


def test_two_models_that_share_their_variables_are_refused() -> None:
    with pytest.raises(ConfigError, match="share the environment prefix SMOLLM2_135M_"):
        load({"name": "smollm2.135m", "engine": "echo"})


def test_weights_that_lie_there_are_models_too(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = tiny_gguf.make(tmp_path / "sub" / "Tiny-Embed.F32.gguf", "embed")
    found = entry(load(folder=tmp_path).with_files(), "tiny-embed.f32")
    assert (found.engine, found.worker_type, found.enabled, found.start) == (
        "llama.cpp",
        "text2vec",
        True,
        False,
    )
    assert (found.model_path, found.description) == (str(path), "tiny-bert-embed")
    assert load(folder=tmp_path).names_to_start(["tiny-embed.f32"]) == ["tiny-embed.f32"]


@pytest.mark.parametrize(
    ("architecture", "engine", "kind", "fault"),
    [
        ("Qwen3ForCausalLM", "transformers", "llm", None),
        ("GPT2LMHeadModel", "transformers", "llm", None),
        ("BertForSequenceClassification", "sentence-transformers", "reranker", None),
        ("ViTForImageClassification", "sentence-transformers", None, "no engine here runs a ViTForImageClassification"),
    ],
)
def test_folders_of_hugging_face_are_models_too(tmp_path: Path, architecture, engine, kind, fault) -> None:
    folder = tmp_path / "publisher" / "Some-Model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(f'{{"architectures": ["{architecture}"]}}')
    (folder / "model.safetensors").touch()
    found = entry(load(folder=tmp_path).with_files(), "some-model")
    assert (found.engine, found.worker_type, found.enabled) == (engine, kind, fault is None)
    assert found.description == (fault or architecture)
    assert found.model_path == str(folder)


def test_a_folder_without_safetensors_is_listed_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "modules.json").write_text("[]")
    found = entry(load(folder=tmp_path).with_files(), "old")
    assert (found.engine, found.worker_type, found.enabled) == ("sentence-transformers", "text2vec", False)
    assert "allow_pickle" in found.description


def test_a_folder_whose_config_is_broken_is_listed_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    found = entry(load(folder=tmp_path).with_files(), "broken")
    assert not found.enabled
    assert "config.json can't be read" in found.description


def test_weights_that_an_entry_names_are_not_found_a_second_time(tmp_path: Path) -> None:
    tiny_gguf.make(tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf")
    tiny_gguf.make(tmp_path / "mine.gguf")
    catalog = load({"name": "other", "model_path": str(tmp_path / "mine.gguf")}, folder=tmp_path)
    assert [e.name for e in catalog.with_files()] == [e.name for e in catalog]


def test_a_file_that_can_not_be_run_is_listed_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    found = entry(load(folder=tmp_path).with_files(), "page")
    assert not found.enabled
    assert "is not a GGUF file (it starts with b'<htm')" in found.description


def test_a_file_is_read_again_once_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "late.gguf"
    path.write_bytes(b"GGUF")
    catalog = load(folder=tmp_path)
    assert not entry(catalog.with_files(), "late").enabled
    tiny_gguf.make(path)
    assert entry(catalog.with_files(), "late").enabled


def test_a_found_file_whose_name_is_taken_is_listed_and_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    first = tiny_gguf.make(tmp_path / "a" / "echo.gguf")
    second = tiny_gguf.make(tmp_path / "Echo.gguf")
    catalog = load(folder=tmp_path).with_files()
    assert entry(catalog, "echo").engine == "echo"
    for path in (first, second):
        found = entry(catalog, str(path))
        assert not found.enabled
        assert "another model has the name 'echo'" in found.description
        assert f"model_path = '{path}'" in found.description


def test_found_files_with_names_in_other_scripts_never_break_the_catalogue(tmp_path: Path) -> None:
    for name in ("модель", "模型", "मॉडल"):
        tiny_gguf.make(tmp_path / f"{name}.gguf")
    assert len(load(folder=tmp_path).with_files()) == 4 + 3


def test_the_first_part_stands_for_a_model_in_several_files(tmp_path: Path) -> None:
    tiny_gguf.make(tmp_path / "big-00001-of-00002.gguf")
    tiny_gguf.make(tmp_path / "big-00002-of-00002.gguf")
    assert [e.name for e in load(folder=tmp_path).with_files()][4:] == ["big"]
