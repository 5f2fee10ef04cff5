"""Tokens: kept as hashes, found by their secret, read anew when their file has changed, never shown."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
import threading
from pathlib import Path

import pytest
from modelyard.access import token_store as known_tokens
from modelyard.access import watched_file
from modelyard.access.own_token import OwnToken, read_secret
from modelyard.access.token_store import Tokens
from modelyard.access.tokens import (
    SCOPES,
    Token,
    add_to_file,
    digest_of,
    new_secret,
    parse,
    parse_scopes,
    read_file,
    remove_from_file,
    spoken,
)
from modelyard.errors import ConfigError
from modelyard.settings import params
from modelyard.settings.settings import Settings
from running import wait_until

ALL = frozenset(SCOPES)
HASH = "ab" * 32


def token(name: str = "ci", scopes: str = "infer", secret: str = "s3cret") -> Token:
    return Token(name, parse_scopes(scopes), digest_of(secret))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


@pytest.fixture(autouse=True)
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_file, "LOOK_AGAIN", 0.0)


# secrets and scopes


def test_a_new_secret_is_long_random_and_one_word():
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    for secret in made:
        assert re.fullmatch(r"modelyard_[A-Za-z0-9_-]{43}", secret)


def test_what_is_kept_is_the_sha256_of_the_secret():
    assert digest_of("x") == hashlib.sha256(b"x").digest()


@pytest.mark.parametrize(
    ("text", "scopes"),
    [
        ("infer", {"infer"}),
        ("worker", {"worker"}),
        ("infer+worker", {"infer", "worker"}),
        (" worker + infer ", {"infer", "worker"}),
        ("admin", ALL),
        ("infer+admin", ALL),
    ],
)
def test_scopes_are_joined_by_plus_and_admin_includes_all(text, scopes):
    assert parse_scopes(text) == scopes


@pytest.mark.parametrize("text", ["", "+", "infer+", "Infer", "root", "infer,worker", "*"])
def test_what_is_no_scope_is_refused_with_those_that_are(text):
    with pytest.raises(ValueError, match="is no scope: there are infer, worker, admin"):
        parse_scopes(text)


def test_scopes_are_spoken_as_they_are_read():
    assert [spoken(parse_scopes(t)) for t in ("worker+infer", "admin", "infer")] == ["infer+worker", "admin", "infer"]


# entries


def test_an_entry_is_read_as_it_is_written():
    one = token(scopes="worker+infer")
    assert one.line == f"ci infer+worker {hashlib.sha256(b's3cret').hexdigest()}"
    assert parse(one.line) == one
    assert parse(one.line.upper().replace("INFER+WORKER", "infer+worker").replace("CI", "ci")) == one


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("", "expected NAME SCOPES SHA256, there are 0 words"),
        (f"ci {HASH}", "there are 2 words"),
        (f"ci infer {HASH} x", "there are 4 words"),
        (f"ci: infer {HASH}", "the name may have letters"),
        (f"{'n' * 65} infer {HASH}", "the name may have letters"),
        (f"ci root {HASH}", "'root' is no scope"),
        ("ci infer s3cret-that-was-not-hashed", "no SHA-256"),
        (f"ci infer {HASH[:-1]}", "no SHA-256"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused_without_repeating_a_secret(entry, why):
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        parse(entry)
    assert "s3cret" not in str(caught.value)


def test_two_of_one_name_or_one_secret_are_refused_with_their_places():
    with pytest.raises(ConfigError, match="tokens, item 2: there are two tokens named ci"):
        Tokens([token().line, token(secret="other").line])
    with pytest.raises(ConfigError, match="tokens, item 2: token other is the same secret as another"):
        Tokens([token().line, token("other").line])


# finding


def test_a_token_is_found_by_its_secret_and_by_nothing_else():
    known = Tokens([token().line, token("two", "admin", "other").line])
    assert known.configured
    assert (known.find("s3cret"), known.find("other")) == (token(), token("two", "admin", "other"))
    for secret in ("", "S3cret", "s3cret ", digest_of("s3cret").hex(), "ci", "s3cre\udce9t", "é" * 5000):
        assert known.find(secret) is None


def test_a_hash_is_compared_in_constant_time(monkeypatch):
    compared = []
    really = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or really(a, b))
    assert Tokens([token().line]).find("s3cret") == token()
    assert compared == [(digest_of("s3cret"), digest_of("s3cret"))]


def test_without_entries_and_file_nothing_is_configured(file):
    assert not Tokens().configured
    file.touch(mode=0o600)
    assert Tokens(file=file).configured, "an empty file means that nobody has a token, not that none is asked for"


def test_settings_name_entries_and_a_file(file, monkeypatch):
    add_to_file(file, token("filed", secret="in the file"))
    monkeypatch.setenv("HOME", str(file.parent))
    known = Tokens.of(Settings(tokens=[token().line], tokens_file="~/tokens"))
    assert known.find("s3cret").name == "ci"
    assert known.find("in the file").name == "filed"


# the file


def test_a_file_has_comments_and_empty_lines(file):
    file.write_text(f"# who\n\n{token().line}  # ci's own\n   \n{token('two', secret='2').line}\n")
    assert [one.name for one in read_file(file)] == ["ci", "two"]


def test_a_fault_in_a_file_is_named_with_its_line_and_without_its_text(file):
    file.write_text(f"{token().line}\nci2 infer s3cret\n{token('ci3', secret='3').line} x\n")
    with pytest.raises(ConfigError) as caught:
        read_file(file)
    assert f"{file}, line 2: token ci2" in str(caught.value)
    assert f"{file}, line 3: expected" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused_with_what_to_do(file):
    with pytest.raises(ConfigError, match=r"No such file.*modelyard token new --file"):
        Tokens(file=file)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(file, mode):
    add_to_file(file, token())
    file.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_file(file)


def test_a_file_that_others_may_only_read_is_taken_for_it_has_only_hashes(file):
    add_to_file(file, token())
    file.chmod(0o644)
    assert read_file(file) == [token()]


def test_a_folder_or_something_binary_is_refused(file, tmp_path):
    with pytest.raises(ConfigError, match="Is a directory"):
        read_file(tmp_path)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is no text"):
        read_file(file)


def test_a_token_that_is_added_makes_the_file_for_its_owner_only(file):
    previous = os.umask(0)
    try:
        add_to_file(file, token())
    finally:
        os.umask(previous)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == f"{token().line}\n"


def test_comments_mode_and_link_outlive_a_change(file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)
    file.write_text(f"# mine\n{token().line}  # kept\n")
    file.chmod(0o640)
    add_to_file(link, token("two", secret="2"))
    remove_from_file(link, "two")
    assert file.read_text() == f"# mine\n{token().line}  # kept\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "tokens"], "nothing is left behind"


def test_a_name_that_is_taken_and_one_that_is_not_there_are_refused(file):
    add_to_file(file, token())
    with pytest.raises(ConfigError, match="has a token named ci already"):
        add_to_file(file, token(secret="other"))
    with pytest.raises(ConfigError, match="no token named nobody; there are: ci"):
        remove_from_file(file, "nobody")
    assert read_file(file) == [token()]


def test_of_several_that_change_a_file_at_once_none_is_lost(file):
    wanted = {f"t{n}" for n in range(20)}
    threads = [threading.Thread(target=add_to_file, args=(file, token(name, secret=name))) for name in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.name for one in read_file(file)} == wanted


# rotation


def test_a_file_that_has_changed_is_read_anew(file):
    add_to_file(file, token())
    known = Tokens(file=file)
    add_to_file(file, token("two", secret="2"))
    assert known.find("2").name == "two"
    remove_from_file(file, "ci")
    assert known.find("s3cret") is None
    assert known.find("2").name == "two"


def test_the_file_is_looked_at_once_in_a_while_and_not_at_each_request(file, monkeypatch):
    monkeypatch.setattr(watched_file, "LOOK_AGAIN", 3600.0)
    add_to_file(file, token())
    known = Tokens(file=file)
    remove_from_file(file, "ci")
    assert known.find("s3cret") == token()


def test_a_file_that_has_not_changed_is_not_read_again(file, monkeypatch):
    add_to_file(file, token())
    known = Tokens(file=file)
    monkeypatch.setattr(known_tokens, "read_file", lambda path: pytest.fail("it was read"))
    assert known.find("s3cret") == token()


@pytest.mark.parametrize("fault", ["gone", "bad", "writable by all"])
def test_a_file_that_breaks_changes_nothing_and_is_said_once(file, fault, caplog):
    add_to_file(file, token())
    known = Tokens(file=file)
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
        assert "the tokens that were known before stay" in caplog.text
        file.unlink(missing_ok=True)
        add_to_file(file, token("two", secret="2"))
        assert known.find("2").name == "two"
        assert known.find("s3cret") is None


def test_a_file_without_tokens_lets_nobody_in(file):
    add_to_file(file, token())
    known = Tokens(file=file)
    remove_from_file(file, "ci")
    assert known.find("s3cret") is None
    assert known.configured


def test_one_that_is_in_the_settings_and_comes_into_the_file_is_told_and_both_stay(file, caplog):
    file.touch(mode=0o600)
    known = Tokens([token().line], file)
    add_to_file(file, token("ci", secret="other"))
    assert known.find("other") is None
    assert known.find("s3cret") == token()
    assert "two tokens named ci" in caplog.text


def test_many_threads_may_ask_while_the_file_changes(file):
    add_to_file(file, token())
    known = Tokens(file=file)
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
    assert OwnToken.of(Settings())() is None
    assert OwnToken.of(Settings(token="x"))() == "x"
    file.write_text("  y\n")
    file.chmod(0o600)
    assert OwnToken.of(Settings(token_file=str(file)))() == "y"
    assert OwnToken.of(Settings(token="x", token_file=str(file)))() == "x"


def test_the_own_token_is_read_anew_when_its_file_has_changed(file, caplog):
    file.write_text("old")
    file.chmod(0o600)
    own = OwnToken(None, file)
    file.write_text("newer")
    assert own() == "newer"
    file.unlink()
    assert own() == "newer"
    assert "the token that was known before stays" in caplog.text
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


def test_settings_are_shown_without_tokens():
    shown = params.shown(Settings(token="s3cret", tokens=[token().line]))
    assert (shown["token"], shown["tokens"]) == (params.MASK, params.MASK)
