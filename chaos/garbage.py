"""Odd messages, made from a seed, that any program could write to Redis.

Most begin as a message that Celery could have written, of which one to three parts are then
replaced, removed or added; some are not messages at all.
"""

import base64
import bz2
import json
import pickle
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any

Path = tuple[Any, ...]
DEEP = "[" * 50_000 + "]" * 50_000
MARK = "<<deep>>"  # stands for DEEP, which no encoder writes

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 2**31, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "x", "a,b", "true", "\0", "a\0b", "\ud800", "é" * 300, "x" * 70_000,
    "9" * 5_000, [], [1], ["a", "b"], [None, None], [0.001, -1], [[[]]], [{}] * 3,
    list(range(2_000)), {}, {"a": 1}, {"": None}, {"x": {"y": {"z": [1, 2, {}]}}}, MARK,
    ["x", MARK], "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-14:00", "2020-01-01",
    "12:00", "tomorrow", {"__type__": "datetime", "__value__": "x"},
    {"__type__": [], "__value__": {}}, {"__type__": "decimal", "__value__": "1e999999999"},
    {"__type__": "uuid", "__value__": 7}, {"task": "x"}, [{"task": "x", "args": 1}],
    {"task": [], "options": 3}, [["x", "y"]],
)  # fmt: skip
HEADERS = (
    "id", "task", "eta", "expires", "timelimit", "shadow", "retries", "group", "group_index",
    "root_id", "parent_id", "stamps", "stamped_headers", "compression", "ignore_result",
    "argsrepr", "kwargsrepr", "origin", "lang", "meth", "replaced_task_nesting", "redelivered",
    "run_attempt", "run_signature", "run_ledger", "chord", "callbacks", "errbacks", "chain",
    "args", "kwargs", "properties", "headers", "delivery_info", "hostname", "utc", "get",
    "update", "clear", "__dict__", "__class__", "x-mine",
)  # fmt: skip
PROPERTIES = (
    "delivery_tag", "delivery_info", "priority", "body_encoding", "correlation_id", "reply_to",
    "delivery_mode", "expiration", "clock", "headers", "type",
)  # fmt: skip
TOP = ("body", "headers", "properties", "content-type", "content-encoding", "task", "id", "args")
KINDS = (
    "application/json", "application/x-python-serialize", "application/x-yaml", "application/data",
    "text/plain", "application/x-msgpack", "application/text", "", "json",
)  # fmt: skip
ENCODINGS = ("utf-8", "binary", "base64", "utf-16", "rot13", "idna", "zlib", "hex", "nonsense", "")
COMPRESSIONS = (
    "zlib",
    "gzip",
    "application/x-gzip",
    "bzip2",
    "lzma",
    "zstd",
    "brotli",
    "nonsense",
    "",
)
BROADCASTS = ("celery.pidbox", "celeryev/worker.heartbeat", "celeryev/worker.online", "celeryev/x")


@cache
def _bomb() -> bytes:
    return zlib.compress(b"0" * 2**27)


