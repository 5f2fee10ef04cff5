"""The pytest plugin: an application's tests need no model, and who does not use it does not pay for it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from flask import Flask, Response
from modelyard import Client, Modelyard, create_app, current_modelyard, errors
from modelyard.access.keys import new_key
from modelyard.access.tokens import digest_of, parse_scopes
from modelyard.engines.scripted import Answers
from modelyard.server.runtime import Runtime
from modelyard.settings.settings import Settings
from modelyard.testing.service import taken_over
from modelyard.types import GenerateRequest
from modelyard.worker.protocol import WorkerManager
from running import ROOT, WITHOUT_PLUGINS, wait_until

pytest_plugins = ["modelyard.testing", "pytester"]


@pytest.fixture(autouse=True)
def nothing_is_left(modelyard_answers: Answers) -> None:
    """Ask for the answers before everything else: whatever is asked for later ends earlier."""


# In process


@pytest.fixture
def shop() -> Flask:
    """An application with a view that asks the model it names, by its manager, and one that streams."""
    app = Flask("shop")
    Modelyard(app, url_prefix="/ml", models=["smollm2-135m", "minilm-l6"])

    @app.get("/slogan/<thing>")
    def slogan(thing: str) -> dict[str, str]:
        request = GenerateRequest("smollm2-135m", [{"role": "user", "content": f"A slogan for {thing}"}])
        try:
            return {"slogan": current_modelyard().manager.generate(request).text}
        except errors.Overloaded as error:
            return {"busy": str(error.retry_after)}

    @app.get("/story")
    def story() -> Response:
        stream = current_modelyard().manager.generate_stream(GenerateRequest("smollm2-135m", prompt="Once"))
        response = Response("".join(burst.pieces) for burst in stream if burst is not None)
        response.call_on_close(stream.close)
        return response

    return app


def test_an_application_asks_its_own_models_and_gets_what_the_test_says(
    shop: Flask, modelyard_take_over: Callable[..., Runtime], modelyard_answers: Answers
) -> None:
    modelyard_take_over(shop)
    modelyard_answers.say("Just ", "do it")
    assert shop.test_client().get("/slogan/shoes").json == {"slogan": "Just do it"}
    assert modelyard_answers.prompts == ["A slogan for shoes"]
    assert modelyard_answers.asked[0].model == "smollm2-135m"


def test_an_unscripted_model_repeats_what_was_said(shop: Flask, modelyard_take_over, modelyard_answers) -> None:
    modelyard_take_over(shop)
    assert shop.test_client().get("/slogan/shoes").json == {"slogan": "A slogan for shoes"}
    modelyard_answers.otherwise(lambda asked: asked.prompt.upper())
    assert shop.test_client().get("/slogan/shoes").json == {"slogan": "A SLOGAN FOR SHOES"}
    modelyard_answers.otherwise("always this")
    assert shop.test_client().get("/slogan/shoes").json == {"slogan": "always this"}


def test_a_refusal_reaches_the_view(shop: Flask, modelyard_take_over, modelyard_answers) -> None:
    modelyard_take_over(shop)
    modelyard_answers.refuse(retry_after=7)
    assert shop.test_client().get("/slogan/shoes").json == {"busy": "7"}


def test_the_worker_api_of_the_application_answers_too(shop: Flask, modelyard_take_over, modelyard_answers) -> None:
    runtime = modelyard_take_over(shop)
    client = shop.test_client()
    models = client.get("/ml/readyz").json["models"]
    assert [(model["model"], model["state"], model["reason"], model["context_length"]) for model in models] == [
        ("smollm2-135m@llm", "ready", None, 4096),
        ("minilm-l6@text2vec", "ready", None, 4096),
    ]
    modelyard_answers.say("Hi")
    asked = client.post("/ml/worker/generate", json={"model": "smollm2-135m", "prompt": "x"})
    assert asked.json["text"] == "Hi"
    assert len(client.post("/ml/worker/embeddings", json={"model": "minilm-l6", "input": ["a"]}).json[0]) == 384
    assert runtime is shop.extensions["modelyard"]


def test_a_reader_who_leaves_is_seen(shop: Flask, modelyard_take_over, modelyard_answers) -> None:
    modelyard_take_over(shop)
    modelyard_answers.hold("Once ", "upon")
    response = shop.test_client().get("/story", buffered=False)
    pieces = iter(response.response)
    assert [next(pieces), next(pieces)] == [b"Once ", b"upon"]
    response.close()
    (asked,) = modelyard_answers.asked
    assert asked.ended.wait(10)
    assert asked.cancelled


def test_an_answer_that_is_held_goes_on_when_it_is_released(
    modelyard_manager: WorkerManager, modelyard_answers
) -> None:
    modelyard_answers.hold("a")
    timer = threading.Timer(0.05, modelyard_answers.release)
    timer.start()
    assert modelyard_manager.generate(GenerateRequest("echo", prompt="x")).text == "a"
    timer.join()
    assert not modelyard_answers.asked[0].cancelled


def test_the_application_is_afterwards_what_it_was(shop: Flask, modelyard_answers: Answers, tmp_path: Path) -> None:
    runtime = shop.extensions["modelyard"]
    was, manager, settings = runtime.__dict__, runtime.manager, runtime.settings
    before = threading.active_count()
    with taken_over(shop, {}, modelyard_answers, tmp_path) as scripted:
        assert scripted is runtime
        assert runtime.manager is not manager
        assert runtime.settings.state_path.is_relative_to(tmp_path)
    assert runtime.__dict__ is was
    assert (runtime.manager, runtime.settings) == (manager, settings)
    wait_until(lambda: threading.active_count() == before, "every thread ends")


def test_the_keys_of_the_application_are_neither_asked_nor_changed(modelyard_answers: Answers, tmp_path: Path) -> None:
    app = create_app(Settings(models=["echo"], state_dir=str(tmp_path), key_store=f"sqlite:///{tmp_path}/keys.db"))
    keys = app.extensions["modelyard"].keys

    def status() -> int:
        return app.test_client().get("/v1/models").status_code

    keys.add(new_key("theirs", digest_of("theirs"), parse_scopes("infer")))
    with taken_over(app, {}, modelyard_answers, tmp_path) as runtime:
        assert runtime.keys is keys
        assert (keys.all(), status()) == ([], 200)
        keys.add(new_key("ours", digest_of("ours"), parse_scopes("infer")))
        assert status() == 401
    assert [key.name for key in keys.all()] == ["theirs"]
    keys.store.close()


def test_a_service_of_ours_with_a_registry_is_taken_over_as_well(modelyard_take_over, modelyard_answers) -> None:
    app = create_app(Settings(models=["echo"], role="standalone"))
    for said in ("one", "two"):
        modelyard_take_over(app)
        modelyard_answers.say(said)
        answer = app.test_client().post("/api/worker/generate", json={"model": "echo", "prompt": "x"})
        assert answer.json["text"] == said


def test_what_can_not_be_taken_over_is_refused_with_the_reason(modelyard_take_over) -> None:
    with pytest.raises(RuntimeError, match=r"Modelyard\(app\) first"):
        modelyard_take_over(Flask("without"))
    app = Flask("nameless")
    Modelyard(app)
    with pytest.raises(RuntimeError, match="names no models"):
        modelyard_take_over(app)
    modelyard_take_over(app, {"big": "llm"})
    assert app.extensions["modelyard"].manager.generate(GenerateRequest("big", prompt="Hi")).text == "Hi"


# Over HTTP


def test_a_service_over_http_says_what_the_test_says(modelyard_client: Client, modelyard_answers: Answers) -> None:
    modelyard_answers.say("Hel", "lo", finish_reason="length")
    with modelyard_client.stream("Hi there") as stream:
        assert list(stream) == ["Hel", "lo"]
    assert (stream.finish_reason, stream.usage) == (
        "length",
        {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4},
    )
    assert modelyard_client.chat("and now?", max_new_tokens=1) == "and"
    assert modelyard_answers.prompts == ["Hi there", "and now?"]
    asked = modelyard_answers.asked[1].request
    assert asked is not None
    assert asked.max_new_tokens == 1


def test_failures_over_http_are_those_of_a_service(modelyard_client: Client, modelyard_answers: Answers) -> None:
    modelyard_answers.fail("out of luck", "Hel")
    stream = modelyard_client.stream("x")
    assert next(stream) == "Hel"
    with pytest.raises(errors.EngineError, match="out of luck"):
        next(stream)
    modelyard_answers.fail(errors.PromptTooLong("too long"))
    modelyard_answers.refuse(9)
    modelyard_answers.fail()
    with pytest.raises(errors.PromptTooLong):
        modelyard_client.chat("x")
    with pytest.raises(errors.Overloaded) as full:
        modelyard_client.embeddings(["x"])
    assert full.value.retry_after == 9
    with pytest.raises(errors.EngineError):
        modelyard_client.rerank("q", ["x"])
    assert modelyard_client.rerank("a", ["a", "b"], model="echo-embed")[0] == pytest.approx(1.0)
    assert [asked.call for asked in modelyard_answers.asked[-3:]] == ["embeddings", "embeddings", "embeddings"]


def test_a_client_that_hangs_up_is_seen(modelyard_client: Client, modelyard_answers: Answers) -> None:
    modelyard_answers.hold("Hel")
    with modelyard_client.stream("x") as stream:
        assert next(stream) == "Hel"
    (asked,) = modelyard_answers.asked
    assert asked.ended.wait(10)
    assert asked.cancelled


def test_pieces_may_take_their_time(modelyard_client: Client, modelyard_answers: Answers) -> None:
    modelyard_answers.say("a", "b", delay=0.3)
    assert list(modelyard_client.stream("x")) == ["a", "b"]
    assert modelyard_answers.asked[0].ended.is_set()


def test_a_503_over_http_says_when_to_come_again(modelyard_url: str, modelyard_answers: Answers) -> None:
    modelyard_answers.refuse(3)
    body = {"model": "echo", "prompt": "x"}
    answer = requests.post(f"{modelyard_url}/worker/generate", json=body, timeout=20)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "3")


class TestThePageOfTheClient:
    @pytest.fixture
    def modelyard_models(self) -> dict[str, str]:
        return {"smollm2-135m": "llm", "minilm-l6": "text2vec"}

    def test_its_first_example_works(self, modelyard_url, modelyard_answers, capsys) -> None:
        page = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
        example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
        modelyard_answers.say("Because.")
        modelyard_answers.say("Once ", "upon a time.")
        exec(example.replace("http://127.0.0.1:8000", modelyard_url))
        assert capsys.readouterr().out == "Because.\nOnce upon a time."
        assert [asked.call for asked in modelyard_answers.asked][2:] == ["embeddings", "embeddings"]


# As a plugin


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run pytest in a process of its own, as an application's tests are, without plugins that import much."""
    return pytester.runpytest_subprocess("-p", "modelyard.testing", *WITHOUT_PLUGINS, "-W", "error", *arguments)


