"""Parse the addresses of stores and controllers, and show them without passwords."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from ...errors import ConfigError
from ...settings.folders import expanded

PREFIX_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,29}")
PRIVATE = r"(?:password|passwd|pwd|sslpassword|ssl_password|ssl_key_password|token)"
HIDDEN = "***"


def masked(url: str) -> str:
    """Return ``url`` with the passwords in it replaced."""
    shown = ",".join(_without_password(part) for part in re.split(r",(?=[a-zA-Z+]+://)", url))
    return re.sub(rf"(?i)([?&]{PRIVATE}=)[^&]*", rf"\1{HIDDEN}", shown)


def _without_password(url: str) -> str:
    if "://" in url:
        return re.sub(r"://([^/@:]*):.*@", rf"://\1:{HIDDEN}@", url)
    return re.sub(r"^.*@", f"{HIDDEN}@", url)


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """The parts of the address of a database server."""

    url: str
    """The URL for the driver: without our own parameter ``prefix``."""
    prefix: str | None
    """The start of the names of tables or keys; None without the parameter."""
    shown: str
    """The address in messages."""
    secrets: tuple[str, ...]

    @classmethod
    def parse(cls, url: str, setting: str = "registry") -> StoreAddress:
        """Return the address of ``url``, which a setting has. Raises ConfigError."""
        shown = masked(url)
        try:
            parts = urlsplit(url)
            passwords = [parts.password] if parts.password else []
            _ = parts.port
            query = parse_qsl(parts.query, keep_blank_values=True)
        except ValueError:
            # The text of the error quotes the address, password and all.
            raise ConfigError(
                f"{setting} {shown}: not a valid address; a password's special characters are written as %XX"
            ) from None
        passwords += [value for name, value in query if re.fullmatch(PRIVATE, name, re.IGNORECASE)]
        prefix = next((value for name, value in query if name == "prefix"), None)
        if prefix is not None and not PREFIX_PATTERN.fullmatch(prefix):
            raise ConfigError(
                f"{setting} {shown}: prefix must be 1 to 30 letters, digits and _, and start with a letter"
            )
        rest = urlencode([(name, value) for name, value in query if name != "prefix"])
        plain = parts._replace(query=rest).geturl()
        # urlunsplit drops an empty authority: postgresql:///name?host=/run/postgresql
        if not parts.netloc and url.startswith(f"{parts.scheme}:///"):
            plain = f"{parts.scheme}://{parts.path}{'?' + rest if rest else ''}"
        secrets = {secret for password in passwords for secret in (password, unquote(password)) if secret}
        return cls(plain, prefix, shown, tuple(sorted(secrets, key=len, reverse=True)))

    def hide(self, text: object) -> str:
        """Return the first line of ``text`` without the secrets of this address."""
        line = next(iter(str(text).strip().splitlines()), "")
        for secret in self.secrets:
            line = line.replace(secret, HIDDEN)
        return line


def sqlite_path(url: str, setting: str = "registry") -> Path:
    """Return the file of ``sqlite:///relative`` or ``sqlite:////absolute``, as in SQLAlchemy. Raises ConfigError."""
    rest = url.partition(":")[2]
    if rest.startswith("//"):
        if not rest.startswith("///"):
            raise ConfigError(
                f"{setting} {url}: a file is named with three slashes, or four where its path is absolute"
            )
        rest = rest[3:]
    path, question, _ = rest.partition("?")
    if question:
        raise ConfigError(f"{setting} {url}: a file has no parameters")
    if not path or path == ":memory:" or path.endswith("/"):
        raise ConfigError(f"{setting} {url}: a file name is missing, as in sqlite:////var/lib/modelyard/registry.db")
    return expanded(unquote(path))


def controller_urls(url: str) -> list[str]:
    """Return the addresses of controllers, separated by commas in ``url``. Raises ConfigError."""
    urls = [part.strip().rstrip("/") for part in url.split(",") if part.strip()]
    for part in urls:
        try:
            parts = urlsplit(part)
            is_valid = parts.scheme in ("http", "https", "http+unix") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_valid = False
        if not is_valid or parts.query or parts.fragment:
            raise ConfigError(
                f"registry {masked(part)}: not an address of a controller, as in http://host:8000/api; several are "
                "separated by commas"
            )
    return urls
