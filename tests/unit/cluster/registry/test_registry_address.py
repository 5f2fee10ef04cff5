"""Where a registry is: what is taken, what is refused, and that no message shows a password."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from modelyard.cluster.registry import open_registry
from modelyard.cluster.registry.address import StoreAddress, controller_urls, masked, sqlite_path
from modelyard.cluster.registry.memory import MemoryRegistry
from modelyard.cluster.registry.mysql import MysqlRegistry
from modelyard.cluster.registry.postgresql import PostgresqlRegistry
from modelyard.cluster.registry.redis import RedisRegistry
from modelyard.cluster.registry.sqlite import SqliteRegistry
from modelyard.errors import ConfigError, MissingLibrary

SECRET = "s3cr3t"
NOT_PASSWORDS = ("s3cr3t", "memory:s3cr3t", "redis:s3cr3t", "redis://db/0?socket_timeout=s3cr3t")
"""Where it stands in a place that is none for a password."""


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("memory:", MemoryRegistry),
        ("sqlite:///registry.db", SqliteRegistry),
        ("postgresql://me:s3cr3t@db:5432/cluster", PostgresqlRegistry),
        ("postgres://db/cluster", PostgresqlRegistry),
        ("postgresql:///cluster?host=/run/postgresql", PostgresqlRegistry),
        ("mysql://me:s3cr3t@db/cluster", MysqlRegistry),
        ("mariadb://db/cluster?ssl_ca=/etc/ca.pem", MysqlRegistry),
        ("redis://:s3cr3t@db:6379/3", RedisRegistry),
        ("rediss://db", RedisRegistry),
        ("Redis://db", RedisRegistry),
    ],
)
def test_the_scheme_chooses_the_registry_and_nothing_is_connected_yet(url, kind):
    registry = open_registry(url, 7.0)
    assert type(registry) is kind
    assert registry.heartbeat_timeout == 7.0
    registry.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3cr3t",
        "me:s3cr3t@db/cluster",
        "oracle://me:s3cr3t@db/cluster",
        "memory:s3cr3t",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://registry.db",
        "sqlite:///registry.db?mode=ro",
        "postgresql://me:s3cr3t@db",
        "postgresql://me:s3cr3t@db:port/cluster",
        "postgresql://me:s3cr3t@[db/cluster",
        "mysql://me:s3cr3t@db/",
        "mysql://me:s3cr3t@db/cluster?prefix=1-2",
        "mysql://db/cluster?prefix=x;y&password=s3cr3t",
        "postgresql://db/cluster?prefix=" + "x" * 31,
        "redis://me:s3cr3t@db/cluster",
        "redis://:s3cr3t@db:many/0",
        "redis:s3cr3t",
        "redis://db/0?socket_timeout=s3cr3t",
        "http://",
        "http://me:s3cr3t@/api",
        "http://me:s3cr3t@controller:port/api",
        "http://controller/api,me:s3cr3t@other",
        "http://controller/api?token=s3cr3t",
    ],
)
def test_an_address_that_does_not_fit_is_refused_and_its_password_not_shown(url):
    with pytest.raises(ConfigError) as refused:
        open_registry(url)
    assert str(refused.value).startswith("registry")
    if url in NOT_PASSWORDS:
        return
    shown: BaseException | None = refused.value
    while shown is not None:
        assert SECRET not in str(shown)
        shown = None if shown.__suppress_context__ else shown.__cause__ or shown.__context__


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s3cr3t@db:5432/cluster", "postgresql://me:***@db:5432/cluster"),
        ("postgresql://me:s3/cr3t@s3cr3t@db/cluster", "postgresql://me:***@db/cluster"),
        ("postgresql://me@db/cluster", "postgresql://me@db/cluster"),
        ("postgresql://db/cluster?user=me&password=s3cr3t&sslmode=require", None),
        ("mysql://db/cluster?ssl_key_password=s3cr3t", None),
        ("redis://:s3cr3t@db/0", "redis://:***@db/0"),
        ("http://me:s3cr3t@one/api,http://you:s3cr3t@two/api", "http://me:***@one/api,http://you:***@two/api"),
        ("me:s3cr3t@db/cluster", None),
        ("sqlite:////srv/registry.db", "sqlite:////srv/registry.db"),
    ],
)
def test_a_password_is_hidden_wherever_it_stands(url, shown):
    assert SECRET not in masked(url)
    if shown is not None:
        assert masked(url) == shown


def test_what_a_driver_says_is_shown_without_the_password_quoted_or_not():
    address = StoreAddress.parse("postgresql://me:p%40ss%2Fword@db/cluster?sslpassword=other")
    told = "FATAL: 'p@ss/word' and p%40ss%2Fword and other\nsecond line"
    assert address.hide(told) == "FATAL: '***' and *** and ***"
    assert address.hide("") == ""


def test_our_own_parameter_is_taken_out_of_what_the_driver_gets():
    address = StoreAddress.parse("postgresql://me@db/cluster?prefix=blue&sslmode=require")
    assert (address.prefix, address.url) == ("blue", "postgresql://me@db/cluster?sslmode=require")
    assert StoreAddress.parse("postgresql:///cluster?host=/run&prefix=b").url == "postgresql:///cluster?host=%2Frun"
    assert StoreAddress.parse("redis://db/1").prefix is None


def test_a_file_is_named_as_in_sqlalchemy(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert sqlite_path("sqlite:////srv/my%20files/registry.db") == Path("/srv/my files/registry.db")
    assert sqlite_path("sqlite:///registry.db") == tmp_path / "registry.db"
    assert sqlite_path("sqlite:registry.db") == tmp_path / "registry.db"
    assert sqlite_path(f"sqlite:///{tmp_path}/x.db") == tmp_path / "x.db"


def test_several_controllers_are_separated_by_commas():
    assert controller_urls("http://one:8000/api/, https://two/pre/api,http+unix://%2Frun%2Fc.sock/api") == [
        "http://one:8000/api",
        "https://two/pre/api",
        "http+unix://%2Frun%2Fc.sock/api",
    ]


def test_a_controller_needs_a_session():
    with pytest.raises(ValueError, match="session"):
        open_registry("http://controller:8000/api")


@pytest.mark.parametrize(
    ("url", "library", "extra"),
    [
        ("postgresql://me:s3cr3t@db/c", "sqlalchemy", "sql,postgres"),
        ("mysql://me:s3cr3t@db/c", "sqlalchemy", "sql,mysql"),
        ("postgresql://me:s3cr3t@db/c", "psycopg", "sql,postgres"),
        ("mysql://me:s3cr3t@db/c", "pymysql", "sql,mysql"),
        ("redis://:s3cr3t@db/0", "redis", "redis"),
    ],
)
def test_an_absent_library_is_an_error_that_names_the_extra(monkeypatch, url, library, extra):
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    for name in ("sql", "postgresql", "mysql", "redis"):
        monkeypatch.delitem(sys.modules, f"modelyard.cluster.registry.{name}", raising=False)
    with pytest.raises(MissingLibrary) as missing:
        open_registry(url)
    assert f"pip install 'modelyard[{extra}]'" in str(missing.value)
    assert SECRET not in str(missing.value)


@pytest.mark.parametrize(
    ("url", "loaded"),
    [
        (None, set()),
        ("memory:", set()),
        ("sqlite:///r.db", {"sqlite3"}),
        ("redis://db", {"redis"}),
        ("mysql://db/c", {"sqlalchemy", "pymysql"}),
        ("postgresql://db/c", {"sqlalchemy", "psycopg"}),
    ],
)
def test_only_the_driver_of_the_chosen_registry_is_loaded(url, loaded):
    script = f"""
import sys
from modelyard.cluster.registry import open_registry
url = {url!r}
if url: open_registry(url)
print(*(set(sys.modules) & {{"sqlite3", "redis", "sqlalchemy", "psycopg", "pymysql", "requests", "flask"}}))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert set(ran.stdout.split()) == loaded
