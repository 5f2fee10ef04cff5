"""The notebook's page, and the answer that is streamed into it."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Blueprint, Response, abort, current_app, g, render_template, request
from flask.typing import ResponseReturnValue
from modelyard import current_modelyard
from modelyard.errors import ModelyardError
from modelyard.streams import OutputStream
from modelyard.types import GenerateRequest

from service import database, notebook

from .auth import login_required

blueprint = Blueprint("pages", __name__)


@blueprint.get("/")
@login_required
def home() -> ResponseReturnValue:
    with database.opened(current_app.config["DATABASE"]) as db:
        return render_template("home.html", entries=notebook.entries_of(db, g.user["id"]))


@blueprint.post("/ask")
@login_required
def ask() -> ResponseReturnValue:
    question = request.form["question"].strip() or abort(400)
    prompt = GenerateRequest(current_app.config["MODEL"], [{"role": "user", "content": question}], max_new_tokens=200)
    stream = current_modelyard().manager.generate_stream(prompt)
    pieces = pieces_of(stream, current_app.config["DATABASE"], g.user["id"], question)
    response = Response(pieces, mimetype="text/plain")
    response.call_on_close(stream.close)  # stops the engine, also when the reader has gone
    return response


def pieces_of(stream: OutputStream, path: str, user: int, question: str) -> Iterator[str]:
    """Yield an answer as it comes, and store it when it is whole."""
    texts = []
    try:
        for burst in stream:
            if burst is not None:  # None: nothing came for about a second
                texts.append("".join(burst.pieces))
                yield texts[-1]
    except ModelyardError as error:
        yield f"\n[{error}]"
        return
    with database.opened(path) as db:
        notebook.keep(db, user, question, "".join(texts).strip())


@blueprint.errorhandler(ModelyardError)
def refuse(error: ModelyardError) -> Response:
    """Return the reason why there is no answer, which the page shows in its place."""
    return Response(f"[{error}]", error.status, mimetype="text/plain")
