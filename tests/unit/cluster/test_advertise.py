"""The address that others reach this process at."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import closing

import pytest
from modelyard.cluster.addresses import advertised_url, listening_address
from modelyard.errors import ConfigError
from modelyard.settings.settings import Settings


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, "http://127.0.0.1:8000/api"),
        ({"host": "10.1.2.3", "port": 9000, "prefix": "/ml/api/"}, "http://10.1.2.3:9000/ml/api"),
        ({"host": "::1", "prefix": ""}, "http://[::1]:8000"),
        ({"port": 0}, ""),
        ({"port": 0, "advertise": "http://10.0.0.7:8001"}, "http://10.0.0.7:8001/api"),
        ({"host": "localhost"}, "http://localhost:8000/api"),
        ({"host": "unix:/run/my yard/w.sock"}, "http+unix://%2Frun%2Fmy%20yard%2Fw.sock/api"),
        ({"advertise": "https://models.example/yard/api/"}, "https://models.example/yard/api"),
        ({"advertise": "http://10.0.0.7:8001"}, "http://10.0.0.7:8001/api"),
        ({"advertise": "http://[2001:db8::1]:8001/"}, "http://[2001:db8::1]:8001/api"),
        ({"advertise": "http+unix://%2Frun%2Fw.sock/api"}, "http+unix://%2Frun%2Fw.sock/api"),
    ],
)
def test_it_is_what_is_said_or_where_the_service_listens(settings, url):
    assert advertised_url(Settings(**settings)) == url


@pytest.mark.parametrize(
    "registry",
    [None, "sqlite:////tmp/x.db", "http://127.0.0.1:9/api", "postgresql://u:p@127.0.0.1/db", "http://[", "x"],
)
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_one_that_listens_everywhere_is_at_an_address_that_there_is(host, registry):
    url = advertised_url(Settings(host=host, registry=registry))
    address = ipaddress.ip_address(url.removeprefix("http://").removesuffix(":8000/api").strip("[]"))
    assert not address.is_unspecified
    if registry is not None and "127.0.0.1" in registry:
        assert str(address) == "127.0.0.1", "the interface that leads to the registry"


@pytest.mark.parametrize(
    "said", ["models.example", "ftp://x/api", "http://", "http://x:99999/api", "http://x/api?y=1", "http://u:p@x/api"]
)
def test_what_is_no_address_is_refused(said):
    with pytest.raises(ConfigError, match="advertise"):
        advertised_url(Settings(advertise=said))


def server(name: str, port: str, **more: object) -> dict[str, object]:
    return {"SERVER_NAME": name, "SERVER_PORT": port, "HTTP_HOST": "evil.example:99", **more}


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        (server("127.0.0.1", "21125"), ("127.0.0.1", 21125)),
        (server("0.0.0.0", "80"), ("0.0.0.0", 80)),
        (server("waitress.invalid", "8080"), ("", 8080)),
        (server("1.2.3.4", "443", **{"werkzeug.proxy_fix.orig": server("::1", "5000")}), ("::1", 5000)),
        (server("127.0.0.1", ""), None),
        (server("127.0.0.1", "https"), None),
        (server("127.0.0.1", "99999"), None),
        ({}, None),
    ],
)
def test_what_a_server_says_of_itself_in_a_request(environ, address):
    assert listening_address(environ) == address


def test_behind_a_unix_socket_nothing_that_the_client_says_counts(tmp_path):
    with closing(socket.socket(socket.AF_UNIX)) as listener, closing(socket.socket(socket.AF_UNIX)) as client:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        client.connect(str(tmp_path / "s"))
        with closing(listener.accept()[0]) as connection:
            environ = server("evil.example", "99", **{"gunicorn.socket": connection})
            assert listening_address(environ) == (f"unix:{tmp_path}/s", 0)
