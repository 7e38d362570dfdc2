"""Webhook URLs: the text that is sent, the parts that are connected to, and the refusals."""

import re
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chalicelib.core.urls import MAX_URL_LENGTH, Url, as_sent, parse, with_any_id, with_id

BASE = "https://example.com"


def sent_or_none(url: str) -> str | None:
    try:
        return as_sent(url)
    except ValueError:
        return None


# The text that is sent


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost",
        "HTTP://LOCALHOST:8080/Hook?a=1&b=2",
        "https://example.com:443/",
        "https://example.com:/",
        "https://example.com./",
        "http://[::1]:9/",
        "https://{id}.example.com/{id}/{id}?x={id}",
        f"{BASE}?x=1",
        f"{BASE}/a?",
        f"{BASE}/?",
        f"{BASE}/a/../b/./c",
        f"{BASE}/..%2f%2E%2e/",
        f"{BASE}/%7e%c3%bc%C3%BC",
        f"{BASE}/%7Bname%7D%25zz",
        f"{BASE}/a;b=c;d",
        f"{BASE}//a//b//",
        f"{BASE}/-._~!$&'()*+,;=:@?-._~!$&'()*+,;=:@/?",
        f"{BASE}/?to=http://other.example/%23",
        f"{BASE}/hook@host",
    ],
)
def test_a_valid_url_is_kept_byte_for_byte(url: str) -> None:
    """Nothing is normalized in a URL that RFC 3986 allows."""
    assert as_sent(url) == url


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        (f"{BASE}/a b?c d", f"{BASE}/a%20b?c%20d"),
        (f"{BASE}/ü?ü=😀", f"{BASE}/%C3%BC?%C3%BC=%F0%9F%98%80"),
        (f'{BASE}/"<>^`|"', f"{BASE}/%22%3C%3E%5E%60%7C%22"),
        (f"{BASE}/a[0]?b[]=c", f"{BASE}/a%5B0%5D?b%5B%5D=c"),
        (f"{BASE}/%c3%bcü%20 {{id}}ü", f"{BASE}/%c3%bc%C3%BC%20%20{{id}}%C3%BC"),
        (f"{BASE}/a#b{{name}}%zz", f"{BASE}/a"),
        (f"{BASE}#top", BASE),
        ("https://bücher.example/", "https://xn--bcher-kva.example/"),
        ("https://BÜCHER.example.:8080?q", "https://xn--bcher-kva.example:8080?q"),
        ("https://bücher.example:443/", "https://xn--bcher-kva.example/"),
        ("https://{id}.bücher.example/", "https://{id}.xn--bcher-kva.example/"),
    ],
)
def test_characters_that_no_url_may_hold_are_encoded(url: str, sent: str) -> None:
    """They are percent-encoded as UTF-8, once; the host in IDNA; the fragment is dropped."""
    assert as_sent(url) == sent
    assert as_sent(sent) == sent


def test_a_host_with_id_is_encoded_as_with_any_other_id() -> None:
    """`{id}` may even be part of a label that IDNA encodes."""
    sent = as_sent("https://ü{id}.example/")
    id = "019c13ec-9e00-7a31-8f3b-2b1d7d0c5b7e"
    assert parse(with_id(sent, id)).host == parse(f"https://ü{id}.example/").host


# Refusals

SCHEME = "must begin with http:// or https://"
HOST = "needs a valid host"
LONG = "longer than 2,048 characters."
LONG_ENCODED = "longer than 2,048 characters once it is percent-encoded"
LONG_WITH_ID = "longer than 2,048 characters once {id} is replaced"
USER = "user name or a password"
INVISIBLE = "invisible character"
BACKSLASH = "backslash"
SPACE = "begins or ends with a space"
BRACES = "{id}"
ESCAPE = "%25"

