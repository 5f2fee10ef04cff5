"""A caller's span is read in any of its forms, becomes the same ids at every hop, and is passed on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest
from flask import Request
from modelyard.blueprints.request.traces import arrived, read_body
from modelyard.telemetry import dbgpt
from modelyard.telemetry.dbgpt import DBGPTPropagator, ids_of, received_id, span_id
from modelyard.telemetry.tracing import Tracing, has_span, outgoing_headers, propagator
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, get_current_span, set_span_in_context
from werkzeug.test import EnvironBuilder

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
UUIDS = "11111111-2222-4333-8444-555555555555:99999999-2222-4333-8444-555555555555"
HEX = f"{TRACE}:{SPAN}"


def passed_on(headers: Mapping[str, str], body: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the headers for the next hop of a call that a process answers which does not trace."""
    tracing = Tracing()
    call = Request(EnvironBuilder("/x", method="POST", headers=dict(headers)).get_environ())
    trace = arrived(tracing, call)
    if body is not None:
        trace = read_body(tracing, call, trace, body)
    sent = outgoing_headers()
    if trace is not None:
        trace.leave()
    assert not has_span()
    return sent


def ids(context: Context) -> tuple[int, int]:
    span = get_current_span(context).get_span_context()
    return span.trace_id, span.span_id


def below(context: Context, span: int) -> Context:
    """Return the context of a span of this process below that of ``context``."""
    trace_id = get_current_span(context).get_span_context().trace_id
    return set_span_in_context(NonRecordingSpan(SpanContext(trace_id, span, is_remote=False)), context)


def test_without_headers_there_is_no_caller():
    assert not has_span(propagator().extract({}))
    assert passed_on({}) == {}


def test_a_traceparent_is_passed_on_with_its_state_and_in_dbgpts_form():
    headers = {"traceparent": PARENT, "tracestate": "vendor=1,other=2"}
    assert passed_on(headers) == {**headers, dbgpt.HEADER: HEX}


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
        f"00-{TRACE}-{SPAN}-0x",
        f"01-{TRACE}-{SPAN}-01-{'x' * 1000}",
    ],
)
def test_an_invalid_traceparent_is_ignored(text: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    assert passed_on({"traceparent": text}) == {}
    assert passed_on({"traceparent": text, dbgpt.HEADER: HEX}) == {"traceparent": PARENT, dbgpt.HEADER: HEX}
    assert passed_on({"traceparent": text}, {"span_id": HEX}) == {"traceparent": PARENT, dbgpt.HEADER: HEX}
    assert caplog.text == ""


def test_a_version_to_come_is_passed_on_as_the_known_one():
    assert passed_on({"traceparent": f"01-{TRACE}-{SPAN}-01-more"})["traceparent"] == PARENT


@pytest.mark.parametrize(
    "state",
    ["a=" + "x" * 1025, "\u00fc=1", "a", "a=1,a=2", "A=1", "a=1,,", ",".join(f"a{n}=1" for n in range(33))],
)
def test_an_invalid_state_is_left_out(state: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    assert passed_on({"traceparent": PARENT, "tracestate": state}) == {"traceparent": PARENT, dbgpt.HEADER: HEX}
    assert caplog.text == "", "OpenTelemetry would log what a client sends"


def test_a_state_without_a_traceparent_is_ignored():
    assert passed_on({"tracestate": "a=1", dbgpt.HEADER: HEX}) == {"traceparent": PARENT, dbgpt.HEADER: HEX}


def test_ids_of_dbgpt_0_8_are_w3cs_already():
    assert ids_of(HEX) == (int(TRACE, 16), int(SPAN, 16))


def test_ids_of_dbgpt_0_5_become_w3cs_by_a_rule():
    numbers = ids_of(UUIDS)
    assert numbers is not None
    assert numbers[0] == int(UUIDS.partition(":")[0].replace("-", ""), 16)
    assert 0 < numbers[1] < 2**64
    # The same at every hop, in every process, in every release: pinned.
    assert format(numbers[1], "016x") == "593d3169376e21ab"


@pytest.mark.parametrize("text", ["a:b", f"{'0' * 32}:{'0' * 16}", "x" * 128 + ":" + "y" * 128])
def test_any_other_id_becomes_one_of_w3cs(text: str):
    numbers = ids_of(text)
    assert numbers is not None
    assert 0 < numbers[0] < 2**128
    assert 0 < numbers[1] < 2**64
    assert ids_of(text) == numbers
    assert ids_of(f"{text}z") != numbers


@pytest.mark.parametrize(
    "value",
    [None, 7, "", "empty_span", "empty_span:empty_span", f"{TRACE}:empty_span", "a:b:c", "a", "a b:c", "a:b\r\n", []],
)
def test_what_is_not_an_id_is_ignored(value: object):
    assert ids_of(value) is None
    assert passed_on({}, {"span_id": value}) == {}
    if isinstance(value, str) and "\n" not in value:
        assert passed_on({dbgpt.HEADER: value}) == {}


def test_a_traceparent_has_precedence_over_dbgpts_id():
    context = propagator().extract({"traceparent": PARENT, dbgpt.HEADER: UUIDS})
    assert ids(context) == (int(TRACE, 16), int(SPAN, 16))
    assert span_id(context) == UUIDS, "passed on as it came"
    assert span_id(below(context, 255)) == f"{TRACE}:00000000000000ff", "not by the name of another trace"


def test_a_header_has_precedence_over_the_body():
    parent = f"00-{UUIDS.partition(':')[0].replace('-', '')}-593d3169376e21ab-01"
    assert passed_on({dbgpt.HEADER: UUIDS}, {"span_id": HEX}) == {"traceparent": parent, dbgpt.HEADER: UUIDS}


def test_dbgpts_name_of_a_trace_is_kept():
    context = DBGPTPropagator().extract({dbgpt.HEADER: UUIDS})
    received = received_id(context)
    assert received is not None
    assert received.text == UUIDS
    assert ids(context) == ids_of(UUIDS)
    text = span_id(below(context, 255))
    assert text == f"{UUIDS.partition(':')[0]}:00000000000000ff"
    assert ids_of(text) == (ids(context)[0], 255)


def test_a_share_of_dbgpts_traces_counts_as_recorded():
    few, all_of_them, none = (DBGPTPropagator(sample) for sample in (0.25, 1.0, 0.0))

    def is_sampled(propagator: DBGPTPropagator, text: str) -> bool:
        context = propagator.extract({dbgpt.HEADER: text})
        return get_current_span(context).get_span_context().trace_flags.sampled

    texts = [f"trace-{number}:span" for number in range(400)]
    assert 50 < sum(is_sampled(few, text) for text in texts) < 150
    assert all(is_sampled(all_of_them, text) for text in texts)
    assert not any(is_sampled(none, text) for text in texts)


def test_the_propagator_names_its_header_and_writes_it_into_any_carrier():
    context = DBGPTPropagator().extract({dbgpt.HEADER: HEX})
    carrier: dict[str, str] = {}
    DBGPTPropagator().inject(carrier, context)
    assert carrier == {dbgpt.HEADER: HEX}
    assert set(carrier) == DBGPTPropagator().fields
    DBGPTPropagator().inject(carrier := {}, Context())
    assert carrier == {}
    assert propagator().fields == {"traceparent", "tracestate", dbgpt.HEADER}
