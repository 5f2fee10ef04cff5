"""The pages of the shop: some of them ask a model."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Blueprint, Response, jsonify, render_template_string, request
from modelyard.server.extension import current_modelyard
from modelyard.streams import Cancel, OutputStream
from modelyard.types import GenerateRequest
from service.prices import Price

import service.errors

pages = Blueprint("pages", __name__)


@pages.get("/")
def home() -> str:
    return render_template_string("<h1>{{ title }}</h1>", title="The Shop")


@pages.get("/price")
def price() -> Response:
    return jsonify(Price(7))


@pages.get("/owner")
def owner() -> Response:
    return jsonify(service.errors.OWNER)


@pages.post("/order")
def order() -> Response:
    return jsonify(request.get_json())


@pages.get("/broken")
def broken() -> str:
    raise RuntimeError("out of paper")


@pages.get("/ask")
def ask() -> Response:
    """Stream an answer to a page, as text."""
    wanted = GenerateRequest(request.args["model"], prompt=request.args["q"], max_new_tokens=5)
    stream = current_modelyard().manager.generate_stream(wanted, Cancel())
    return Response(words(stream), content_type="text/plain")


def words(stream: OutputStream) -> Iterator[str]:
    with stream:
        for burst in stream:
            yield "".join(burst.pieces) if burst is not None else ""


@pages.get("/answer")
def answer() -> Response:
    wanted = GenerateRequest("echo", messages=[{"role": "human", "content": request.args["q"]}], max_new_tokens=2)
    return jsonify(current_modelyard().manager.generate(wanted, Cancel()).text)


@pages.get("/count")
def count() -> Response:
    return jsonify(current_modelyard().manager.count_token("echo", request.args["q"]))
