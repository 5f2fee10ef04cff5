"""``modelyard chat`` and the calls of one text each: piped, as arguments, and in a real terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import modelyard, runner
from faulty import breaks_off, faulty, http_chunk, output, stream_head
from in_process import service, url_of
from modelyard.cli import cli
from modelyard.cli.chat import Conversation, obey
from modelyard.client.client import Client
from processes import state_of
from running import wait_until

MODELS = [
    {"name": "parrot", "engine": "echo", "reply": "prompt", "default_max_new_tokens": 3},
    {"name": "slow", "engine": "echo", "delay": 0.2, "default_max_new_tokens": 1000},
    {"name": "vectors", "engine": "echo", "worker_type": "text2vec", "limit_model_concurrency": 4},
]


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with service(tmp_path_factory.mktemp("chat"), MODELS, role="worker") as made:
        yield url_of(made)


def piped(text: str, *words: str) -> tuple[int, str]:
    result = runner().invoke(cli, [*words], input=text, prog_name="modelyard")
    return result.exit_code, result.stdout


@pytest.mark.parametrize("command", ["chat", "complete"])
def test_arguments_are_one_message_and_its_answer_is_printed(url, command):
    ran = modelyard(command, "one", "two", "three", "-m", "parrot", "--url", url)
    assert (ran.status, ran.out, ran.err) == (0, " one two three\n", "")


@pytest.mark.parametrize("command", ["chat", "complete"])
def test_a_pipe_is_the_message_or_its_end(url, command):
    assert piped("from a pipe\n", command, "-m", "parrot", "--url", url) == (0, " from a pipe\n")
    assert piped("a pipe\n", command, "before", "-m", "parrot", "--url", url) == (0, " before a pipe\n")


@pytest.mark.parametrize("command", ["chat", "complete", "tokens", "embed"])
def test_a_pipe_of_bytes_that_are_not_text_is_refused(url, command):
    result = runner().invoke(cli, [command, "--url", url], input=b"\x7fELF\xff\0", prog_name="modelyard")
    assert (result.exit_code, "what comes through the pipe is not text in UTF-8" in result.stderr) == (2, True)


def test_an_answer_as_json_has_what_the_service_reports(url):
    found = modelyard("chat", "hello", "-m", "parrot", "--max-tokens", 2, "--json", "--url", url).json
    assert (found["text"], found["finish_reason"], found["usage"]["completion_tokens"]) == (" hello hello", "length", 2)


def test_stats_go_to_the_error_output(url):
    ran = modelyard("chat", "a", "-m", "parrot", "--stats", "--url", url)
    assert ran.out == " a a a\n"
    assert ran.err.startswith("3 tokens, 0.")


def test_what_would_steer_the_terminal_is_not_printed(url):
    ran = modelyard("complete", "\x1b[31mred\x07", "-m", "parrot", "--max-tokens", 1, "--url", url)
    assert ran.out == " \ufffd[31mred\ufffd\n"


@pytest.mark.parametrize("command", ["chat", "complete", "tokens", "embed"])
def test_without_a_text_the_next_step_is_named(url, command):
    ran = modelyard(command, "--url", url)
    assert ran.status == 2
    assert ran.complaint.startswith("there is no text: give")


def test_an_error_is_one_line(url):
    ran = modelyard("chat", "a", "-m", "nobody", "--url", url)
    assert (ran.status, "nobody" in ran.complaint) == (1, True)


@pytest.mark.parametrize("command", ["chat", "complete"])
def test_an_answer_that_breaks_off_is_kept_apart_from_the_reason(command):
    with faulty(breaks_off(stream_head(), http_chunk(output("Once upon")))) as server:
        ran = modelyard(command, "a", "-m", "m", "--url", server.url)
    assert (ran.status, ran.out) == (1, "Once upon\n")
    assert "broke off its answer: " in ran.complaint


def test_tokens_are_counted(url):
    assert modelyard("tokens", "one", "two", "-m", "parrot", "--url", url).out == "2\n"
    assert modelyard("tokens", "one", "-m", "parrot", "--json", "--url", url).json == {"tokens": 1}


def test_embeddings_are_shown_in_short_or_whole(url):
    ran = modelyard("embed", "a b", "c", "--url", url)
    assert ran.status == 0, ran.err
    row = ran.table[0]
    assert (row["TEXT"], row["NUMBERS"]) == ("a b", "384")
    rows = modelyard("embed", "a b", "c", "--json", "--url", url).json
    assert [len(row) for row in rows] == [384, 384]
    assert piped("a b\n\nc\n", "embed", "--json", "--url", url)[1].count("[") == 3, "each line is a text"


def test_texts_are_ranked_the_best_first(url):
    words = ("rerank", "red apple", "blue sky", "red apple", "--url", url)
    assert [row["TEXT"] for row in modelyard(*words).table] == ["red apple", "blue sky"]
    assert [entry["index"] for entry in modelyard(*words, "--json").json] == [1, 0]


# A conversation


@pytest.fixture
def conversation(url) -> Iterator[Conversation]:
    with Client(url) as client:
        yield Conversation(client, "parrot", None, {"max_new_tokens": 2})


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("/model nobody", "there is no model 'nobody' here; there are parrot@llm, slow@llm, vectors@text2vec"),
        ("/model vectors", "model 'vectors' is of type text2vec: this call needs llm"),
    ],
)
def test_a_model_that_can_not_answer_is_refused_at_once(conversation, command, complaint, capsys):
    assert obey(conversation, command) is None
    assert (capsys.readouterr().err, conversation.model) == (f"modelyard: {complaint}\n", "parrot")
    assert obey(conversation, "/model slow") is None
    assert (capsys.readouterr().err, conversation.model) == ("you talk to slow\n", "slow")


def test_another_name_of_a_model_is_one_too(tmp_path, capsys):
    tables = [{"name": "parrot", "engine": "echo"}]
    with service(tmp_path, tables, role="worker", aliases={"polly": "parrot"}) as made, Client(url_of(made)) as client:
        conversation = Conversation(client, None, None, {})
        obey(conversation, "/model polly")
        assert (capsys.readouterr().err, conversation.model) == ("you talk to polly\n", "polly")


# In a terminal


class Terminal:
    """A ``modelyard chat`` in a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self._master, slave = pty.openpty()
        environ = {**os.environ, "TERM": "dumb", "PYTHON_HISTORY": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "modelyard", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environ,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self.shown = ""

    def wait_for(self, text: str, timeout: float = 20.0) -> str:
        """Return what was shown until ``text`` came, and forget it."""
        deadline = time.monotonic() + timeout
        while text not in self.shown:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not come: {self.shown!r}"
            if select.select([self._master], [], [], left)[0]:
                self.shown += os.read(self._master, 65536).decode(errors="replace")
        before, _, self.shown = self.shown.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C at a prompt. A signal between the prompt and the wait for a line counts with the next key."""
        wait_until(lambda: state_of(self.process.pid) == "S", "it waits for a line")
        self.type("\x03")

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        os.close(self._master)


def _take_terminal() -> None:
    """Make the terminal of the child the one that Ctrl-C comes from."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(url) -> Iterator[Terminal]:
    made = Terminal("chat", "-m", "parrot", "--url", url)
    yield made
    made.close()


def test_a_conversation_keeps_its_messages_and_forgets_them_on_command(terminal):
    terminal.wait_for("> ")
    terminal.type("one\n")
    terminal.wait_for(" one one one")
    terminal.wait_for("> ")
    terminal.type("two\n")
    terminal.wait_for(" one one one")  # echo answers with the first words of the conversation
    terminal.wait_for("> ")
    terminal.type("/clear\n")
    terminal.wait_for("> ")
    terminal.type("a \\\n")
    terminal.wait_for(". ")
    terminal.type("b\n")
    terminal.wait_for(" a b a")
    terminal.wait_for("> ")
    terminal.type("/nope\n")
    terminal.wait_for("there is no command /nope: /help lists them")
    terminal.wait_for("> ")
    terminal.type("/system short\n")
    terminal.wait_for("the model is told first: short")
    terminal.wait_for("> ")
    terminal.type("/undo\n")
    terminal.wait_for("forgotten: a")
    terminal.wait_for("> ")
    terminal.type("/again\n")
    terminal.wait_for("there is no message")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(10) == 0


def test_ctrl_c_ends_the_answer_and_not_the_program(terminal):
    terminal.wait_for("you talk to parrot")
    terminal.wait_for("> ")
    terminal.type("/model\n")
    terminal.wait_for("choose a model with /model NAME; model: name one of those at")
    terminal.wait_for("parrot, slow")
    terminal.wait_for("> ")
    terminal.type("/model slow\n")
    terminal.wait_for("> ")
    terminal.type("hello\n")
    terminal.wait_for(" token token")
    terminal.type("\x03")
    terminal.wait_for("> ")
    terminal.interrupt()
    terminal.wait_for("> ")
    terminal.type("/exit\n")
    assert terminal.process.wait(10) == 0


def test_a_table_is_shown_again_until_ctrl_c(url, tmp_path: Path):
    made = Terminal("models", "list", "--watch", "--url", url)
    try:
        made.wait_for("parrot")
        made.wait_for("parrot")
        made.type("\x03")
        assert made.process.wait(10) == 130
    finally:
        made.close()
