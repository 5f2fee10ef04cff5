"""The tree of errors is what its docstring draws, and each has a code of its own."""

from __future__ import annotations

import inspect
import re

import pytest
from modelyard import errors
from modelyard.errors import InvalidRequest, ModelyardError, Unavailable

_DRAWN = re.compile(r"^    (?P<branch>[│├└─ ]*)(?P<name>[A-Z]\w+)(?: +(?P<status>\d{3}))?(?:  .*)?$")


def classes() -> list[type[ModelyardError]]:
    found = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, ModelyardError)]
    return [c for c in found if c.__module__ == errors.__name__]


def drawn() -> dict[str, tuple[str | None, int | None]]:
    """Return name -> (parent, status) as the docstring of the module draws them."""
    tree: dict[str, tuple[str | None, int | None]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = _DRAWN.match(line)
        if match is None:
            continue
        depth = len(match["branch"]) // 4
        above[depth:] = [match["name"]]
        tree[match["name"]] = (above[depth - 1] if depth else None, int(match["status"]) if match["status"] else None)
    return tree


def test_the_docstring_draws_every_class_under_its_parent():
    parents = {c.__name__: c.__base__.__name__ if c is not ModelyardError else None for c in classes()}
    assert {name: parent for name, (parent, _) in drawn().items()} == parents


def test_the_docstring_names_the_status_of_each_branch():
    for name, (_, status) in drawn().items():
        if status is not None:
            assert getattr(errors, name).status == status, name


def test_every_code_is_one_word_and_used_once():
    # These differ from their parent in this process only: to clients they are it.
    within = {errors.NotConnected, errors.WorkerSilent}
    codes = [c.code for c in classes() if c not in within]
    assert {c.code for c in within} == {errors.WorkerUnreachable.code}
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_an_invalid_request_names_every_field():
    error = InvalidRequest.of_fields([{"field": "a", "message": "is missing"}, {"field": "b[2]", "message": "is odd"}])
    assert str(error) == "a: is missing; b[2]: is odd"
    assert [e["field"] for e in error.errors] == ["a", "b[2]"]


@pytest.mark.parametrize("kind", [c for c in classes() if issubclass(c, Unavailable)])
def test_unavailable_says_when_to_come_again(kind):
    assert kind("busy").retry_after == 1
    assert kind("busy", retry_after=7).retry_after == 7


@pytest.mark.parametrize("kind", classes())
def test_every_error_can_be_made_of_its_text_alone(kind):
    assert str(kind("what to do next")) == "what to do next"
