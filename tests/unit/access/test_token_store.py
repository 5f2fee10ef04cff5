"""Accepted tokens are found by their secret and outgoing ones read, both again when their file has changed."""

from __future__ import annotations

import hmac
import logging
import threading
from pathlib import Path

import pytest
from modelyard.access import token_store
from modelyard.access.token_store import OutgoingToken, TokenStore, read_secret
from modelyard.access.tokens import Token, add_to_file, digest_of, parse_scopes, remove_from_file
from modelyard.errors import ConfigError
from running import wait_until


def token(name: str = "ci", scopes: str = "infer", secret: str = "s3cret") -> Token:
    return Token(name, parse_scopes(scopes), digest_of(secret))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


@pytest.fixture(autouse=True)
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_store, "LOOK_AGAIN", 0.0)


def test_two_of_one_name_or_one_secret_are_refused_with_their_places():
    with pytest.raises(ConfigError, match="tokens, item 2: there are two tokens named ci"):
        TokenStore([token().line, token(secret="other").line])
    with pytest.raises(ConfigError, match="tokens, item 2: token other is the same secret as another"):
        TokenStore([token().line, token("other").line])


# finding


def test_a_token_is_found_by_its_secret_and_by_nothing_else():
    known = TokenStore([token().line, token("two", "admin", "other").line])
    assert known.configured
    assert (known.find("s3cret"), known.find("other")) == (token(), token("two", "admin", "other"))
    for secret in ("", "S3cret", "s3cret ", digest_of("s3cret").hex(), "ci", "s3cre\udce9t", "é" * 5000):
        assert known.find(secret) is None


def test_a_hash_is_compared_in_constant_time(monkeypatch):
    compared = []
    really = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or really(a, b))
    assert TokenStore([token().line]).find("s3cret") == token()
    assert compared == [(digest_of("s3cret"), digest_of("s3cret"))]


def test_without_entries_and_file_nothing_is_configured(file):
    assert not TokenStore().configured
    file.touch(mode=0o600)
    assert TokenStore(file=file).configured, "an empty file means that nobody has a token, not that none is asked for"


def test_entries_and_a_file_are_both_accepted(file, monkeypatch):
    add_to_file(file, token("filed", secret="in the file"))
    monkeypatch.setenv("HOME", str(file.parent))
    known = TokenStore([token().line], "~/tokens")
    assert known.find("s3cret").name == "ci"
    assert known.find("in the file").name == "filed"


def test_a_file_that_is_not_there_is_refused_with_what_to_do(file):
    with pytest.raises(ConfigError, match=r"No such file.*modelyard token new --file"):
        TokenStore(file=file)


# rotation


def test_a_file_that_has_changed_is_read_anew(file):
    add_to_file(file, token())
    known = TokenStore(file=file)
    add_to_file(file, token("two", secret="2"))
    assert known.find("2").name == "two"
    remove_from_file(file, "ci")
    assert known.find("s3cret") is None
    assert known.find("2").name == "two"


def test_the_file_is_looked_at_once_in_a_while_and_not_at_each_request(file, monkeypatch):
    monkeypatch.setattr(token_store, "LOOK_AGAIN", 3600.0)
    add_to_file(file, token())
    known = TokenStore(file=file)
    remove_from_file(file, "ci")
    assert known.find("s3cret") == token()


def test_a_file_that_has_not_changed_is_not_read_again(file, monkeypatch):
    add_to_file(file, token())
    known = TokenStore(file=file)
    monkeypatch.setattr(token_store, "read_file", lambda path: pytest.fail("it was read"))
    assert known.find("s3cret") == token()


@pytest.mark.parametrize("fault", ["gone", "bad", "writable by all"])
def test_a_file_that_breaks_changes_nothing_and_is_said_once(file, fault, caplog):
    add_to_file(file, token())
    known = TokenStore(file=file)
    if fault == "gone":
        file.unlink()
    elif fault == "bad":
        file.write_text("nonsense\n")
    else:
        file.chmod(0o666)
    with caplog.at_level(logging.INFO, "modelyard"):
        for _ in range(5):
            assert known.find("s3cret") == token()
        assert len(caplog.records) == 1
        assert "the tokens read before stay accepted" in caplog.text
        file.unlink(missing_ok=True)
        add_to_file(file, token("two", secret="2"))
        assert known.find("2").name == "two"
        assert known.find("s3cret") is None


def test_a_file_without_tokens_lets_nobody_in(file):
    add_to_file(file, token())
    known = TokenStore(file=file)
    remove_from_file(file, "ci")
    assert known.find("s3cret") is None
    assert known.configured


def test_one_that_is_in_the_settings_and_comes_into_the_file_is_told_and_both_stay(file, caplog):
    file.touch(mode=0o600)
    known = TokenStore([token().line], file)
    add_to_file(file, token("ci", secret="other"))
    assert known.find("other") is None
    assert known.find("s3cret") == token()
    assert "two tokens named ci" in caplog.text


def test_many_threads_may_ask_while_the_file_changes(file):
    add_to_file(file, token())
    known = TokenStore(file=file)
    wrong: list[object] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            if (found := known.find("s3cret")) != token():
                wrong.append(found)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(20):
            add_to_file(file, token(f"t{number}", secret=str(number)))
        wait_until(lambda: known.find("19"), "the last token")
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []


# what a service says itself


def test_the_own_token_comes_from_the_settings_or_a_file(file):
    assert OutgoingToken(None)() is None
    assert OutgoingToken("x")() == "x"
    file.write_text("  y\n")
    file.chmod(0o600)
    assert OutgoingToken(None, str(file))() == "y"
    assert OutgoingToken("x", str(file))() == "x"


def test_the_own_token_is_read_anew_when_its_file_has_changed(file, caplog):
    file.write_text("old")
    file.chmod(0o600)
    own = OutgoingToken(None, file)
    file.write_text("newer")
    assert own() == "newer"
    file.unlink()
    assert own() == "newer"
    assert "the token read before stays in use" in caplog.text
    assert "newer" not in caplog.text


@pytest.mark.parametrize("text", ["", " ", "two words", "line\nbreak", "caf\xe9", "x" * 5000])
def test_what_can_not_stand_in_a_header_is_refused_and_not_repeated(file, text):
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="one word") as caught:
        read_secret(file)
    assert str(file) in str(caught.value)
    assert not text.strip() or text not in str(caught.value)


def test_a_secret_that_every_user_could_read_is_refused(file):
    file.write_text("x")
    file.chmod(0o604)
    with pytest.raises(ConfigError, match="can be read by every user"):
        read_secret(file)
    file.chmod(0o640)
    assert read_secret(file) == "x"
