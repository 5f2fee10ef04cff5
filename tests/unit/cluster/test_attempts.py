"""Whom a request is sent to, one after the other, and what all refusals come to."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import pytest
from modelyard.affinity import Candidate, ranked
from modelyard.cluster.attempts import Attempts, RoutedStreams
from modelyard.cluster.registry.base import Instance
from modelyard.cluster.routing import Routes
from modelyard.errors import (
    Cancelled,
    Draining,
    EngineError,
    InvalidRequest,
    ModelyardError,
    NotReady,
    Overloaded,
    UnknownModel,
    WorkerLost,
    WorkerUnreachable,
)
from modelyard.streams import Cancel, OutputStream, Relay
from modelyard.types import Burst, Terms

KEY = "a@llm"
Answer = Callable[[bool, Cancel], Iterator[Burst | None]]


def instance(name: str, **fields: object) -> Instance:
    return Instance(KEY, f"http://{name}/api", **{"healthy": True, "generation": 1, **fields})  # type: ignore[arg-type]


class Cluster:
    """Instances by name, each with what it answers; notes who was asked, and whether the request may wait there."""

    def __init__(self, **answers: Answer) -> None:
        self.answers = answers
        self.known = [instance(name) for name in answers]
        self.later: list[Instance] | None = None
        self.routes = Routes(random=random.Random(3))
        self.asked: list[tuple[str, bool]] = []
        self.open: list[OutputStream] = []
        self.looked_into = 0

    def _failed(self) -> None:
        self.looked_into += 1

    def attempts(self, wait: bool = True, session: str = "") -> Attempts:
        def again() -> list[Instance]:
            return self.known if self.later is None else self.later

        return Attempts(KEY, lambda: self.known, again, self.routes, Terms(wait, session=session), self._failed)

    def stream(self, wait: bool = True, cancel: Cancel | None = None, session: str = "") -> OutputStream:
        cancel = cancel or Cancel()
        return Relay(RoutedStreams(self.attempts(wait, session), self._ask), cancel)

    def _ask(self, one: Instance, cancel: Cancel, terms: Terms) -> OutputStream:
        name = one.url.removeprefix("http://").removesuffix("/api")
        self.asked.append((name, terms.wait))
        stream = OutputStream(
            self.answers[name](terms.wait, cancel), cancel, lambda: None, load="slots=4;free=3;waiting=0"
        )
        self.open.append(stream)
        return stream

    def names(self) -> list[str]:
        return [name for name, _ in self.asked]


def says(*pieces: str) -> Answer:
    def answer(wait: bool, cancel: Cancel) -> Iterator[Burst | None]:
        for piece in pieces:
            yield Burst([piece])
        yield Burst([], "stop")

    return answer


def refuses(error: ModelyardError) -> Answer:
    def answer(wait: bool, cancel: Cancel) -> Iterator[Burst | None]:
        raise error
        yield

    return answer


def full(name: str, waiting: int = 0) -> Answer:
    """Has no slot free; who waits gets one."""

    def answer(wait: bool, cancel: Cancel) -> Iterator[Burst | None]:
        if not wait:
            raise Overloaded(f"{name} is full", 3, f"slots=2;free=0;waiting={waiting}")
        yield Burst([name], "stop")

    return answer


def breaks(error: ModelyardError, *pieces: str) -> Answer:
    def answer(wait: bool, cancel: Cancel) -> Iterator[Burst | None]:
        for piece in pieces:
            yield Burst([piece])
        raise error

    return answer


def text(stream: OutputStream) -> str:
    with stream:
        return "".join(piece for burst in stream if burst for piece in burst.pieces)


UNREACHABLE = WorkerUnreachable("connection refused")


def test_the_only_instance_is_asked_once_and_the_request_may_wait_there():
    cluster = Cluster(one=says("x", "y"))
    assert text(cluster.stream()) == "xy"
    assert cluster.asked == [("one", True)]
    assert cluster.routes.load_of(cluster.known).free == 3


def test_a_session_is_tried_and_waits_in_its_own_order():
    cluster = Cluster(one=full("one", 1), two=full("two", 1), three=full("three", 1))
    order = [one.url[7:-4] for one in ranked("s", [Candidate(one.url, 0, 2) for one in cluster.known])]
    assert text(cluster.stream(session="s")) == order[0]
    assert cluster.asked == [*((name, False) for name in order), (order[0], True)]


def test_what_was_waited_at_the_instance_is_noted_for_the_request():
    def slow(wait: bool, cancel: Cancel) -> Iterator[Burst | None]:
        cancel.queued = 1.5
        yield Burst(["x"], "stop")

    cancel = Cancel()
    assert text(Cluster(one=slow).stream(cancel=cancel)) == "x"
    assert cancel.queued == 1.5


def test_one_that_does_not_wait_is_not_put_in_line_anywhere():
    cluster = Cluster(one=full("one"), two=full("two"))
    with pytest.raises(Overloaded, match="no instance of a@llm has room") as refused:
        text(cluster.stream(wait=False))
    assert sorted(cluster.asked) == [("one", False), ("two", False)]
    assert refused.value.retry_after == 3
    assert refused.value.load == "slots=4;free=0;waiting=0"


@pytest.mark.parametrize("session", ["", "s"])
def test_where_all_refuse_and_none_is_full_there_is_no_line(session):
    cluster = Cluster(one=refuses(NotReady("it starts")), two=refuses(NotReady("it starts")))
    with pytest.raises(NotReady, match="no instance of a@llm can be taken"):
        text(cluster.stream(session=session))


@pytest.mark.parametrize(
    "error", [UNREACHABLE, NotReady("it starts"), Draining("it ends"), UnknownModel("gone"), Overloaded("full")]
)
def test_who_refuses_is_passed_over_and_asked_no_second_time(error):
    for _ in range(8):
        cluster = Cluster(one=refuses(error), two=says("x"), three=says("x"))
        assert text(cluster.stream()) == "x"
        assert len(cluster.names()) == len(set(cluster.names()))


@pytest.mark.parametrize("error", [UNREACHABLE, NotReady("it starts"), UnknownModel("gone")])
def test_the_next_request_does_not_go_to_who_refused(error):
    cluster = Cluster(one=refuses(error), two=says("x"))
    for _ in range(20):
        assert text(cluster.stream()) == "x"
    assert cluster.names().count("one") == 1
    assert cluster.looked_into == 1


def test_all_are_asked_without_waiting_before_any_line():
    cluster = Cluster(one=full("one", waiting=5), two=full("two", waiting=1), three=full("three", waiting=9))
    assert text(cluster.stream()) == "two"
    assert sorted(cluster.asked[:3]) == [("one", False), ("three", False), ("two", False)]
    assert cluster.asked[3:] == [("two", True)], "the shortest line"


def test_a_line_that_breaks_is_left_for_the_next_best():
    def gone(wait: bool, cancel: Cancel) -> Iterator[Burst | None]:
        if not wait:
            raise Overloaded("full", 1, "slots=2;free=0;waiting=0")
        raise UNREACHABLE
        yield

    cluster = Cluster(one=gone, two=full("two", waiting=3))
    assert text(cluster.stream()) == "two"
    assert cluster.asked[2:] == [("one", True), ("two", True)]


def test_after_a_piece_nothing_is_sent_again():
    for error in (WorkerLost("it broke off"), UNREACHABLE, NotReady("it was stopped")):
        cluster = Cluster(one=breaks(error, "x"), two=breaks(error, "x"))
        stream = cluster.stream()
        with stream, pytest.raises(type(error)):
            list(stream)
        assert len(cluster.asked) == 1


def test_the_next_request_does_not_go_to_who_broke_off():
    cluster = Cluster(one=breaks(WorkerLost("it broke off"), "x"), two=says("y"))
    lost = 0
    for _ in range(20):
        try:
            text(cluster.stream())
        except WorkerLost:
            lost += 1
    assert cluster.names().count("one") == lost == cluster.looked_into == 1


def test_silence_is_no_piece():
    def quiet(wait: bool, cancel: Cancel) -> Iterator[Burst | None]:
        yield None
        raise UNREACHABLE

    cluster = Cluster(one=quiet)
    cluster.later = [instance("one"), instance("two")]
    cluster.answers["two"] = says("x")
    assert text(cluster.stream()) == "x"
    assert cluster.names() == ["one", "two"]


@pytest.mark.parametrize("error", [InvalidRequest("no"), EngineError("broke"), Cancelled("gone")])
def test_what_is_an_answer_is_not_asked_for_elsewhere(error):
    cluster = Cluster(one=refuses(error), two=refuses(error))
    with pytest.raises(type(error)):
        text(cluster.stream())
    assert len(cluster.asked) == 1
    assert cluster.routes.why_not(cluster.known[0]) == ""


def test_before_giving_up_the_registry_is_asked_once_more():
    cluster = Cluster(one=refuses(UNREACHABLE))
    cluster.later = [instance("one"), instance("two")]
    cluster.answers["two"] = says("x")
    assert text(cluster.stream()) == "x"


def test_one_that_registered_again_meanwhile_is_taken():
    cluster = Cluster(one=refuses(UNREACHABLE))
    cluster.later = [instance("one", generation=2)]
    with pytest.raises(WorkerUnreachable):
        text(cluster.stream())
    cluster.known, cluster.answers["one"] = cluster.later, says("x")
    assert text(cluster.stream()) == "x"


def test_the_refusal_of_the_only_one_is_said_as_it_is():
    cluster = Cluster(one=refuses(Overloaded("all 2 slots run (max_waiting)", 5)))
    with pytest.raises(Overloaded, match="max_waiting") as refused:
        text(cluster.stream())
    assert refused.value.retry_after == 5


def test_without_an_instance_it_says_which_are_known_and_why_each_was_not_taken():
    cluster = Cluster(one=refuses(UNREACHABLE), two=says("x"), three=says("x"), four=refuses(NotReady("it starts")))
    cluster.known[1].healthy = False
    cluster.known[2].enabled = False
    with pytest.raises(NotReady) as refused:
        text(cluster.stream())
    message = str(refused.value)
    assert "http://one/api: connection refused" in message
    assert "http://two/api: it is not healthy" in message
    assert "http://three/api: it is disabled" in message
    assert "http://four/api: it starts" in message


def test_where_none_is_known_there_is_no_such_model():
    with pytest.raises(UnknownModel, match="a@llm"):
        text(Cluster().stream())


def test_closing_the_stream_ends_the_request_and_nothing_counts_as_under_way():
    def endless(wait: bool, cancel: Cancel) -> Iterator[Burst | None]:
        while not cancel.is_set():
            yield Burst(["x"])

    cluster = Cluster(one=endless)
    stream = cluster.stream()
    next(stream)
    stream.close()
    assert cluster.open[0].cancel.is_set()
    assert cluster.routes._traffic[KEY, "http://one/api"].in_flight == 0


def test_a_cancel_reaches_the_one_that_answers_and_nobody_else_is_asked():
    def held(wait: bool, cancel: Cancel) -> Iterator[Burst | None]:
        while not cancel.is_set():
            yield None
        raise UNREACHABLE

    cluster, cancel = Cluster(one=held, two=held), Cancel()
    stream = cluster.stream(cancel=cancel)
    assert next(stream) is None
    cancel.set(Draining("this process ends"))
    with pytest.raises(Draining):
        list(stream)
    assert len(cluster.asked) == 1
    assert cluster.open[0].cancel.is_set()


def test_every_request_is_counted_out_again_however_it_ends():
    cluster = Cluster(one=full("one"), two=refuses(UNREACHABLE), three=breaks(WorkerLost("x"), "x"))
    for wait in (True, False) * 5:
        stream = cluster.stream(wait=wait)
        with stream, contextlib.suppress(ModelyardError):
            list(stream)
    assert {t.in_flight for t in cluster.routes._traffic.values()} == {0}
