"""modelyard token: a token is shown once, its hash kept; and the other commands send the one they are given."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Ran, modelyard
from modelyard.access.tokens import Token, digest_of, new_secret, parse, parse_scopes, read_file
from running import Service, Services


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def new(*words: object, **environ: str) -> str:
    """Make a token, which works; return it."""
    ran = modelyard("token", "new", *words, **environ)
    assert ran.status == 0, ran.err
    secret = ran.out.strip()
    assert ran.out == f"{secret}\n"
    return secret


# new


def test_a_new_token_is_all_of_standard_output_and_its_hash_is_in_the_file(file):
    ran = modelyard("token", "new", "--scope", "infer", "--scope", "worker", "--name", "gpu-1", "--file", file)
    assert ran.status == 0
    secret = ran.out.removesuffix("\n")
    assert re.fullmatch(r"modelyard_[\w-]{43}", secret)
    assert "gpu-1 (infer+worker)" in ran.err
    assert secret not in ran.err
    assert read_file(file) == [Token("gpu-1", parse_scopes("infer+worker"), digest_of(secret))]
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_words_it_infers_has_a_made_up_name_and_is_kept_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = modelyard("token", "new")
    assert ran.status == 0
    made = parse(ran.err.splitlines()[-1])
    assert (made.scopes, made.digest) == ({"infer"}, digest_of(ran.out.strip()))
    assert re.fullmatch(r"infer-[0-9a-f]{6}", made.name)
    assert list(tmp_path.iterdir()) == []


def test_tokens_are_added_below_each_other(file):
    secrets = [new("--file", file, "--scope", scope) for scope in ("infer", "admin")]
    found = read_file(file)
    assert [one.digest for one in found] == [digest_of(secret) for secret in secrets]
    assert found[1].scopes == {"infer", "worker", "metrics", "admin"}


def test_the_file_may_be_said_in_the_environment(file):
    secret = new(MODELYARD_TOKENS_FILE=str(file))
    assert read_file(file)[0].digest == digest_of(secret)


def test_as_json_it_is_one_object(file):
    ran = modelyard("token", "new", "--json", "--scope", "admin", "--name", "me", "--file", file)
    assert ran.err == ""
    made = ran.json
    digest = digest_of(made["token"]).hex()
    rest = {"name": "me", "scopes": ["admin", "infer", "metrics", "worker"], "sha256": digest, "file": str(file)}
    assert made == {"token": made["token"], **rest}


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (["--scope", "root"], 2, "'root' is not one of"),
        (["--name", "two words"], 2, "--name: "),
        (["--name", "#x"], 2, "--name: "),
        (["--name", ""], 0, ""),
        (["--file", "/nonexistent/folder/tokens"], 1, "No such file or directory"),
        (["--file", "/"], 2, "directory"),
    ],
)
def test_what_does_not_fit_is_one_line(words, status, why):
    ran = modelyard("token", "new", *words)
    assert ran.status == status
    if status:
        assert ran.out == ""
        assert why in ran.complaint


def test_a_name_that_is_taken_changes_nothing(file):
    new("--file", file, "--name", "ci")
    before = file.read_bytes()
    ran = modelyard("token", "new", "--file", file, "--name", "ci")
    assert (ran.status, ran.out, file.read_bytes()) == (1, "", before)
    assert "has a token named ci already" in ran.complaint


@pytest.mark.parametrize("words", [["new"], ["list"], ["revoke", "x"]])
def test_a_file_that_is_none_of_tokens_is_left_alone(file, words):
    file.write_text("[service]\nport = 1\n")
    ran = modelyard("token", *words, "--file", file)
    assert (ran.status, ran.out) == (1, "")
    assert f"{file}, line 1" in ran.complaint
    assert file.read_text() == "[service]\nport = 1\n"


# list, revoke


def test_the_list_has_names_and_scopes_and_no_secret(file):
    secret = new("--file", file, "--name", "ci", "--scope", "worker", "--scope", "infer")
    new("--file", file, "--name", "me", "--scope", "admin")
    ran = modelyard("token", "list", "--file", file)
    assert [(row["NAME"], row["SCOPES"]) for row in ran.table] == [("ci", "infer+worker"), ("me", "admin")]
    assert digest_of(secret).hex().startswith(ran.table[0]["SHA256"])
    assert secret not in ran.out
    plain = modelyard("token", "list", "--json", MODELYARD_TOKENS_FILE=str(file)).json
    assert plain[0] == {"name": "ci", "scopes": ["infer", "worker"], "sha256": digest_of(secret).hex()}


def test_an_empty_file_says_how_to_make_one(file):
    file.touch(mode=0o600)
    ran = modelyard("token", "list", "--file", file)
    assert (ran.status, "modelyard token new" in ran.out) == (0, True)
    assert modelyard("token", "list", "--file", file, "--json").json == []


def test_a_revoked_token_is_gone_and_the_others_stay(file):
    new("--file", file, "--name", "old")
    kept = new("--file", file, "--name", "kept")
    ran = modelyard("token", "revoke", "old", "--file", file)
    assert (ran.status, ran.out) == (0, "old is revoked\n")
    assert [one.digest for one in read_file(file)] == [digest_of(kept)]
    again = modelyard("token", "revoke", "old", "--file", file)
    assert (again.status, again.complaint) == (1, f"{file} has no token named old; there are: kept")
    assert modelyard("token", "revoke", "kept", "--file", file, "--json").json == {"name": "kept", "revoked": True}


@pytest.mark.parametrize("words", [["list"], ["revoke", "x"]])
def test_without_a_file_it_is_said_how_to_name_one(words):
    ran = modelyard("token", *words)
    assert (ran.status, ran.out) == (2, "")
    assert "--file, or MODELYARD_TOKENS_FILE" in ran.complaint


# What the other commands do with tokens


@pytest.fixture(scope="module")
def secrets() -> dict[str, str]:
    return {scope: new_secret() for scope in ("infer", "admin")}


@pytest.fixture(scope="module")
def service(run_module: Services, secrets: dict[str, str]) -> Iterator[Service]:
    entries = ",".join(Token(name, parse_scopes(name), digest_of(secret)).line for name, secret in secrets.items())
    service = run_module.start('[[models]]\nname = "echo"\n', tokens=entries)
    yield service
    service.kill()


def models(service: Service, *words: object, **environ: str) -> Ran:
    return modelyard("models", *words, "--url", f"http://127.0.0.1:{service.port}/api", **environ)


def test_without_a_token_the_line_says_how_to_give_one(service):
    for words in (["list"], ["stop", "echo"], ["params", "echo"]):
        ran = models(service, *words)
        assert (ran.status, ran.out) == (1, "")
        for word in ("needs the scope", "MODELYARD_TOKEN", "--token-file"):
            assert word in ran.complaint


def test_the_token_is_sent_from_the_environment_or_from_a_file(service, secrets, tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{secrets['admin']}\n")
    path.chmod(0o600)
    assert models(service, "list", MODELYARD_TOKEN=secrets["infer"]).status == 0
    assert models(service, "list", "--token-file", path).status == 0
    assert models(service, "restart", "echo", MODELYARD_TOKEN_FILE=str(path)).status == 0
    assert models(service, "list", "--token-file", path, MODELYARD_TOKEN="nobody's").status == 1, "it is stronger"


def test_a_token_without_the_scope_is_told_which_is_missing(service, secrets):
    complaint = models(service, "stop", "echo", MODELYARD_TOKEN=secrets["infer"]).complaint
    assert "needs the scope admin; the token infer has infer" in complaint
    assert secrets["infer"] not in complaint


@pytest.mark.parametrize(("mode", "text", "why"), [(0o644, "x", "chmod 600"), (0o600, "two words", "one word")])
def test_a_file_that_can_not_be_taken_is_told(service, tmp_path, mode, text, why):
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    ran = models(service, "list", "--token-file", path)
    assert (ran.status, ran.out) == (1, "")
    assert why in ran.complaint
    assert str(path) in ran.complaint


def test_no_command_takes_a_token_as_a_word_that_others_could_read():
    for words in (["serve"], ["check-config"], ["models", "list"]):
        ran = modelyard(*words, "--token", "hunter2")
        assert (ran.status, "hunter2" in ran.err) == (2, False)


def test_the_check_of_the_configuration_masks_tokens_and_names_what_does_not_fit(tmp_path):
    words = ["check-config", "--state-dir", tmp_path, "-m", "echo", "--json"]
    secret, entry = new_secret(), f"ci infer {'a' * 64}"
    ran = modelyard(*words, MODELYARD_TOKEN=secret, MODELYARD_TOKENS=entry)
    assert ran.json["ok"] is True
    assert (ran.json["settings"]["token"]["value"], ran.json["settings"]["tokens"]["value"]) == ("******", "******")
    assert secret not in ran.out
    assert "a" * 64 not in ran.out
    broken = modelyard(
        *words,
        *("--trusted-networks", "x", "--allowed-networks", "y", "--tokens-file", tmp_path / "none"),
        *("--token-file", tmp_path / "nothing"),
        MODELYARD_TOKENS="ci infer hunter2",
    ).json
    assert len(broken["faults"]) == 4
    assert all(
        word in json.dumps(broken["faults"]) for word in ("trusted_networks", "allowed_networks", "tokens", "nothing")
    )
    assert "hunter2" not in json.dumps(broken)
