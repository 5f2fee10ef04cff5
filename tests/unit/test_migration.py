"""The page on migration: its configuration files fit, and the keys in its tables exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from modelyard.cli.examine import examine
from modelyard.engines import engine_class
from modelyard.settings.params import params_of
from modelyard.settings.settings import Settings
from running import ROOT

PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
FILES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("number", "role", "models"), [(0, "gateway", 3), (1, "worker", 1)])
def test_the_files_of_the_page_are_configurations(number: int, role: str, models: int, tmp_path: Path):
    path = tmp_path / "modelyard.toml"
    path.write_text(FILES[number])
    report = examine({"config": str(path), "role": role, "state_dir": str(tmp_path)}, [], {}, kept=False)
    assert report.faults == []
    assert len(report.models) == models


def test_the_file_of_litellm_and_ours_are_of_the_same_models(tmp_path: Path):
    (theirs,) = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
    path = tmp_path / "modelyard.toml"
    path.write_text(FILES[0])
    report = examine({"config": str(path), "role": "gateway", "state_dir": str(tmp_path)}, [], {}, kept=False)
    ours = {model.name: {name: it.value for name, it in model.params.items()} for model in report.models}
    assert set(ours) == {entry["model_name"] for entry in theirs["model_list"]}
    for entry in theirs["model_list"]:
        params, model = entry["litellm_params"], ours[entry["model_name"]]
        assert (model["backend_model"] or entry["model_name"]) == params["model"].partition("/")[2]
        assert params.get("api_base", "").removesuffix("/v1") in model["base_url"]
        assert model["limit_model_concurrency"] == params.get("max_parallel_requests", 64)
    assert report.settings.aliases == theirs["router_settings"]["model_group_alias"]
    assert [report.settings.fallbacks] == theirs["litellm_settings"]["fallbacks"]
    assert report.settings.key_store == theirs["general_settings"]["database_url"]


def test_the_names_in_the_tables_are_ours():
    engines = [params_of(engine_class(name).Params) for name in ("openai", "transformers", "llama.cpp")]
    known = {name for params in (params_of(Settings), *engines) for name in params} | {"worker_type", "name", "engine"}
    cells = re.findall(r"^\| .*? \| (.*?) \|$", PAGE, re.MULTILINE)
    assert len(cells) > 40
    named = {name for cell in cells for name in re.findall(r"`([a-z_]{4,})(?: =|`)", cell)}
    assert {"base_url", "strip_params", "whole_timeout", "key_store", "device", "advertise"} <= named
    others = {"standalone", "gateway", "transformers", "openai", "list", "start", "stop", "restart", "modelyard"}
    assert named - known - others == set()