REFUSED = [
    ("", SCHEME),
    ("/hook", SCHEME),
    ("ftp://example.com/", SCHEME),
    ("http\u017f://example.com/", SCHEME),
    ("file:///etc/passwd", SCHEME),
    ("gopher://example.com/", SCHEME),
    ("javascript:alert(1)", SCHEME),
    ("http+unix://%2Fvar%2Frun%2Fdocker.sock/", SCHEME),
    ("http:", SCHEME),
    ("http:/example.com", SCHEME),
    ("{id}://localhost/", SCHEME),
    ("http://", HOST),
    ("http:///hook", HOST),
    ("https://:443/", HOST),
    ("https://?timer=1", HOST),
    ("https://./", HOST),
    ("https://a..example/", HOST),
    ("https://.example/", HOST),
    ("https://example..", HOST),
    (f"https://{'a' * 64}.example/", HOST),
    (f"https://{'ü' * 64}.example/", HOST),
    (f"https://{'ü.' * 254}example/", HOST),
    ("https://" + "a." * 127 + "example/", HOST),
    ("https://☃.example/", HOST),
    ("https://a／b.example/", HOST),
    ("https://%31%32%37.0.0.1/", HOST),
    ("https://a,b.example/", HOST),
    ("https://*.example/", HOST),
    ("https://exam ple.com/", HOST),
    ("https://example.com:0/", HOST),
    ("https://example.com:65536/", HOST),
    ("https://example.com:9999999999/", HOST),
    ("https://example.com:abc/", HOST),
    ("https://example.com:-1/", HOST),
    ("https://example.com:+80/", HOST),
    ("https://example.com:８０/", HOST),
    ("https://example.com:80:80/", HOST),
    ("https://example.com:{id}/", HOST),
    ("https://::1/", HOST),
    ("https://[::1/", HOST),
    ("https://[::1]example.com/", HOST),
    ("https://example.com[::1]/", HOST),
    ("https://[example.com]/", HOST),
    ("https://[127.0.0.1]/", HOST),
    ("https://[::1::]/", HOST),
    ("https://[2606:4700:4700::1111%25eth0]/", HOST),
    ("https://[v1.a:b]/", HOST),
    ("https://user@example.com/", USER),
    ("https://user:password@example.com/", USER),
    ("https://@example.com/", USER),
    ("https://8.8.8.8@127.0.0.1/", USER),
    (" https://example.com/", SPACE),
    ("https://example.com/ ", SPACE),
    ("https://example.com/\r\nHost: other", INVISIBLE),
    ("https://example.com/\t", INVISIBLE),
    ("ht\ntps://example.com/", INVISIBLE),
    ("https://example.com/\x00", INVISIBLE),
    ("https://example.com/#\x00", INVISIBLE),
    ("https://example.com/\x7f", INVISIBLE),
    ("https://example.com/\x85", INVISIBLE),
    ("https://example.com/\xa0", INVISIBLE),
    ("https://example.com/\u202egpj", INVISIBLE),
    ("https://exam\u200bple.com/", INVISIBLE),
    ("https://exam\u00adple.com/", INVISIBLE),
    ("https://example.com/\ufeff", INVISIBLE),
    ("https://example.com/\ud800", INVISIBLE),
    ("https://example.com\\@127.0.0.1/", BACKSLASH),
    ("https:\\\\example.com/", BACKSLASH),
    ("https://example.com/a\\b", BACKSLASH),
    ("https://example.com/{timer_id}", BRACES),
    ("https://example.com/{}", BRACES),
    ("https://example.com/{ID}", BRACES),
    ("https://example.com/{name}/{id}", BRACES),
    ("https://example.com/{{id}}", BRACES),
    ("https://example.com/{i{id}d}", BRACES),
    ("https://example.com/{", BRACES),
    ("https://example.com/?a=}", BRACES),
    ("https://{name}.example.com/", BRACES),
    ("https://https://example.com", 'Write "https://example.com"'),
    ("HTTP://Https://example.com/{id}", 'Write "Https://example.com/{id}"'),
    ("http://http://https://a.example", 'Write "https://a.example"'),
    ("https://example.com/%zz", ESCAPE),
    ("https://example.com/% x", "`% x`"),
    ("https://example.com/%", ESCAPE),
    ("https://example.com/%4", ESCAPE),
    ("https://example.com/%4{id}", ESCAPE),
    ("https://example.com/%{id}", ESCAPE),
    ("https://example.com/?a=100%&b", ESCAPE),
    ("https://example.com/%u00fc", ESCAPE),
    ("https://example.com/%４１", ESCAPE),
    ("https://example.com/" + "a" * (MAX_URL_LENGTH - 19), LONG),
    ("https://example.com/" + "ü" * 400, LONG_ENCODED),
    ("https://example.com/" + "{id}" * 60, LONG_WITH_ID),
    ("https://example.com/#" + "a" * MAX_URL_LENGTH, LONG),
]


