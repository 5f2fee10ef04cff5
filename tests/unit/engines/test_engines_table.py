"""An engine is a name of the table; a dotted path is for the operator, and refused with the reason where it is none."""

from __future__ import annotations

import subprocess
import sys

import pytest
import steered
from modelyard.engines import ENGINES, engine_class, load_class
from modelyard.engines.base import Engine
from modelyard.engines.echo import Echo
from modelyard.errors import ConfigError
from modelyard.types import WorkerType


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_of_the_table_is_there_under_its_name(name):
    found = engine_class(name)
    assert issubclass(found, Engine)
    assert found.name == name
    assert found.default_worker_type in found.worker_types


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"engine 'vllm' is unknown: there are echo, llama\.cpp"):
        engine_class("vllm")


def test_the_table_can_not_be_changed():
    with pytest.raises(TypeError):
        ENGINES["mine"] = "os:system"  # type: ignore[index]


@pytest.mark.parametrize("path", ["steered:Steered", "steered.Steered"])
def test_a_dotted_path_may_be_written_in_two_ways(path):
    assert load_class(path) is steered.Steered


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("nothing_of_that_name:X", "can't be imported: No module named 'nothing_of_that_name'"),
        ("steered:Nothing", "can't be imported: .*Nothing"),
        ("steered", "can't be imported"),
        ("", "can't be imported"),
        (":X", "can't be imported"),
        ("steered:", "can't be imported"),
        (".relative:X", "can't be imported"),
        ("steered:no_class", "is not a class"),
        ("steered:NoEngine", r"is not a subclass of modelyard\.engines\.base\.Engine"),
        ("os:system", "is not a class"),
        ("steered:AsyncSteered", "is asynchronous: generate_stream is a coroutine.*give it a blocking method"),
        ("steered:AsyncStart", "is asynchronous: start is a coroutine"),
    ],
)
def test_what_can_not_be_an_engine_is_refused_with_the_reason(path, why):
    with pytest.raises(ConfigError, match=why) as caught:
        load_class(path)
    assert repr(path) in str(caught.value)


def test_a_class_that_breaks_while_it_is_imported_is_refused_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "broken_engine.py").write_text("1 / 0\n")
    (tmp_path / "misspelt_engine.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"broken_engine.*division by zero"):
        load_class("broken_engine:X")
    with pytest.raises(ConfigError, match="misspelt_engine"):
        load_class("misspelt_engine:X")


def test_an_asynchronous_class_is_refused_for_that_although_it_is_no_engine_of_ours(tmp_path, monkeypatch):
    (tmp_path / "peers_worker.py").write_text(
        "class Worker:\n    async def generate(self, params): ...\n    async def async_generate(self, params): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="asynchronous: generate is a coroutine"):
        load_class("peers_worker:Worker")


def test_naming_an_engine_imports_it_and_its_library_only_when_a_model_starts():
    script = (
        "import sys, modelyard.engines\n"
        "print('modelyard.engines.llama_cpp' in sys.modules)\n"
        "modelyard.engines.engine_class('llama.cpp')\n"
        "print('modelyard.engines.llama_cpp' in sys.modules, 'xllamacpp' in sys.modules)\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout
    assert told.split() == ["False", "True", "False"]


def test_an_embedder_has_many_slots_by_default():
    assert Engine.default_slots[WorkerType.TEXT2VEC] == 64 == Echo.default_slots[WorkerType.TEXT2VEC]


def test_an_embedder_and_a_reranker_have_a_line_for_many_small_requests():
    """DB-GPT's server sends 600 texts as 150 requests at once."""
    for kind in (WorkerType.TEXT2VEC, WorkerType.RERANKER):
        assert Engine.default_waiting[kind] == 1000 == Echo.default_waiting[kind]
