"""Real stores as children: each on a free port, in a folder of its own, without fsync, stopped in the end.

A store can be stopped, paused and started again on the same port with the same data. The fixture `store_server` gives
one of each kind a session. A server that is not installed skips the tests that need it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from processes import children
from running import free_port, wait_until

USER = "modelyard"
PASSWORD = "p@ss:w/rd-%41"
"""Needs quoting in a URL, and must never be shown."""
QUOTED = "p%40ss%3Aw%2Frd-%2541"
HOW_TO_INSTALL = "install it with scripts/test-servers"


def _is_stopped(pid: int) -> bool:
    """Return whether no thread of a process runs any more: one that runs at the signal stops a moment later."""
    with suppress(OSError):
        for status in Path(f"/proc/{pid}/task").glob("*/stat"):
            if status.read_text().rpartition(")")[2].split()[0] not in "TtXZ":
                return False
    return True


class Server:
    """A server in a process group of its own. `start` it, `close` it in the end."""

    name = ""
    crash = signal.SIGKILL

    def __init__(self) -> None:
        # Short, and for everybody: a server that refuses to be root runs as another user, and has sockets there.
        self.folder = Path(tempfile.mkdtemp(prefix="my-store-"))
        self.folder.chmod(0o755)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self.prepare()
        except BaseException:
            self.close()
            raise

    def prepare(self) -> None:
        """Lay out the data, before the first start."""

    def command(self) -> Sequence[object]:
        """Return what runs it."""
        raise NotImplementedError

    def answers(self) -> object:
        """Return something true when it takes requests."""
        raise NotImplementedError

    def settle(self) -> None:
        """Make users and databases, after the first start."""

    def ensure(self) -> None:
        """Start it unless it runs, and remove what is in it."""
        if self.process is None:
            self.start()
        self.clear()

    def start(self) -> None:
        """Start it on its port with its data; return when it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(part) for part in self.command()],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = self.process

        def is_up() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"{self.name} has ended:\n{(self.folder / 'log').read_text()[-3000:]}")
            return bool(self.answers())

        wait_until(is_up, f"{self.name} answers", 60)

    def processes(self) -> list[int]:
        """Return its pid and those of its children: PostgreSQL's are in process groups of their own."""
        assert self.process is not None
        return [self.process.pid, *children(self.process.pid)]

    def signal(self, number: int) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """End it as a crash does: data that it has written stay."""
        if self.process is not None:
            self.process.send_signal(self.crash)
            self.process.wait(timeout=30)
            self.process = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within: it accepts connections (the kernel does), and never says anything."""
        self.signal(signal.SIGSTOP)
        try:
            wait_until(lambda: all(map(_is_stopped, self.processes())), "every thread of it has stopped")
            yield
        finally:
            self.signal(signal.SIGCONT)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, **changes: object) -> str:
        """Return the address of its database as `open_registry` takes it."""
        raise NotImplementedError

    def clear(self) -> None:
        """Remove everything that a registry has left, tables and all."""
        raise NotImplementedError

    def execute(self, statement: str) -> list[Any]:
        """Return the rows of a statement, beside any registry."""
        raise NotImplementedError


def program(name: str, *folders: str) -> str:
    """Return the path of a program; skips where it is not installed."""
    found = shutil.which(
        name, path=os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    )
    if found is None:
        pytest.skip(f"{name} is not installed: {HOW_TO_INSTALL}")
    return found


def _library(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install -e '.[test]'")


class PostgreSQL(Server):
    """PostgreSQL. It refuses to run as root, so it runs as nobody there."""

    name = "postgresql"
    # As after SIGKILL it has to recover its data; but it still waits for its children, whom nobody else may wait for.
    crash = signal.SIGQUIT

    def prepare(self) -> None:
        self.driver = _library("psycopg")
        folders = sorted((str(path) for path in Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
        self.postgres = program("postgres", *folders)
        initdb = program("initdb", str(Path(self.postgres).resolve().parent))
        self.as_user: list[str] = []
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self.as_user = [
                program("setpriv"),
                *(f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"),
            ]
        secret = self.folder / "secret"
        secret.write_text(PASSWORD)
        options = ["--no-sync", "--username", USER, "--encoding=UTF8", "--locale=C", "--auth=scram-sha-256"]
        done = subprocess.run(
            [*self.as_user, initdb, *options, f"--pwfile={secret}", "-D", str(self.folder / "data")],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def command(self) -> Sequence[object]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "16MB",
            "max_connections": "80",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)
        return [*self.as_user, self.postgres, "-D", self.folder / "data", "-p", self.port, *options]

    def answers(self) -> object:
        with suppress(self.driver.OperationalError):
            return self.execute("SELECT 1")
        return False

    def execute(self, statement: str) -> list[Any]:
        connection = self.driver.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname="postgres", connect_timeout=5
        )
        with connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def url(self, *, password: str = QUOTED, database: str = "postgres", query: str = "", port: int = 0) -> str:
        return f"postgresql://{USER}:{password}@127.0.0.1:{port or self.port}/{database}{query}"

    def clear(self) -> None:
        self.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


class MariaDB(Server):
    """MariaDB, which stands for MySQL as well."""

    name = "mariadb"

    def prepare(self) -> None:
        self.driver = _library("pymysql")
        self.mariadbd = program("mariadbd")
        install = program("mariadb-install-db")
        done = subprocess.run(
            [install, "--no-defaults", *self._options(), "--auth-root-authentication-method=normal", "--skip-test-db"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _options(self) -> list[str]:
        user = ["--user=root"] if os.getuid() == 0 else []
        return [f"--datadir={self.folder / 'data'}", "--innodb-flush-log-at-trx-commit=2", *user]

    def command(self) -> Sequence[object]:
        return [
            *(self.mariadbd, "--no-defaults", *self._options(), f"--port={self.port}", "--bind-address=127.0.0.1"),
            *(f"--socket={self.folder / 'sock'}", f"--pid-file={self.folder / 'pid'}", "--skip-name-resolve"),
            *("--innodb-buffer-pool-size=16M", "--innodb-flush-method=nosync", "--skip-log-bin"),
        ]

    def answers(self) -> object:
        # The driver leaves its socket open where nobody listens yet.
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 5).close()
            return self._as_root("SELECT 1")
        return False

    def settle(self) -> None:
        self._as_root("CREATE DATABASE cluster")
        self._as_root(f"CREATE USER {USER} IDENTIFIED BY '{PASSWORD}'")
        self._as_root(f"GRANT ALL ON cluster.* TO {USER}")

    def _as_root(self, statement: str) -> list[Any]:
        return self._run(statement, user="root", unix_socket=str(self.folder / "sock"))

    def _run(self, statement: str, **options: Any) -> list[Any]:
        connection = self.driver.connect(autocommit=True, connect_timeout=5, **options)
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def execute(self, statement: str) -> list[Any]:
        return self._run(statement, host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, database="cluster")

    def url(self, *, password: str = QUOTED, database: str = "cluster", query: str = "", port: int = 0) -> str:
        return f"mysql://{USER}:{password}@127.0.0.1:{port or self.port}/{database}{query}"

    def clear(self) -> None:
        for (table,) in self.execute("SHOW TABLES"):
            self.execute(f"DROP TABLE {table}")


class Redis(Server):
    """Redis, with an append-only file so that what it knew outlives it."""

    name = "redis"

    def prepare(self) -> None:
        self.driver = _library("redis")
        self.redis = program("redis-server")

    def command(self) -> Sequence[object]:
        return [
            *(self.redis, "--port", self.port, "--bind", "127.0.0.1", "--dir", self.folder, "--requirepass", PASSWORD),
            *("--appendonly", "yes", "--appendfsync", "no", "--save", ""),
        ]

    def client(self) -> Any:
        return self.driver.Redis(
            port=self.port, host="127.0.0.1", password=PASSWORD, decode_responses=True, socket_timeout=5
        )

    def answers(self) -> object:
        with suppress(self.driver.RedisError), self.client() as client:
            return client.ping()
        return False

    def execute(self, statement: str) -> list[Any]:
        with self.client() as client:
            return [client.execute_command(*statement.split())]

    def url(self, *, password: str = QUOTED, database: str = "0", query: str = "", port: int = 0) -> str:
        return f"redis://:{password}@127.0.0.1:{port or self.port}/{database}{query}"

    def clear(self) -> None:
        with self.client() as client:
            client.flushall()


SERVERS: dict[str, type[Server]] = {kind.name: kind for kind in (PostgreSQL, MariaDB, Redis)}


class StoreServers:
    """One server of each kind that was asked for; `close` ends them all."""

    def __init__(self) -> None:
        self._made: dict[str, Server] = {}

    def __call__(self, name: str) -> Server:
        """Return the server of that kind, running and empty. Skips where it is not installed."""
        if name not in self._made:
            server = SERVERS[name]()
            self._made[name] = server
            server.start()
            server.settle()
        self._made[name].ensure()
        return self._made[name]

    def close(self) -> None:
        while self._made:
            self._made.popitem()[1].close()