@pytest.mark.parametrize(("url", "fragment"), REFUSED)
def test_refuses_urls_that_are_clearly_mistakes(url: str, fragment: str) -> None:
    """The error says what to do."""
    with pytest.raises(ValueError, match=re.escape(fragment)):
        as_sent(url)


@pytest.mark.parametrize(
    ("url", "suggested"),
    [
        ("example.com/hook", "https://example.com/hook"),
        ("//example.com/hook?a", "https://example.com/hook?a"),
        ("bücher.example", "https://bücher.example"),
        ("example.com:8080/hook", "http://example.com:8080/hook"),
        ("localhost:3000/x", "http://localhost:3000/x"),
        ("localhost", "http://localhost"),
        ("backend:3000", "http://backend:3000"),
        ("127.0.0.1/x", "http://127.0.0.1/x"),
        ("[::1]:3000/{id}", "http://[::1]:3000/{id}"),
    ],
)
def test_suggests_the_whole_url_if_the_scheme_is_missing(url: str, suggested: str) -> None:
    """The error quotes a URL that would be accepted."""
    with pytest.raises(ValueError, match=re.escape(f'"{suggested}"')):
        as_sent(url)
    assert sent_or_none(suggested)


@pytest.mark.parametrize(
    "url", ["example.com:99999/", "a..b.example", "[1::2::3]/", "localhost/%zz"]
)
def test_suggests_no_url_that_is_refused(url: str) -> None:
    """A URL with a second fault gets no suggestion."""
    with pytest.raises(ValueError, match=r"^(?!.*Write \")"):
        as_sent(url)


# The parts that are connected to


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://example.com", ("http", "example.com", 80, "example.com", "/")),
        ("HTTPS://EXAMPLE.COM/Hook", ("https", "example.com", 443, "example.com", "/Hook")),
        ("https://example.com.:443/", ("https", "example.com", 443, "example.com", "/")),
        ("https://example.com:80/", ("https", "example.com", 80, "example.com:80", "/")),
        ("http://example.com:/?", ("http", "example.com", 80, "example.com", "/?")),
        ("http://example.com?x=1", ("http", "example.com", 80, "example.com", "/?x=1")),
        ("http://example.com:0080/", ("http", "example.com", 80, "example.com", "/")),
        ("http://example.com/a#b", ("http", "example.com", 80, "example.com", "/a")),
        ("http://FAß.example//a", ("http", "xn--fa-hia.example", 80, "xn--fa-hia.example", "//a")),
        ("http://127。0。0。1/", ("http", "127.0.0.1", 80, "127.0.0.1", "/")),
        ("http://0X7F.1/", ("http", "0x7f.1", 80, "0x7f.1", "/")),
        ("http://[::FFFF]/", ("http", "::ffff", 80, "[::ffff]", "/")),
        ("http://[::1]:9000/a", ("http", "::1", 9000, "[::1]:9000", "/a")),
        ("http://a_b.example/", ("http", "a_b.example", 80, "a_b.example", "/")),
    ],
)  # fmt: skip
def test_parses_the_parts(url: str, parts: tuple[str, str, int, str, str]) -> None:
    """Host and port are in one spelling; the Host header omits the scheme's own port."""
    assert parse(url) == Url(*parts)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/%zz", "/%25zz"),
        ("/%", "/%25"),
        ("/{timer_id}?{}", "/%7Btimer_id%7D?%7B%7D"),
        ("/a\\b", "/a%5Cb"),
        ("/a\r\nX: b\x00 ", "/a%0D%0AX:%20b%00%20"),
        ("/\ud800", "/%3F"),
        ("/%c3%bc{", "/%c3%bc%7B"),
        ("/" + "ü" * MAX_URL_LENGTH, "/" + "%C3%BC" * MAX_URL_LENGTH),
    ],
)
def test_parses_paths_that_are_refused_today(path: str, target: str) -> None:
    """A stored timer may have such a URL; it is sent, encoded."""
    assert parse(f"http://example.com{path}").target == target


