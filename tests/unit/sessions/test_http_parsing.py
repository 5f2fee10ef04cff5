from __future__ import annotations

import pytest
from modelyard.sessions.http_parsing import Body, body_of, parse_head


def head_of(*lines: str) -> bytes:
    return "\r\n".join(lines).encode("latin-1")


def chunked() -> Body:
    return body_of("GET", parse_head(head_of("HTTP/1.1 200 OK", "Transfer-Encoding: chunked")))


def test_a_head_is_a_version_a_status_and_headers_of_any_case():
    head = parse_head(head_of("HTTP/1.1 503 Service Unavailable", "retry-AFTER:  7 ", "X-Empty:", "X-Umlaut: \xfc"))
    assert (head.version, head.status) == ("1.1", 503)
    assert head.headers["Retry-After"] == head.headers.get("RETRY-AFTER") == "7"
    assert "Retry-after" in head.headers
    assert "Retry" not in head.headers
    assert (head.headers["x-empty"], head.headers["x-umlaut"]) == ("", "\xfc")
    assert head.headers.get("absent", "none") == "none"


def test_a_reason_may_be_missing():
    assert parse_head(b"HTTP/1.1 200 ").status == 200
    assert parse_head(b"HTTP/1.1 200").status == 200


def test_a_header_that_comes_twice_has_both_values():
    assert parse_head(head_of("HTTP/1.1 200 OK", "Via: a", "via: b")).headers["via"] == "a, b"


@pytest.mark.parametrize(
    "lines",
    [
        ("HTTP/2 200 OK",),
        ("HTTP/1.1 2000 OK",),
        ("HTTP/1.1 abc OK",),
        ("220 mail.example.org ESMTP",),
        ("HTTP/1.1 200 OK", "no colon"),
        ("HTTP/1.1 200 OK", " continued: by a blank"),
        ("HTTP/1.1 200 OK", "blank before : colon"),
        ("HTTP/1.1 200 OK", ": no name"),
    ],
)
def test_what_is_no_head_is_refused(lines: tuple[str, ...]):
    with pytest.raises(ValueError, match="is no"):
        parse_head(head_of(*lines))


@pytest.mark.parametrize(
    "header",
    [
        "Transfer-Encoding: gzip, chunked",
        "Content-Length: -1",
        "Content-Length: 5, 6",
        "Content-Length: 0x10",
        "Content-Encoding: gzip",
    ],
)
def test_a_body_whose_end_or_coding_is_not_understood_is_refused(header: str):
    with pytest.raises(ValueError, match=r"length|coding|packed"):
        body_of("GET", parse_head(head_of("HTTP/1.1 200 OK", header)))


def test_chunks_win_over_a_length():
    body = body_of("GET", parse_head(head_of("HTTP/1.1 200 OK", "Content-Length: 3", "Transfer-Encoding: Chunked")))
    assert body.feed(b"2\r\nab\r\n0\r\n\r\n") == b"ab"
    assert body.ended


@pytest.mark.parametrize(
    ("method", "status", "header"),
    [("HEAD", 200, "Content-Length: 9"), ("GET", 204, "X: y"), ("GET", 304, "X: y"), ("GET", 200, "Content-Length: 0")],
)
def test_some_answers_have_no_body(method: str, status: int, header: str):
    assert body_of(method, parse_head(head_of(f"HTTP/1.1 {status} OK", header))).ended


def test_a_counted_body_ends_where_it_says():
    body = body_of("GET", parse_head(head_of("HTTP/1.1 200 OK", "Content-Length: 5")))
    assert (body.feed(b"abc"), body.ended, body.end()) == (b"abc", False, False)
    assert (body.feed(b"defg"), body.ended, body.excess) == (b"de", True, b"fg")


def test_a_body_without_a_length_ends_with_its_connection():
    body = body_of("GET", parse_head(b"HTTP/1.1 200 OK"))
    assert (body.feed(b"abc"), body.ended) == (b"abc", False)
    assert (body.end(), body.ended) == (True, True)


WHOLE = b"4\r\nab\r\n\r\n1;name=value\r\n\0\r\n00000a \r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
TEXT = b"ab\r\n\x000123456789"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, len(WHOLE)])
def test_chunks_may_be_cut_anywhere(size: int):
    body = chunked()
    parts = [body.feed(WHOLE[at : at + size]) for at in range(0, len(WHOLE), size)]
    assert b"".join(parts) == TEXT
    assert (body.ended, body.excess) == (True, b"")


def test_chunks_in_any_two_pieces_are_the_same_text():
    for cut in range(len(WHOLE)):
        body = chunked()
        assert body.feed(WHOLE[:cut]) + body.feed(WHOLE[cut:]) == TEXT, cut
        assert body.ended, cut


def test_what_follows_the_last_chunk_is_no_part_of_the_body():
    body = chunked()
    assert body.feed(b"1\r\na\r\n0\r\n\r\nHTTP/1.1 400") == b"a"
    assert (body.ended, body.excess) == (True, b"HTTP/1.1 400")


@pytest.mark.parametrize("cut", range(1, len(WHOLE)))
def test_a_body_in_chunks_is_whole_only_with_its_last_line(cut: int):
    body = chunked()
    body.feed(WHOLE[:cut])
    assert not body.end()


@pytest.mark.parametrize(
    "data",
    [
        b"-1\r\n",
        b"+5\r\nabcde\r\n",
        b"0x5\r\nabcde\r\n",
        b"1_0\r\n",
        b"\r\n",
        b"g\r\n",
        b"ffffffffffffffff\r\n",
        b"2\r\nabc\r\n",
        b"2\r\nab5\r\n",
        b"1" * 9000,
        b"0\r\n" + b"x" * 9000,
    ],
)
def test_nonsense_between_chunks_is_refused(data: bytes):
    with pytest.raises(ValueError, match=r"size|trailer"):
        chunked().feed(data)


@pytest.mark.parametrize(
    ("first", "header", "keeps"),
    [
        ("HTTP/1.1 200 OK", "X: y", True),
        ("HTTP/1.1 200 OK", "Connection: Close", False),
        ("HTTP/1.0 200 OK", "X: y", False),
    ],
)
def test_the_head_says_whether_the_connection_is_kept(first: str, header: str, keeps: bool):
    assert parse_head(head_of(first, header)).keeps_alive is keeps
