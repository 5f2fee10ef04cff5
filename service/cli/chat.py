"""``modelyard chat``: talk to a model, in a terminal or through a pipe."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import click

from ..client.answers import only_model
from ..client.client import Client
from ..errors import InvalidRequest, ModelyardError, Unavailable, Unsupported, not_callable
from ..types import JSONObject, WorkerType, plain
from .completion import model_of_service
from .connected import with_client
from .failures import Misuse, complain
from .tables import as_json, safe_text

ANSWER_TIMEOUT = 120.0
"""Seconds of silence after which an answer is given up."""

NO_TEXT = "there is no text: give it as an argument, or through a pipe"

HELP = """\
/help            this list
/clear           forget the conversation
/undo            forget the last message and its answer
/again           answer the last message once more
/system [TEXT]   set what the model is told first; without a text, nothing
/model [NAME]    talk to another model; without a name, to the only one
/exit            end, as Ctrl-D does

Ctrl-C ends an answer. A line that ends in \\ goes on in the next one."""


class Conversation:
    """The messages of one conversation, and the model that answers them."""

    def __init__(self, client: Client, model: str | None, system: str | None, options: Mapping[str, Any]) -> None:
        """Begin without a message; ``options`` are those of `Client.stream`."""
        self._client = client
        self._options = options
        self._turns: list[JSONObject] = []
        self.model = model
        self.system = system

    def say(self, text: str, write: Callable[[str], object]) -> JSONObject:
        """Send a message, and pass the pieces of its answer to ``write``; return the output's fields.

        Ctrl-C ends the answer: what has come stays in the conversation. Raises the errors of `Client.stream`, on a new
        line after the pieces that had come; the message is not part of the conversation then.
        """
        self._turns.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            began = time.monotonic()
            with self._client.stream(self._messages(), model=self.model, **self._options) as stream:
                with contextlib.suppress(KeyboardInterrupt):
                    for piece in stream:
                        pieces.append(piece)
                        write(piece)
                seconds = round(time.monotonic() - began, 3)
                output = {**plain(stream.output), "text": "".join(pieces), "seconds": seconds}
        except BaseException:
            self._turns.pop()
            if pieces:
                write("\n")
            raise
        self._turns.append({"role": "assistant", "content": "".join(pieces)})
        return output

    def _messages(self) -> list[JSONObject]:
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self._turns]

    def talk_to(self, model: str | None) -> str:
        """Let ``model`` answer from now on, by default the only one, and return its name.

        Raises UnknownModel, Unsupported for one that is not an LLM, and the errors of `Client.models`: the model stays
        then. Raises InvalidRequest if there are several: then one has to be chosen.
        """
        states = self._client.models()
        if model is None:
            self.model = None
            return only_model(states, (WorkerType.LLM.value,), self._client.url)
        kinds = {state.worker_type for state in states if state.name == model}
        if not kinds:
            # It may be another name of a model. Its tokens need not be known: what it is, is known then.
            with contextlib.suppress(Unsupported, Unavailable):
                self._client.count_token("", model=model)
        elif kinds.isdisjoint({WorkerType.LLM.value, None}):
            raise not_callable([f"{model}@{kind}" for kind in kinds], model, [WorkerType.LLM.value])
        self.model = model
        return model

    def clear(self) -> None:
        """Forget all messages."""
        self._turns.clear()

    def undo(self) -> str | None:
        """Forget the last message and its answer; return its text, None if there is none."""
        if not self._turns:
            return None
        text: str = self._turns[-2]["content"]
        del self._turns[-2:]
        return text


max_tokens_option = click.option(
    "--max-tokens", type=click.IntRange(1), metavar="N", help="tokens of an answer at most"
)
temperature_option = click.option(
    "--temperature", type=click.FloatRange(0, 2), metavar="T", help="0: always the likeliest word"
)


@click.command()
@click.argument("words", nargs=-1, metavar="[MESSAGE]...")
@click.option(
    "-m", "--model", metavar="NAME", help="the model  [default: the only one]", shell_complete=model_of_service
)
@click.option("--system", metavar="TEXT", help="what the model is told first")
@max_tokens_option
@temperature_option
@click.option("--seed", type=int, metavar="N", help="repeats an answer")
@click.option("--stats", is_flag=True, help="print tokens and seconds after each answer")
@with_client(ANSWER_TIMEOUT)
def chat(
    client: Client,
    *,
    words: tuple[str, ...],
    model: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    stats: bool,
    json_wanted: bool,
) -> None:
    """Talk to a model of a running service.

    \b
    modelyard chat                            a conversation
    modelyard chat Name three colors          one answer
    git diff | modelyard chat Explain this:   one answer about a text in a pipe
    """  # noqa: D301 - click's mark for lines that stay lines
    options = {"max_new_tokens": max_tokens, "temperature": temperature, "seed": seed}
    conversation = Conversation(client, model, system, options)
    message = message_of(words)
    if message is not None:
        _answer_once(conversation, message, stats=stats, json_wanted=json_wanted)
    elif json_wanted:
        raise Misuse("--json is for one answer: give a MESSAGE")
    else:
        _converse(conversation, stats=stats)


def message_of(words: tuple[str, ...]) -> str | None:
    """Return the text of the arguments and of a pipe; None in a terminal without arguments. Raises Misuse."""
    text = "\n".join(part for part in (" ".join(words), read_pipe().rstrip("\n")) if part)
    if not text and not sys.stdin.isatty():
        raise Misuse(NO_TEXT)
    return text or None


def text_of(words: tuple[str, ...]) -> str:
    """Return the text of the arguments and of a pipe. Raises Misuse without one."""
    text = message_of(words)
    if text is None:
        raise Misuse(NO_TEXT)
    return text


def read_pipe() -> str:
    """Return the text of a pipe, empty at a terminal. Raises Misuse if it is not UTF-8."""
    try:
        text = "" if sys.stdin.isatty() else sys.stdin.read()
        text.encode()  # in some locales bytes that are not text become half characters
    except UnicodeError:
        raise Misuse("what comes through the pipe is not text in UTF-8") from None
    return text


def write(piece: str) -> None:
    """Print a piece of an answer at once, without what would steer the terminal."""
    click.echo(safe_text(piece), nl=False)


def _answer_once(conversation: Conversation, message: str, *, stats: bool, json_wanted: bool) -> None:
    output = conversation.say(message, (lambda piece: None) if json_wanted else write)
    if json_wanted:
        click.echo(as_json(output))
        return
    click.echo()
    if stats:
        click.echo(_stats(output), err=True)


def _converse(conversation: Conversation, *, stats: bool) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, PLC0415 - it gives `input` a history and arrow keys
    click.echo(f"{_introduction(conversation, conversation.model)}\n/help lists the commands, Ctrl-D ends", err=True)
    while True:
        try:
            line = _read_line()
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo()
            continue
        if line == "/exit":
            return
        message = obey(conversation, line) if line.startswith("/") else line
        if message:
            _answer(conversation, message, stats=stats)


def _introduction(conversation: Conversation, model: str | None) -> str:
    """Return which model answers, or that one has to be chosen. Raises the errors of `Conversation.talk_to`."""
    try:
        return f"you talk to {conversation.talk_to(model)}"
    except InvalidRequest as error:
        return f"choose a model with /model NAME; {error}"


def _read_line() -> str:
    lines = [input("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input(". "))
    return "\n".join(lines).strip()


def _answer(conversation: Conversation, message: str, *, stats: bool) -> None:
    try:
        output = conversation.say(message, write)
    except KeyboardInterrupt:
        click.echo()
    except ModelyardError as error:
        complain(str(error))
    else:
        click.echo()
        if stats:
            click.echo(_stats(output), err=True)


def obey(conversation: Conversation, line: str) -> str | None:
    """Obey a command of the conversation; return the message to send, if it means one."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/clear":
        conversation.clear()
        outcome = "the conversation is forgotten"
    elif name in ("/undo", "/again"):
        text = conversation.undo()
        if text is not None and name == "/again":
            return text
        outcome = "there is no message" if text is None else f"forgotten: {text}"
    elif name == "/system":
        conversation.system = rest or None
        outcome = f"the model is told first: {rest or 'nothing'}"
    elif name == "/model":
        try:
            outcome = _introduction(conversation, rest or None)
        except ModelyardError as error:
            complain(str(error))
            return None
    else:
        outcome = HELP if name == "/help" else f"there is no command {name}: /help lists them"
    click.echo(safe_text(outcome), err=True)
    return None


def _stats(output: JSONObject) -> str:
    tokens = (output["usage"] or {}).get("completion_tokens")
    seconds = output["seconds"]
    if not tokens:
        return f"{seconds:.1f} s"
    return f"{tokens} tokens, {seconds:.1f} s, {tokens / max(seconds, 0.001):.0f} tokens/s"