def examples() -> list[str]:
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_the_examples_of_the_page_work(pytester: pytest.Pytester) -> None:
    for block in examples():
        name = re.match(r"# (\S+\.py)\n", block)
        assert name, f"each example says its file: {block[:60]}"
        (pytester.path / name[1]).write_text(block)
    result = run(pytester)
    tests = sum(block.count("\ndef test_") for block in examples())
    assert tests > 3
    result.assert_outcomes(passed=tests)


def test_every_fixture_has_its_prefix_and_says_what_it_is(pytester: pytest.Pytester) -> None:
    shown = run(pytester, "--fixtures", "-q").stdout.str()
    own = shown.partition("defined from modelyard.testing")[2].partition("fixtures defined from")[0]
    names = re.findall(r"^(\w+) -- ", own, re.MULTILINE)
    assert sorted(names) == sorted(
        f"modelyard_{name}" for name in ("answers", "app", "client", "manager", "models", "take_over", "url")
    )
    assert "no docstring available" not in own
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in names)


def test_it_loads_nothing_for_those_who_do_not_use_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing_is_loaded():
            ours = {name for name in sys.modules if name.startswith("modelyard")}
            assert ours == {"modelyard", "modelyard.version", "modelyard.testing"}
            assert not {"flask", "werkzeug", "requests", "marshmallow", "orjson", "click"} & set(sys.modules)
        """
    )
    run(pytester).assert_outcomes(passed=1)


def test_the_environment_of_the_tests_changes_nothing(pytester: pytest.Pytester, monkeypatch) -> None:
    monkeypatch.setenv("MODELYARD_ROLE", "gateway")
    monkeypatch.setenv("MODELYARD_REGISTRY", "http://nowhere.invalid/api")
    monkeypatch.setenv("MODELYARD_TOKEN", "secret")
    monkeypatch.setenv("ECHO_DELAY", "3600")
    pytester.makepyfile("def test_it(modelyard_client):\n    assert modelyard_client.chat('Hi') == 'Hi'\n")
    run(pytester).assert_outcomes(passed=1)
