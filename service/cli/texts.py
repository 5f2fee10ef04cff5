"""``modelyard complete``, ``embed``, ``rerank`` and ``tokens``: one call of a model each."""

from __future__ import annotations

import click

from ..client.client import Client
from ..types import JSONObject, plain
from .chat import ANSWER_TIMEOUT, max_tokens_option, read_pipe, temperature_option, text_of, write
from .completion import model_of_service
from .connected import READ_TIMEOUT, with_client
from .failures import Misuse
from .tables import as_json, print_table

SHOWN_NUMBERS = 4
"""Numbers of a vector that are shown to people."""

_model = click.option(
    "-m",
    "--model",
    metavar="NAME",
    help="the model  [default: the only one of its kind]",
    shell_complete=model_of_service,
)


@click.command()
@click.argument("words", nargs=-1, metavar="[PROMPT]...")
@_model
@max_tokens_option
@temperature_option
@click.option("--stop", multiple=True, metavar="TEXT", help="end before this text; may be repeated")
@with_client(ANSWER_TIMEOUT)
def complete(
    client: Client,
    *,
    words: tuple[str, ...],
    model: str | None,
    max_tokens: int | None,
    temperature: float | None,
    stop: tuple[str, ...],
    json_wanted: bool,
) -> None:
    """Continue a raw text, of the arguments or of a pipe, without a chat template."""
    prompt = text_of(words)
    options: JSONObject = {"max_new_tokens": max_tokens, "temperature": temperature, "stop": list(stop) or None}
    with client.stream(prompt=prompt, model=model, **options) as stream:
        try:
            for piece in stream:
                if not json_wanted:
                    write(piece)
        finally:
            if not json_wanted:
                click.echo()
        if json_wanted:
            click.echo(as_json(plain(stream.output)))


@click.command()
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@_model
@with_client(ANSWER_TIMEOUT)
def embed(client: Client, *, texts: tuple[str, ...], model: str | None, json_wanted: bool) -> None:
    """Show the embeddings of each TEXT, or of each line of a pipe. With --json they are whole."""
    given = _texts(texts)
    rows = client.embeddings(given, model=model)
    if json_wanted:
        click.echo(as_json(rows))
        return
    lines = [
        (text, len(row), " ".join(f"{number:.4f}" for number in row[:SHOWN_NUMBERS]) + " ...")
        for text, row in zip(given, rows, strict=True)
    ]
    print_table(("TEXT", "NUMBERS", "THE FIRST"), lines)


@click.command()
@click.argument("query")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@_model
@with_client(ANSWER_TIMEOUT)
def rerank(client: Client, *, query: str, texts: tuple[str, ...], model: str | None, json_wanted: bool) -> None:
    """Rank each TEXT, or each line of a pipe, by how well it answers QUERY: the best first."""
    given = _texts(texts)
    scores = client.rerank(query, given, model=model)
    ranked = sorted(range(len(given)), key=lambda index: -scores[index])
    if json_wanted:
        entries = [{"index": index, "score": scores[index], "text": given[index]} for index in ranked]
        click.echo(as_json(entries))
        return
    lines = [(f"{scores[index]:.4f}", given[index]) for index in ranked]
    print_table(("SCORE", "TEXT"), lines)


@click.command()
@click.argument("words", nargs=-1, metavar="[TEXT]...")
@_model
@with_client(READ_TIMEOUT)
def tokens(client: Client, *, words: tuple[str, ...], model: str | None, json_wanted: bool) -> None:
    """Count the tokens of a text, of the arguments or of a pipe."""
    count = client.count_token(text_of(words), model=model)
    click.echo(as_json({"tokens": count}) if json_wanted else str(count))


def _texts(texts: tuple[str, ...]) -> list[str]:
    given = list(texts) or [line for line in read_pipe().splitlines() if line]
    if not given:
        raise Misuse("there is no text: give each as an argument, or as a line of a pipe")
    return given
