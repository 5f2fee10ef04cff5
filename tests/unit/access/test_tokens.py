"""Tokens: stored as hashes, read from entries and files, never shown."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
from pathlib import Path

import pytest
from modelyard.access.tokens import (
    SCOPES,
    Token,
    add_to_file,
    digest_of,
    join_scopes,
    new_secret,
    parse,
    parse_scopes,
    read_file,
    remove_from_file,
)
from modelyard.errors import ConfigError
from modelyard.settings import params
from modelyard.settings.settings import Settings

ALL = frozenset(SCOPES)
HASH = "ab" * 32


def token(name: str = "ci", scopes: str = "infer", secret: str = "s3cret") -> Token:
    return Token(name, parse_scopes(scopes), digest_of(secret))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


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
    with pytest.raises(ValueError, match="is not a scope: there are infer, worker, metrics, admin"):
        parse_scopes(text)


def test_scopes_are_spoken_as_they_are_read():
    assert [join_scopes(parse_scopes(t)) for t in ("worker+infer", "admin", "infer")] == [
        "infer+worker",
        "admin",
        "infer",
    ]


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
        (f"ci root {HASH}", "'root' is not a scope"),
        ("ci infer s3cret-that-was-not-hashed", "not a SHA-256"),
        (f"ci infer {HASH[:-1]}", "not a SHA-256"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused_without_repeating_a_secret(entry, why):
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        parse(entry)
    assert "s3cret" not in str(caught.value)


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
    with pytest.raises(ConfigError, match="is not text"):
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


def test_settings_are_shown_without_tokens():
    shown = params.shown(Settings(token="s3cret", tokens=[token().line]))
    assert (shown["token"], shown["tokens"]) == (params.MASK, params.MASK)