class Garbage:
    """Messages made with `random`; a message that could start a task names one of `tasks`."""

    def __init__(self, random: Random, tasks: Sequence[str]) -> None:
        self._random, self._tasks = random, tasks

    def message(self, like: bytes | None = None) -> bytes:
        """Return an odd item for a list of messages; it may begin as a copy of `like`."""
        if self._random.random() < 0.1:
            return self._no_message()
        made = json.loads(like) if like else self._whole()
        for _ in range(self._random.randint(1, 3)):
            self._spoil(made)
        return self._written(made)

    def broadcast(self) -> tuple[str, bytes]:
        """Return a channel of remote control or of events, without its prefix, and what to say."""
        made = self._whole()
        body = {"method": self._odd(("ping", "nonsense", "active", "revoke", "hello")),
                "arguments": self._odd(({}, {"task_id": "x"})), "destination": self._odd((None,)),
                "reply_to": self._odd(({}, {"exchange": "x"})), "ticket": self._odd(("x",)),
                "hostname": self._odd(("h",)), "clock": self._odd((1,)),
                "type": "worker-x"}  # fmt: skip
        text = json.dumps({k: v for k, v in body.items() if self._random.random() < 0.7})
        made["body"] = base64.b64encode(text.encode("utf-8", "replace")).decode()
        if self._random.random() < 0.5:
            self._spoil(made)
        channel = self._random.choice(BROADCASTS)
        said = self._no_message() if self._random.random() < 0.2 else self._written(made)
        return channel, said

    def note(self) -> str:
        """Return an odd value for the hash of messages that workers have taken."""
        whole = self._whole()
        self._spoil(whole)
        parts = [whole, self._odd(("", "x")), self._odd(("no-such-queue",))]
        return self._written(parts[: self._random.randint(0, 3)] or self._odd(())).decode(
            "utf-8", "replace"
        )

    def _whole(self) -> dict[str, Any]:
        pick, key = self._random.choice, f"{self._random.getrandbits(64):x}"
        call: list[Any] = [[1, 2], {}, {"callbacks": None, "errbacks": None, "chain": None,
                                        "chord": None}]  # fmt: skip
        made: dict[str, Any] = {
            "body": call,
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"lang": "py", "task": pick(self._tasks), "id": key, "eta": None,
                        "expires": None, "retries": 0, "timelimit": [None, None], "root_id": key,
                        "parent_id": None, "argsrepr": "", "kwargsrepr": "", "origin": "me"},
            "properties": {"correlation_id": key, "reply_to": "", "delivery_mode": 2, "priority": 0,
                           "delivery_info": {"exchange": "", "routing_key": "celery"},
                           "body_encoding": "base64", "delivery_tag": key},
        }  # fmt: skip
        if pick((True, False, False, False)):  # protocol 1
            body = {"task": pick(self._tasks), "id": key, "args": [1, 2], "kwargs": {},
                    "retries": 0, "utc": True}  # fmt: skip
            made |= {"body": body, "headers": {}}
        if pick((True, False, False)):
            made["headers"] |= {"run_attempt": 1, "run_ledger": "x", "run_signature": "0" * 64}
        if pick((True, False, False)):  # of the kind that a sender spoils, or a stranger makes up
            self._spoil(made["body"])
        return made | {"body": self._packed(made)}

    def _packed(self, made: dict[str, Any]) -> Any:
        pick, text = self._random.choice, self._written(made["body"])
        body = pick((text, text, text, pickle.dumps([(), {}, {}]), b"!!python/object:x", b"\xff"))
        if self._random.random() < 0.1:
            made["headers"]["compression"] = pick(COMPRESSIONS)
            body = pick((zlib.compress(text, 1), bz2.compress(text[:9_000]), _bomb(), text))
        return base64.b64encode(body).decode()

    def _spoil(self, made: Any) -> None:
        """Replace, remove or add one part, anywhere in it."""
        random = self._random
        path = random.choice(list(_paths(made)) or [()])
        if not path:
            return
        *way, last = path
        place = made
        for step in way:
            place = place[step]
        names = {"headers": HEADERS, "properties": PROPERTIES}.get(way[-1] if way else "", TOP)
        act = random.random()
        if act < 0.15:
            del place[last]
        elif act < 0.5 and isinstance(place, dict):
            place[random.choice(names)] = self._odd(())
        elif last == "content-type":
            place[last] = random.choice(KINDS)
        elif last == "content-encoding":
            place[last] = random.choice(ENCODINGS)
        else:
            place[last] = self._odd(())

    def _odd(self, usual: Sequence[Any]) -> Any:
        if usual and self._random.random() < 0.6:
            return self._random.choice(usual)
        value = self._random.choice(ODD)
        return json.loads(json.dumps(value))  # a copy: it may be spoilt further

    def _no_message(self) -> bytes:
        random = self._random
        makers: tuple[Callable[[], bytes], ...] = (
            lambda: random.randbytes(random.randint(0, 300)),
            lambda: self._written(random.choice(ODD)),
            lambda: self._written(self._whole())[: random.randint(0, 400)],
            lambda: pickle.dumps(self._whole()),
            lambda: zlib.compress(self._written(self._whole())),
            lambda: b'{"headers": ' + DEEP.encode() + b', "properties": {}}',
            lambda: b'{"a": ' * 50_000,
            lambda: b'{"headers": {"id": ' + b"9" * 10_000 + b"}}",
            lambda: b" " * 2**20,
            lambda: json.dumps(self._whole()).encode("utf-16"),
        )
        return random.choice(makers)()

    def _written(self, value: Any) -> bytes:
        return json.dumps(value).replace(f'"{MARK}"', DEEP).encode()


def _paths(value: Any, way: Path = ()) -> list[Path]:
    """Return the paths to all parts of a value, except elements of long lists."""
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = enumerate(value[:5])  # type: ignore[assignment]
    return [path for key, part in items for path in [(*way, key), *_paths(part, (*way, key))]]
