"""A store of keys in Redis.

`PREFIX:api-keys` is a hash from id to key, as JSON; `PREFIX:api-keys:names` has the ids of valid keys by name, and
`PREFIX:api-keys:changes` counts the changes. `PREFIX:api-keys:use:ID` has the current window of a key with the
requests and tokens used in it, and `PREFIX:api-keys:places:ID` the leased places of each process, with their end.
`PREFIX:api-keys:ended:ID` is there while the cookie of a sign-in that was ended would be valid.
Each change is one script: one round trip, and atomic. The server's clock is the store's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import redis

from ...access.keys import Key
from ...errors import ConfigError, Unauthorized
from ..registry import schema
from ..registry.address import StoreAddress
from ..registry.redis_server import RedisServer
from .base import KIND, LEASE, MAX_KEYS, MICROSECONDS, WINDOW, Amounts, Grant, Return

VERSION = 1
"""The version of the stored keys."""

OPEN = """
local prefix, version = ARGV[1] .. ':api-keys', ARGV[2]
redis.call('SET', prefix .. ':schema', version, 'NX')
local stored = redis.call('GET', prefix .. ':schema')
if tonumber(stored) > tonumber(version) then return {stored} end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local function use_of(id, length)
    local use = redis.call('HMGET', prefix .. ':use:' .. id, 'window', 'requests', 'tokens')
    local window, requests, tokens = tonumber(use[1] or 0), tonumber(use[2] or 0), tonumber(use[3] or 0)
    if now - window >= length then return now, 0, 0 end
    return window, requests, tokens
end
local function keep(id, window, requests, tokens)
    local name = prefix .. ':use:' .. id
    redis.call('HSET', name, 'window', string.format('%.0f', window),
        'requests', string.format('%.0f', requests), 'tokens', string.format('%.0f', tokens))
    redis.call('PEXPIRE', name, 300000)
end
local function hold(id, holder, places, lease)
    local name = prefix .. ':places:' .. id
    if places > 0 then
        redis.call('HSET', name, holder, string.format('%.0f %.0f', places, now + lease))
        redis.call('PEXPIRE', name, math.ceil(lease / 1000) + 300000)
    else
        redis.call('HDEL', name, holder)
    end
end
"""
"""The start of each script. If the store has a newer version, it returns that version and changes nothing."""

ADD = (
    OPEN
    + """
local id, name, document, most = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
if redis.call('HEXISTS', prefix .. ':names', name) == 1 then return {stored, 'taken'} end
if redis.call('HLEN', prefix) >= most then return {stored, 'full'} end
redis.call('HSET', prefix, id, document)
redis.call('HSET', prefix .. ':names', name, id)
redis.call('INCR', prefix .. ':changes')
return {stored, 'added'}
"""
)

REVOKE = (
    OPEN
    + """
local name, forget = ARGV[3], ARGV[4] == '1'
local id = redis.call('HGET', prefix .. ':names', name) or name
local document = redis.call('HGET', prefix, id)
if not document then return {stored, '', ''} end
local key = cjson.decode(document)
if redis.call('HGET', prefix .. ':names', key['name']) == id then
    redis.call('HDEL', prefix .. ':names', key['name'])
    local end_of_object = string.len(document) - 1
    document = string.sub(document, 1, end_of_object) .. string.format(', "revoked": %.6f}', now / 1000000)
    redis.call('HSET', prefix, id, document)
end
if forget then
    redis.call('HDEL', prefix, id)
    redis.call('DEL', prefix .. ':use:' .. id, prefix .. ':places:' .. id)
end
redis.call('INCR', prefix .. ':changes')
return {stored, id, document}
"""
)
"""A document is not encoded again, as Lua writes an empty list like an empty object: the last of equal names counts."""

TAKE = (
    OPEN
    + """
local id, holder, lease, length, held = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
if redis.call('HEXISTS', prefix, id) == 0 then return {stored, 'gone'} end
local window, requests, tokens = use_of(id, length)
local places = held
if tonumber(ARGV[10]) > 0 then
    local name = prefix .. ':places:' .. id
    local entries = redis.call('HGETALL', name)
    for i = 1, #entries, 2 do
        local amount, expires = string.match(entries[i + 1], '^(%d+) (%d+)$')
        if tonumber(expires) <= now then
            redis.call('HDEL', name, entries[i])
        elseif entries[i] ~= holder then
            places = places + tonumber(amount)
        end
    end
end
local used, left, taken, lacking = {requests, tokens, places}, {}, {0, 0, 0}, ''
for i, name in ipairs({'requests', 'tokens', 'places'}) do
    left[i] = math.max(0, tonumber(ARGV[7 + i]) - used[i])
    if lacking == '' and tonumber(ARGV[10 + i]) > left[i] then lacking = name end
end
if lacking == '' then
    for i = 1, 3 do
        taken[i] = math.min(tonumber(ARGV[10 + i]) + tonumber(ARGV[13 + i]), left[i])
        left[i] = left[i] - taken[i]
    end
    if taken[1] > 0 or taken[2] > 0 then keep(id, window, requests + taken[1], tokens + taken[2]) end
    if taken[3] > 0 then hold(id, holder, held + taken[3], lease) end
