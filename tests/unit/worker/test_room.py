"""Who has memory, who makes room for whom, and when: with guests of the test's own and a clock that it sets."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from clocks import Clock
from modelyard.errors import ModelyardError, NotReady, StartFailed
from modelyard.streams import Cancel
from modelyard.worker.room import LINGER, Lease, Room
from running import wait_until

GB = 10**9


class Model:
    """A guest that does what the room asks of it, and notes it."""

    def __init__(self, name: str, *, pinned: bool = False, used: float = 0.0) -> None:
        self.name = name
        self.pinned = pinned
        self.last_used = used
        self.is_in_use = False
        self.is_held = False
        self.is_free = True
        """Whether it can be unloaded: nothing else is done with it."""
        self.unloads = 0
        self.lease: Lease | None = None

    def hold(self) -> None:
        self.is_held = True

    def let_go(self) -> None:
        self.is_held = False

    def make_room(self) -> bool:
        if not self.is_free:
            return False
        assert not self.is_in_use, "unloaded under a request"
        assert self.is_held
        assert self.lease is not None
        self.unloads += 1
        self.lease.release()
        return True


class House:
    """A room with a clock that stands still, and its models."""

    def __init__(self, budget: int | None = 10 * GB, turn: float = 10.0) -> None:
        self.clock = Clock(100.0)
        self.room = Room(budget, turn, self.clock)

    def load(self, model: Model, size: int, **options: float) -> bool:
        """Load a model; return whether there was room."""
        lease = self.room.enter(model, size, Cancel(), lambda: False, **options)
        if lease is not None:
            model.lease = lease
            lease.loaded()
        return lease is not None

    def loaded(self, name: str, size: int, *, used: float = 0.0, pinned: bool = False) -> Model:
        model = Model(name, used=used, pinned=pinned)
        assert self.load(model, size)
        return model

    def wait_for(self, model: Model, size: int, **options: object) -> Waiting:
        return Waiting(self, model, size, **options)


class Waiting(threading.Thread):
    """A model that stands in line in a thread of its own."""

    def __init__(self, house: House, model: Model, size: int, timeout: float = 1000.0) -> None:
        super().__init__(daemon=True)
        self.house, self.model, self.size, self.timeout = house, model, size, timeout
        self.cancel = Cancel()
        self.is_wanted = True
        self.error: ModelyardError | None = None
        self.start()
        wait_until(lambda: model in house.room._line or not self.is_alive(), "it stands in line")

    def run(self) -> None:
        try:
            self.model.lease = self.house.room.enter(
                self.model, self.size, self.cancel, lambda: self.is_wanted, self.timeout
            )
            if self.model.lease is not None:
                self.model.lease.loaded()
        except ModelyardError as error:
            self.error = error

    def end(self) -> Lease | None:
        self.house.room.notice()
        self.join(20)
        assert not self.is_alive(), "it still waits"
        return self.model.lease

    def after(self, condition: Callable[[], object], what: str) -> None:
        """Wait until the room, which is told to look again, has brought about a condition."""
        wait_until(lambda: (self.house.room.notice(), condition())[1], what)
        assert self.is_alive()


# Room that is there


def test_models_are_loaded_while_there_is_room_and_their_memory_comes_back():
    house = House()
    first = house.loaded("first", 6 * GB)
    second = house.loaded("second", 4 * GB)
    assert house.room.taken == 10 * GB
    assert not house.load(Model("third"), 1) or pytest.fail("an idle model was unloaded although nobody waits")
    for lease in (first.lease, second.lease, second.lease):
        assert lease is not None
        lease.release()
    assert house.room.taken == 0


def test_without_a_budget_and_for_a_model_that_needs_nothing_there_is_always_room():
    house = House(None)
    assert house.load(Model("large"), 10**15)
    house = House()
    house.loaded("all", 10 * GB)
    assert house.load(Model("small"), 0)


@pytest.mark.parametrize("pinned", [0, 3])
def test_a_model_that_never_fits_is_refused_with_the_figures(pinned):
    house = House()
    if pinned:
        house.loaded("rock", pinned * GB, pinned=True)
    house.loaded("idle", 2 * GB)
    beside = r", of which 'rock' keeps 3.0 GB \(pinned\)" if pinned else ""
    expected = rf"^model 'big' needs 12.0 GB of memory, and memory_budget is 10.0 GB{beside}: raise memory_budget, .*"
    with pytest.raises(StartFailed, match=expected):
        house.load(Model("big"), 12 * GB)
    if pinned:
        with pytest.raises(StartFailed, match=r"'big' needs 8\.0 GB"):
            house.load(Model("big"), 8 * GB)
    assert house.room._line == []


# Who makes room


def test_the_idle_model_that_was_used_least_recently_makes_room():
    house = House()
    new, old = house.loaded("new", 5 * GB, used=50), house.loaded("old", 5 * GB, used=20)
    house.wait_for(Model("b"), 3 * GB).end()
    assert (new.unloads, old.unloads) == (0, 1)
    assert (new.is_held, house.room.taken) == (False, 8 * GB)


def test_no_more_models_make_room_than_have_to():
    house = House()
    small, large = house.loaded("small", 1 * GB, used=10), house.loaded("large", 8 * GB, used=20)
    house.wait_for(Model("b"), 9 * GB).end()
    assert (small.unloads, large.unloads) == (0, 1), "the large one suffices, although the small one is older"
    house.wait_for(third := Model("c"), 10 * GB).end()
    assert small.unloads == 1
    assert third.lease is not None


def test_pinned_models_and_those_that_are_just_loaded_never_make_room():
    house = House()
    rock = house.loaded("rock", 4 * GB, pinned=True)
    coming = Model("coming")
    coming.lease = house.room.enter(coming, 4 * GB, Cancel(), lambda: True)  # not loaded yet
    waiting = house.wait_for(Model("b"), 5 * GB)
    house.clock.now += 500
    waiting.after(lambda: True, "")
    assert (rock.unloads, coming.unloads) == (0, 0)
    assert coming.lease is not None
    coming.lease.loaded()
    assert waiting.end() is not None
    assert (rock.unloads, coming.unloads) == (0, 1)


def test_one_that_is_just_stopped_or_changed_is_tried_again():
    house = House()
    first = house.loaded("first", 8 * GB)
    first.is_free = False
    waiting = house.wait_for(Model("b"), 5 * GB)
    waiting.after(lambda: first.is_held, "it is to make room")
    first.is_free = True
    assert waiting.end() is not None


# Turns


def test_a_model_in_use_keeps_its_memory_for_a_turn_and_then_lets_its_requests_end():
    house = House(turn=10)
    busy = house.loaded("busy", 8 * GB)
    busy.is_in_use = True
    waiting = house.wait_for(Model("b"), 5 * GB)
    house.clock.now += 9.9
    waiting.after(lambda: not busy.is_held, "its turn lasts")
    house.clock.now += 0.1
    waiting.after(lambda: busy.is_held, "new requests of it wait")
    assert busy.unloads == 0, "some still run"
    busy.is_in_use = False
    assert waiting.end() is not None
    assert busy.unloads == 1


def test_a_model_that_is_idle_before_its_turn_is_over_makes_room_at_once():
    house = House(turn=10)
    busy = house.loaded("busy", 8 * GB)
    busy.is_in_use = True
    waiting = house.wait_for(Model("b"), 5 * GB)
    waiting.after(lambda: not busy.is_held, "it keeps its memory")
    busy.is_in_use = False
    assert waiting.end() is not None


def test_in_its_turn_a_model_is_in_use_for_a_moment_after_its_last_request():
    house = House(turn=10)
    busy = house.loaded("busy", 8 * GB, used=100.0)
    waiting = house.wait_for(Model("b"), 5 * GB)
    house.clock.now += LINGER / 2
    waiting.after(lambda: not busy.is_held, "its next request may be on its way")
    busy.last_used = house.clock.now
    house.clock.now += LINGER - 0.01
    waiting.after(lambda: not busy.is_held, "it was used meanwhile")
    house.clock.now += 0.02
    assert waiting.end() is not None


def test_the_turn_of_a_model_begins_with_its_load_and_not_with_the_wait_of_the_other():
    house = House(turn=10)
    house.loaded("rock", 4 * GB, pinned=True)
    first = Model("first")
    lease = house.room.enter(first, 6 * GB, Cancel(), lambda: True)
    assert lease is not None
    first.lease, first.is_in_use = lease, True
    waiting = house.wait_for(Model("b"), 5 * GB)
    house.clock.now += 60  # the load takes long
    lease.loaded()
    waiting.after(lambda: not first.is_held, "it has just been loaded")
    house.clock.now += 10
    waiting.after(lambda: first.is_held, "its turn is over")
    waiting.cancel.set()


def test_idle_models_are_kept_while_what_they_have_does_not_suffice():
    house = House(turn=10)
    idle, busy = house.loaded("idle", 3 * GB), house.loaded("busy", 6 * GB)
    busy.is_in_use = True
    waiting = house.wait_for(Model("b"), 5 * GB)
    waiting.after(lambda: not idle.is_held, "nothing is gained by its unload")
    house.clock.now += 10
    waiting.after(lambda: busy.is_held, "now both are to make room")
    assert (idle.unloads, busy.unloads) == (0, 0)
    busy.is_in_use = False
    waiting.end()
    assert (idle.unloads, busy.unloads) == (0, 1), "the one suffices"


def test_the_first_in_line_is_served_first_also_if_a_later_one_would_fit():
    house = House(turn=10)
    busy = house.loaded("busy", 8 * GB)
    busy.is_in_use = True
    large = house.wait_for(Model("large"), 9 * GB)
    small = house.wait_for(Model("small"), 1 * GB)
    small.after(lambda: small.model.lease is None, "it waits behind the large one")
    busy.is_in_use = False
    assert large.end() is not None
    assert small.end() is not None
    assert house.room.taken == 10 * GB


# Those that leave


def test_a_model_that_is_no_longer_wanted_leaves_the_line_and_the_others_go_on():
    house = House(turn=10)
    busy = house.loaded("busy", 8 * GB)
    busy.is_in_use = True
    waiting = house.wait_for(Model("b"), 5 * GB)
    house.clock.now += 10
    waiting.after(lambda: busy.is_held, "its turn is over")
    waiting.is_wanted = False
    assert waiting.end() is None
    assert (busy.is_held, busy.unloads, house.room._line) == (False, 0, [])


def test_who_leaves_from_the_end_of_the_line_changes_nothing_for_the_first():
    house = House(turn=10)
    busy = house.loaded("busy", 8 * GB)
    busy.is_in_use = True
    first, second = house.wait_for(Model("b"), 5 * GB), house.wait_for(Model("c"), 5 * GB)
    house.clock.now += 10
    first.after(lambda: busy.is_held, "its turn is over")
    let_go: list[str] = []
    busy.let_go = lambda: let_go.append("busy")  # type: ignore[method-assign]
    second.is_wanted = False
    assert second.end() is None
    assert (let_go, busy.is_held) == ([], True)
    busy.is_in_use = False
    assert first.end() is not None


def test_a_cancel_ends_the_wait_with_its_error():
    house = House()
    house.loaded("rock", 8 * GB, pinned=False).is_in_use = True
    waiting = house.wait_for(Model("b"), 5 * GB)
    waiting.cancel.set(NotReady("model 'b' was stopped"))
    waiting.join(20)
    assert str(waiting.error) == "model 'b' was stopped"


def test_a_wait_that_takes_too_long_ends_with_who_has_the_memory():
    house = House()
    house.loaded("first", 4 * GB).is_in_use = True
    house.loaded("second", 5 * GB).is_in_use = True
    waiting = house.wait_for(Model("b"), 5 * GB, timeout=30.0)
    house.clock.now += 30
    assert waiting.end() is None
    assert isinstance(waiting.error, NotReady)
    assert str(waiting.error) == (
        "model 'b' needs 5.0 GB of memory, but 'first', 'second' have 9.0 GB of 10.0 GB (memory_budget) within 30 s"
    )
