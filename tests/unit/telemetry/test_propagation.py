"""What a caller says of its trace is read in any of its forms, becomes the same ids everywhere, and is told on."""

from __future__ import annotations

import pytest
from modelyard.telemetry.dbgpt import Caller, caller_in_body, caller_in_headers, dbgpt_id, numbers_of

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
UUIDS = "11111111-2222-4333-8444-555555555555:99999999-2222-4333-8444-555555555555"
HEX = f"{TRACE}:{SPAN}"


def test_without_headers_there_is_no_caller():
    assert caller_in_headers({}) is None


def test_a_traceparent_is_read_with_its_state():
    caller = caller_in_headers({"HTTP_TRACEPARENT": PARENT, "HTTP_TRACESTATE": "vendor=1,other=2"})
    assert caller == Caller(PARENT, "vendor=1,other=2")
    assert caller.ids() == (int(TRACE, 16), int(SPAN, 16))
    assert caller.flags == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01\r\nX: y",
    ],
)
def test_what_is_no_traceparent_is_as_if_it_were_not_there(text: str):
    assert caller_in_headers({"HTTP_TRACEPARENT": text}) is None
    assert caller_in_headers({"HTTP_TRACEPARENT": text, "HTTP_DB_GPT_TRACE_SPAN_ID": HEX}) == Caller(dbgpt=HEX)


def test_a_version_to_come_is_told_on_as_the_one_that_is_known():
    caller = caller_in_headers({"HTTP_TRACEPARENT": f"01-{TRACE}-{SPAN}-01-more"})
    assert caller is not None
    assert caller.headers()["traceparent"] == PARENT


@pytest.mark.parametrize(
    "state", ["a=" + "x" * 1025, "a=1\r\nX: y", "ключ=1", "a", "a=1,a=2", "A=1", ",".join(f"a{n}=1" for n in range(33))]
)
def test_a_state_that_could_do_harm_is_left_out(state: str):
    assert caller_in_headers({"HTTP_TRACEPARENT": PARENT, "HTTP_TRACESTATE": state}) == Caller(PARENT)


def test_ids_of_dbgpt_0_8_are_w3cs_already():
    assert caller_in_body(HEX) == Caller(dbgpt=HEX)
    assert numbers_of(HEX) == (int(TRACE, 16), int(SPAN, 16))


def test_ids_of_dbgpt_0_5_become_w3cs_by_a_rule():
    trace, span = numbers_of(UUIDS)
    assert trace == int(UUIDS.partition(":")[0].replace("-", ""), 16)
    assert 0 < span < 2**64
    # The same at every hop, in every process, in every release: pinned.
    assert format(span, "016x") == "593d3169376e21ab"


@pytest.mark.parametrize("said", ["a:b", f"{'0' * 32}:{'0' * 16}", "x" * 128 + ":" + "y" * 128])
def test_any_other_id_becomes_one_of_w3cs(said: str):
    trace, span = numbers_of(said)
    assert 0 < trace < 2**128
    assert 0 < span < 2**64
    assert numbers_of(said) == (trace, span)
    assert numbers_of(f"{said}z") != (trace, span)


@pytest.mark.parametrize(
    "said",
    [None, 7, "", "empty_span", "empty_span:empty_span", f"{TRACE}:empty_span", "a:b:c", "a", "a b:c", "a:b\r\n"],
)
def test_what_says_of_no_span_means_none(said: object):
    assert caller_in_body(said) is None
    assert caller_in_headers({"HTTP_DB_GPT_TRACE_SPAN_ID": said} if isinstance(said, str) else {}) is None


def test_traceparent_wins_over_dbgpts_id():
    caller = caller_in_headers({"HTTP_TRACEPARENT": PARENT, "HTTP_DB_GPT_TRACE_SPAN_ID": UUIDS})
    assert caller is not None
    assert caller.ids() == (int(TRACE, 16), int(SPAN, 16))
    assert caller.trace_name is None, "the name of another trace"


def test_a_hop_that_does_not_trace_tells_the_next_what_it_was_told():
    both = Caller(PARENT, "a=1", UUIDS)
    assert both.headers() == {"traceparent": PARENT, "tracestate": "a=1", "DB-GPT-Trace-Span-Id": UUIDS}
    assert Caller(dbgpt=UUIDS).headers() == {"DB-GPT-Trace-Span-Id": UUIDS}


def test_a_dbgpt_server_is_told_of_a_traceparent_in_its_own_form():
    assert Caller(PARENT).headers() == {"traceparent": PARENT, "DB-GPT-Trace-Span-Id": HEX}


def test_dbgpts_name_of_a_trace_is_kept():
    trace, _ = numbers_of(UUIDS)
    name = Caller(dbgpt=UUIDS).trace_name
    assert name == UUIDS.partition(":")[0]
    assert dbgpt_id(trace, 255, name) == f"{name}:00000000000000ff"
    assert numbers_of(dbgpt_id(trace, 255, name)) == (trace, 255)
    assert dbgpt_id(trace, 255) == f"{trace:032x}:00000000000000ff"