end
return {stored, lacking, taken[1], taken[2], taken[3], left[1], left[2], left[3], window,
    math.max(0, window + length - now)}
"""
)
"""ARGV 8 to 10 are the limits (0: none), 11 to 13 what is needed, 14 to 16 what may be taken beside it."""

SETTLE = (
    OPEN
    + """
local holder, lease, length = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
for i = 6, #ARGV, 5 do
    local id, of, places = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 4])
    local back_requests, back_tokens = tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
    if redis.call('HEXISTS', prefix, id) == 1 then
        local window, requests, tokens = use_of(id, length)
        if window ~= of then
            back_requests, back_tokens = math.min(0, back_requests), math.min(0, back_tokens)
        end
        if back_requests ~= 0 or back_tokens ~= 0 then
            keep(id, window, math.max(0, requests - back_requests), math.max(0, tokens - back_tokens))
        end
        hold(id, holder, places, lease)
    end
end
return {stored}
"""
)


class RedisKeyStore:
    """A store of keys that the processes of many machines share through a Redis server."""

    def __init__(self, address: StoreAddress, lease: float = LEASE) -> None:
        """Use the Redis at ``address``; places are leased for ``lease`` seconds. Raises ConfigError."""
        self._server = RedisServer(address, KIND)
        self._name = f"{self._server.prefix}:api-keys"
        self._lease = int(lease * MICROSECONDS)

    def add(self, key: Key) -> None:
        """Keep a key. Raises ConfigError if its name is that of a valid key, or there are too many."""
        document = {name: value for name, value in key.document().items() if name != "revoked"}
        (outcome,) = self._script(ADD, key.id, key.name, json.dumps(document), MAX_KEYS)
        if outcome == "taken":
            raise ConfigError(f"there is a key named {key.name} already: revoke it, or choose another name")
        if outcome == "full":
            raise ConfigError(f"there are {MAX_KEYS} keys, the most of a store: forget some (key revoke --forget)")

    def revoke(self, name: str, *, forget: bool = False) -> Key:
        """Revoke the key of an id or name, and return it. Raises ConfigError if there is none."""
        number, document = self._script(REVOKE, name, "1" if forget else "0")
        if not number:
            raise ConfigError(f"there is no key {name!r}: see modelyard key list (--all has the ids of revoked ones)")
        return _key(number, document)

    def all(self) -> list[Key]:
        """Return all keys in the order of their making."""
        documents = self._read(lambda client: client.hgetall(self._name))
        keys = [_key(number, document) for number, document in documents.items()]
        return sorted(keys, key=lambda key: (key.created, key.id))

    def stamp(self) -> str:
        """Return a text that is another after each change of the keys."""
        return self._read(lambda client: client.get(f"{self._name}:changes")) or ""

    def take(self, key: Key, holder: str, held: int, need: Amounts, spare: Amounts) -> Grant:
        """Take ``need``, and up to ``spare`` beside it. Raises Unauthorized if the key has gone."""
        limits = [limit or 0 for limit in (key.limits.requests, key.limits.tokens, key.limits.parallel)]
        lacking, *numbers = self._script(TAKE, key.id, holder, self._lease, WINDOW, held, *limits, *need, *spare)
        if not numbers:
            raise Unauthorized(f"the key {key.name} was revoked")
        return Grant(Amounts(*numbers[:3]), Amounts(*numbers[3:6]), numbers[6], numbers[7], lacking)

    def settle(self, holder: str, returns: Mapping[str, Return]) -> None:
        """Take back what a process does not need, and renew its places."""
        words = [word for number, back in returns.items() for word in (number, *back)]
        self._script(SETTLE, holder, self._lease, WINDOW, *words)

    def end_sign_in(self, number: str, seconds: float) -> None:
        """Keep for ``seconds`` that the sign-in of an id has ended."""
        self._server.call(lambda client: client.set(f"{self._name}:ended:{number}", 1, px=int(seconds * 1000)))

    def has_ended(self, number: str) -> bool:
        """Return whether the sign-in of an id has ended."""
        return bool(self._server.call(lambda client: client.exists(f"{self._name}:ended:{number}")))

    def close(self) -> None:
        """Close this process's connections; a later call opens them again."""
        self._server.close()

    def _script(self, script: str, *words: Any) -> list[Any]:
        arguments = [self._server.prefix, VERSION, *words]
        stored, *results = self._server.call(
            lambda client: client.register_script(script)(args=arguments, client=client)
        )
        self._check_version(stored)
        return list(results)

    def _read(self, work: Any) -> Any:
        def read(client: redis.Redis) -> Any:
            with client.pipeline(transaction=False) as pipeline:
                pipeline.get(f"{self._name}:schema")
                work(pipeline)
                return pipeline.execute()

        stored, result = self._server.call(read)
        self._check_version(stored)
        return result

    def _check_version(self, stored: str | None) -> None:
        if stored is not None and int(stored) > VERSION:
            raise schema.too_new(int(stored), VERSION, self._server.where)


def _key(number: str, document: str) -> Key:
    return Key.of_document(number, {"revoked": None, **json.loads(document)})
