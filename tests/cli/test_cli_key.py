"""modelyard key: a key is shown once, its hash kept in the store of the service; listed and revoked there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import Ran, modelyard
from modelyard.access.keys import Key, Limits
from modelyard.access.tokens import digest_of
from modelyard.cluster.keys import open_key_store
from running import ROOT


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'keys.db'}"


def key(url: str, *words: object) -> Ran:
    return modelyard("key", *words, MODELYARD_KEY_STORE=url)


def stored(url: str) -> list[Key]:
    store = open_key_store(url)
    keys = store.all()
    store.close()
    return keys


def test_a_new_key_is_all_of_standard_output_and_its_hash_is_in_the_store(url, tmp_path):
    ran = key(url, "new", "--name", "shop")
    assert ran.status == 0, ran.err
    secret = ran.out.removesuffix("\n")
    assert re.fullmatch(r"modelyard_[\w-]{43}", secret)
    (made,) = stored(url)
    assert (made.name, made.digest, made.scopes, made.models) == ("shop", digest_of(secret), {"infer"}, ())
    assert (made.expires, made.limits) == (None, Limits())
    assert ran.complaint == f"shop ({made.id}) is in {url}; the key is not shown again"
    assert secret.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_the_command_that_the_sign_in_page_names_makes_a_key(url):
    page = (ROOT / "blueprints/pages/templates/sign_in.html").read_text()
    (words,) = re.findall(r"<code>modelyard key (.*?)</code>", page)
    ran = key(url, *words.split())
    assert ran.status == 0, ran.err
    assert ["admin" in made.scopes for made in stored(url)] == [True]


def test_all_of_a_key_can_be_given(url):
    words = ["--scope", "infer", "--scope", "worker", "--model", "small", "--model", "qwen*", "--expires", "2999-01-01"]
    limits = ["--requests-per-minute", 600, "--tokens-per-minute", 100_000, "--parallel", 8]
    ran = key(url, "new", "--name", "ci", "--json", *words, *limits)
    (made,) = stored(url)
    assert made.limits == Limits(600, 100_000, 8)
    assert (ran.err, digest_of(ran.json.pop("key"))) == ("", made.digest)
    document = {**ran.json, "created": None}
    del document["key"]
    assert document == {
        "id": made.id,
        "name": "ci",
        "state": "valid",
        "scopes": ["infer", "worker"],
        "models": ["small", "qwen*"],
        "created": None,
        "expires": "2999-01-01T00:00:00Z",
        "revoked": None,
        "requests_per_minute": 600,
        "tokens_per_minute": 100_000,
        "parallel": 8,
    }
    (row,) = key(url, "list").table
    assert row == {
        **{"ID": made.id, "NAME": "ci", "SCOPES": "infer+worker", "MODELS": "small,qwen*"},
        **{"EXPIRES": "2999-01-01T00:00:00Z", "REQUESTS/MIN": "600", "TOKENS/MIN": "100000", "PARALLEL": "8"},
    }


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        ([], 2, "--name"),
        (["--name", "two words"], 2, "the name may have"),
        (["--name", "key_0123456789ab"], 2, "how ids of keys look"),
        (["--name", "x", "--scope", "root"], 2, "'root' is not one of"),
        (["--name", "x", "--model", ""], 2, "none may be empty"),
        (["--name", "x", "--expires", "soon"], 2, "'soon' is not a duration"),
        (["--name", "x", "--expires", "2020-01-01"], 2, "2020-01-01 is past"),
        (["--name", "x", "--parallel", "0"], 2, "0 is not in the range"),
        (["--name", "x", "--requests-per-minute", "many"], 2, "'many' is not a valid integer"),
        (["--name", "x", "--key-store", "none"], 1, "key_store none: there are no keys"),
        (["--name", "x", "--key-store", "memory:"], 1, "memory: is in one process"),
        (["--name", "x", "--key-store", "ftp://x"], 1, "unknown kind"),
        (["--name", "x", "--key-store", "sqlite:////absent/x.db"], 1, "there is no folder /absent: make it"),
    ],
)
def test_what_does_not_fit_is_one_line_and_makes_nothing(url, words, status, why):
    ran = key(url, "new", *words)
    assert (ran.status, ran.out) == (status, "")
    assert why in ran.complaint
    assert stored(url) == []


def test_keys_of_a_controller_need_a_store_that_is_named():
    ran = modelyard("key", "list", MODELYARD_REGISTRY="http://host:8000/api")
    assert ran.status == 1
    assert "set key_store to the address of a store, as in redis://host:6379/0" in ran.complaint


def test_without_an_address_keys_are_in_the_folder_of_the_service(tmp_path):
    environ = {"MODELYARD_STATE_DIR": str(tmp_path)}
    assert modelyard("key", "new", "--name", "ci", "--port", 9000, **environ).status == 0
    assert [made.name for made in stored(f"sqlite:///{tmp_path / 'standalone-9000' / 'keys.db'}")] == ["ci"]
    assert "there are no keys" in modelyard("key", "list", **environ).out
    assert len(modelyard("key", "list", "--instance", "standalone-9000", **environ).table) == 1


def test_keys_are_beside_the_file_of_a_registry(tmp_path):
    registry = f"sqlite:///{tmp_path / 'registry.db'}"
    assert modelyard("key", "new", "--name", "ci", "--registry", registry).status == 0
    assert (tmp_path / "registry.keys.db").exists()


def test_a_revoked_key_is_listed_when_all_are(url):
    for name in ("one", "two"):
        key(url, "new", "--name", name)
    one, two = stored(url)
    ran = key(url, "revoke", "one")
    assert (ran.status, ran.out) == (0, f"one ({one.id}) is revoked in {url}\n")
    assert [row["NAME"] for row in key(url, "list").table] == ["two"]
    assert [(row["NAME"], row["STATE"]) for row in key(url, "list", "--all").table] == [
        ("one", "revoked"),
        ("two", "-"),
    ]
    assert key(url, "revoke", two.id, "--json").json == {"id": two.id, "name": "two", "revoked": True}
    assert key(url, "revoke", one.id, "--forget").out == f"one ({one.id}) is forgotten in {url}\n"
    assert [entry["name"] for entry in key(url, "list", "--all", "--json").json] == ["two"]


@pytest.mark.parametrize(("name", "status", "why"), [("absent", 1, "no key 'absent'"), ("ü", 2, "the name may have")])
def test_a_key_that_is_not_there_can_not_be_revoked(url, name, status, why):
    ran = key(url, "revoke", name)
    assert (ran.status, ran.out) == (status, "")
    assert why in ran.complaint