@pytest.mark.parametrize(
    "url",
    [
        "http://public.example\\.127.0.0.1/",
        "http://public.example\\@127.0.0.1/",
        "http://127.0.0.1:80\\@public.example/",
        "http://127.0.0.1\t/",
        "http://public.example\r\nHost: 127.0.0.1/",
        "http://public.example%2f@127.0.0.1/",
        "http://{name}.example/",
        "http://user:secret@public.example/",
        "http://[::1]public.example/",
        "public.example/",
    ],
)
def test_refuses_hosts_that_parsers_read_differently(url: str) -> None:
    """Not even a stored timer is sent to such a URL."""
    with pytest.raises(ValueError, match="The URL "):
        parse(url)


# Any text

VALID = "abcXYZ019-._~!$&'()*+,;=:@/?"

HOSTS = st.sampled_from(
    [
        "example.com",
        "LOCALHOST",
        "127.0.0.1",
        "[::1]",
        "bücher.example.",
        "{id}.ü.example",
        "0x7f.1",
    ]
)
URLS = st.builds(
    "{}://{}{}/{}".format,
    st.sampled_from(["http", "HTTPS"]),
    HOSTS,
    st.sampled_from(["", ":", ":80", ":0443", ":8080"]),
    st.text() | st.text(VALID + ' ü%4f[]{}|"#'),
)
TEXTS = (
    st.text()
    | st.text().map("http://{}".format)
    | st.text("[]:%.@/v1fx。").map("https://{}".format)
    | st.tuples(st.text(), st.text()).map("http://{0[0]}.example:{0[1]}/".format)
)


@settings(deadline=None)
@given(URLS)
def test_encoding_is_idempotent(url: str) -> None:
    """The text that is sent is sent as it is."""
    sent = sent_or_none(url)
    assert sent is None or as_sent(sent) == sent


@settings(deadline=None)
@given(
    st.sampled_from(["", "?"]), st.text(VALID) | st.from_regex("(%[0-9A-Fa-f]{2})*", fullmatch=True)
)
def test_a_url_of_valid_characters_is_unchanged(mark: str, text: str) -> None:
    """Path and query of valid characters and escapes arrive as they were given."""
    url = f"http://example.com/{mark}{text}"
    assert as_sent(url) == url
    assert parse(url).target == url.removeprefix("http://example.com")


@settings(deadline=None)
@given(URLS | TEXTS)
def test_the_stored_text_has_the_parts_of_the_given_text(url: str) -> None:
    """The host that is checked is the host that is connected to."""
    sent = sent_or_none(url)
    if sent is not None:
        assert parse(with_any_id(sent)) == parse(with_any_id(url))


@settings(deadline=None)
@given(URLS | TEXTS)
@example("http://[")
@example("http://xn--\u0660")
@example("http://\u2100.example")
def test_any_text_has_parts_of_plain_ascii_or_raises_value_error(url: str) -> None:
    """Nothing in a URL can end the request line or a header."""
    with suppress(ValueError):
        parts = parse(url)
        assert re.fullmatch(r"[!-~]+", parts.target + parts.host_header)
        assert 0 < parts.port < 65536
