"""Requests to the admin that no page of ours makes, drawn by dice: the same ones for the same
seed.
"""

import random
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from django.test import Client

LISTS = [
    "/admin/eventbus/deadletter/",
    "/admin/eventbus/deadlettergroup/",
    "/admin/eventbus/processedevent/",
    "/admin/auth/user/",
    "/admin/auth/group/",
    "/admin/posts/post/",
    "/admin/feeds/feed/",
]
OTHERS = [
    "/admin/",
    "/admin/login/",
    "/admin/logout/",
    "/admin/pipeline/",
    "/admin/password_change/",
    "/admin/jsi18n/",
    "/admin/autocomplete/",
    "/admin/feeds/feed/follows/",
    "/admin/r/1/1/",
    "/admin/r/x/\0/",
    "/admin/auth/",
    "/admin/nowhere/",
    "/docs/",
    "/schema/",
    "/static/../feedsite/settings.py",
]
BENEATH = ["{}/change/", "{}/delete/", "{}/history/", "{}/inspect/", "add/", "{}/password/", "{}"]
KEYS = ["1", "x", "\0", "9" * 30, "_00", "/", "..", "_FF", "é", "2147483648"]
VALUES = [
    "\0",
    "a\0b",
    "x",
    "",
    "0",
    "1",
    "-1",
    "1e9",
    "9" * 30,
    str(2**63),
    "٣",
    "²",
    "(",
    "[a",
    "a{9999999}",
    "' OR 1=1 --",
    "\ufffd",
    "\u202e",
    "\U0001f480" * 200,
    "null",
    "1,2",
    "1,x",
    "True",
    "9999-99-99",
    "0000-00-00",
    "2026-02-30",
    "//evil.example/",
    "javascript:alert(1)",
    "http://[",
    "\r\nX: y",
    "{{ settings.SECRET_KEY }}",
    "%(a)s",
    "x" * 5_000,
]
PARAMETERS = [
    *("q", "p", "o", "e", "all", "_popup", "_to_field", "_facets", "_changelist_filters", "next"),
    *("state", "type", "error", "group", "state__exact", "group__id__exact", "id__lt", "pk__lt"),
    *("value__exact", "event_id__lt", "event_id__range", "user_id__lt", "failures__id", "group__x"),
    *("is_staff__exact", "username__regex", "email__iregex", "last_login__year", "id__in"),
    *("date_joined__gt", "user_permissions__id__exact", "password__startswith", "user", "other"),
    *("following_up_to", "followers_up_to", "action", "_selected_action", "select_across", "index"),
    *("confirmed", "reason", "job", "parked", "overdue", "from_entry", "username", "password"),
    *("password1", "password2", "usable_password", "email", "groups", "permissions", "name"),
    *("_save", "_continue", "_saveasnew", "is_active__isnull", "date_joined_0", "last_login_0"),
    *("app_label", "model_name", "field_name", "term", "csrfmiddlewaretoken", "_method", "\0", ""),
]
ACTIONS = [
    *("replay_selected", "discard_selected", "delete_selected"),
    *("verify", "rebuild", "drop", "x", ""),
]
METHODS = ["HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "get"]
CONTENT_TYPES = [
    "",
    "x",
    "application/json",
    "application/x-www-form-urlencoded; charset=utf-7",
    "application/x-www-form-urlencoded; charset=\xff",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "multipart/form-data; boundary=x",
    "multipart/form-data; boundary=x; charset=klingon",
    "multipart/form-data; boundary=" + "x" * 300,
]
PART = b'--x\r\nContent-Disposition: form-data; name="action"'
BODIES = [
    b"",
    b"{",
    b"%",
    b"a=%ff&b=%00",
    b"\xff\xfe=\x00",
    b"&".join(b"a%d=1" % number for number in range(1_100)),
    b"a=" + b"x" * 140_000,
    PART,
    PART + b"\r\n\r\nreplay_selected\r\n--x--\r\n",
    PART + b'; filename="x"\r\nContent-Type: text/plain; charset=klingon\r\n\r\nx\r\n--x--\r\n',
    PART + b"\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!\r\n--x--\r\n",
    b"--x\r\nContent-Disposition: form-data\r\n\r\nx\r\n" * 50 + b"--x--\r\n",
    b"--x\r\n" + b"A: b\r\n" * 2_000 + b"\r\n--x--\r\n",
    (PART + b'; filename="y"\r\n\r\nx\r\n') * 150 + b"--x--\r\n",
]
HEADERS = {
    "HTTP_HOST": ["evil.example", "", "a b", "testserver:99999", "[::", "testserver,testserver"],
    "HTTP_X_FORWARDED_PROTO": ["https", "x", "https,http"],
    "HTTP_X_FORWARDED_FOR": ["x", "1.2.3.4", "::1%eth0", "," * 1_000, "9" * 5_000],
    "HTTP_X_REQUEST_ID": ["x" * 5_000, "\x1b[2J", "é"],
    "HTTP_USER_AGENT": ["x" * 5_000, "\x1b[2J", "é\ufffd", ""],
    "HTTP_ACCEPT": ["x" * 5_000, "é", "*/*;q=x"],
    "HTTP_ACCEPT_LANGUAGE": ["x" * 5_000, "*", "de-\xff;q=9e999"],
    "HTTP_ACCEPT_ENCODING": ["gzip;q=x", "x" * 5_000],
    "HTTP_IF_NONE_MATCH": ['W/"', "*", "x" * 5_000],
    "HTTP_IF_MODIFIED_SINCE": ["x", "Mon, 99 Foo 99999 99:99:99 GMT"],
    "HTTP_RANGE": ["bytes=9-1", "bytes=-0", "x"],
    "HTTP_REFERER": ["x", "http://[", "//"],
    "HTTP_ORIGIN": ["null", "http://[", "https://evil.example"],
    "HTTP_AUTHORIZATION": ["Bearer x", "Basic \xff", "x"],
    "HTTP_X_CSRFTOKEN": ["x", "é" * 64],
    "QUERY_STRING": ["%", "%ff=%ff", "a" * 9_000, "&".join(["a=1"] * 1_100), "\xff"],
}
COOKIES = [
    'sessionid="a\\000b"',
    "sessionid=" + "x" * 5_000,
    "sessionid=\xff",
    'messages="[[\\"__json_message\\",0,20,\\"x\\"]]"',
    "messages=x:y:z",
    "csrftoken=x",
    "csrftoken=" + "é" * 32,
    "=;;=,\0=\0",
    "a=" + "b" * 20_000,
]


@dataclass
class Hostile:
    """One request, as the test client sends it."""

    method: str
    path: str
    query: str
    body: bytes
    content_type: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def is_for_a_page(self) -> bool:
        """Tell whether people look at what is answered, in a browser."""
        is_for_scripts = self.path.startswith("/admin/autocomplete/")
        return self.path.startswith(("/admin/", "/docs/")) and not is_for_scripts

    def send(self, client: Client) -> Any:
        headers: dict[str, Any] = {"QUERY_STRING": self.query, **self.headers}
        return client.generic(
            self.method, quote(self.path), self.body, self.content_type, **headers
        )


def draw(dice: random.Random) -> Hostile:
    """Return a hostile request: mostly wrong values where a page of ours has others, and some that
    no browser would send at all.
    """
    drawn = Hostile("GET", _path(dice), _query(dice), b"", "application/octet-stream")
    if dice.random() < 0.5:
        drawn.method = "POST"
        drawn.body = urlencode(_form(dice)).encode()
        drawn.content_type = "application/x-www-form-urlencoded"
    if dice.random() < 0.15:
        drawn.body, drawn.content_type = dice.choice(BODIES), dice.choice(CONTENT_TYPES)
    if dice.random() < 0.1:
        drawn.method = dice.choice(METHODS)
    if dice.random() < 0.3:
        name = dice.choice(list(HEADERS))
        drawn.headers[name] = dice.choice(HEADERS[name])
    if dice.random() < 0.1:
        drawn.headers["HTTP_COOKIE"] = dice.choice(COOKIES)
    return drawn


def _path(dice: random.Random) -> str:
    path = dice.choice(LISTS + OTHERS)
    if path in LISTS and dice.random() < 0.4:
        path += dice.choice(BENEATH).format(dice.choice(KEYS))
    return path


def _query(dice: random.Random) -> str:
    pairs = [(dice.choice(PARAMETERS), dice.choice(VALUES)) for _ in range(dice.randint(0, 3))]
    return urlencode(pairs)


def _form(dice: random.Random) -> dict[str, str]:
    form = {dice.choice(PARAMETERS): dice.choice(VALUES) for _ in range(3)}
    if dice.random() < 0.7:
        form |= {"action": dice.choice(ACTIONS), "_selected_action": dice.choice("12x")}
    if dice.random() < 0.5:
        form |= {"confirmed": "yes"}
    return form
