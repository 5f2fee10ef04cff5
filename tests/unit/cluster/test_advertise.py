"""The address that others reach this process at."""

from __future__ import annotations

import ipaddress

import pytest
from modelyard.cluster.addresses import advertised_url
from modelyard.errors import ConfigError
from modelyard.settings.settings import Settings


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, "http://127.0.0.1:8000/api"),
        ({"host": "10.1.2.3", "port": 9000, "prefix": "/ml/api/"}, "http://10.1.2.3:9000/ml/api"),
        ({"host": "::1", "prefix": ""}, "http://[::1]:8000"),
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
