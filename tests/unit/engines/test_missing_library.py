"""An engine whose library is not installed names the extra that has it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from modelyard.engines import engine_class
from modelyard.errors import BadModelFile, MissingLibrary


@pytest.mark.parametrize("name", ["transformers", "sentence-transformers"])
def test_the_start_names_the_extra(monkeypatch, tmp_path: Path, name):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    for module in ("torch", "transformers", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, module, None)
    engine = engine_class(name)(engine_class(name).Params(model_name="m", engine=name), tmp_path)
    with pytest.raises(MissingLibrary, match=rf"pip install 'modelyard\[{name}\]'"):
        engine.start(lambda sentence: None)


@pytest.mark.parametrize("name", ["transformers", "sentence-transformers"])
def test_a_model_needs_a_folder_or_a_name_on_the_hub(tmp_path: Path, name):
    engine = engine_class(name)
    for path, words in ((None, "neither a model_path"), (tmp_path, "it has no config.json")):
        with pytest.raises(BadModelFile, match=words):
            engine(engine.Params(model_name="m", engine=name), path).start(lambda sentence: None)
