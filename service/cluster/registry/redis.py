"""A registry in Redis, for controllers on many machines.

Each worker key is a hash, `PREFIX:instances:KEY`, from address to row; `PREFIX:keys` is the set of worker keys. A row
is generation, last heartbeat in microseconds, whether it was deregistered, and the rest as JSON, with blanks between.
The server's clock is the store's. A beat is one script, and so is a deregistration: one round trip, and atomic.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import redis

from ...errors import ConfigError
from . import limits, rows, schema
from .address import StoreAddress
from .base import ANY_GENERATION, HEARTBEAT_TIMEOUT, Beaten, Instance, Receipt
from .forgetting import Forgetting
from .redis_server import RedisServer

VERSION = 1
"""The version of the stored keys. Rows are written whole with each beat, so a new field needs no new version."""
BATCH = 500
"""The most instances in one call of a script, and the most keys that are read at once."""
REST = ("weight", "enabled", "check_healthy", "capabilities", "load", "prompt_template")
"""The fields of an instance that are JSON in a row."""

OPEN = """
local prefix, version = ARGV[1], ARGV[2]
redis.call('SET', prefix .. ':schema', version, 'NX')
local held = redis.call('GET', prefix .. ':schema')
if tonumber(held) > tonumber(version) then return {held} end
local function row_of(key, url)
    local row = redis.call('HGET', prefix .. ':instances:' .. key, url)
    if not row then return nil end
    local generation, heartbeat, gone, rest = string.match(row, '^(%d+) (%d+) (%d) (.*)$')
    return tonumber(generation), heartbeat, rest
end
local receipts = {}
"""
"""The start of both scripts. If the store has a newer version, it returns that version and changes nothing."""

BEAT = (
    OPEN
    + """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
for i = 3, #ARGV, 4 do
    local key, url, sent, rest = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    local held, heartbeat, kept = row_of(key, url)
    local generation
    if sent == '' or (sent == '0' and not held) then
        generation = math.max(now, (held or 0) + 1)
    elseif sent == '0' then
        generation, rest = held, kept
    else
        generation = tonumber(sent)
    end
    if held and generation < held then
        generation = held
    else
        local row = string.format('%.0f %.0f 0 ', generation, now) .. rest
        redis.call('HSET', prefix .. ':instances:' .. key, url, row)
        redis.call('SADD', prefix .. ':keys', key)
    end
    receipts[#receipts + 1] = string.format('%.0f', generation)
end
return {held, receipts}
"""
)

DEREGISTER = (
    OPEN
    + """
local forget = ARGV[3] == '1'
for i = 4, #ARGV, 3 do
    local key, url, sent = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
    local held, heartbeat, rest = row_of(key, url)
    local name = prefix .. ':instances:' .. key
    if held and (sent == 0 or sent >= held) then
        if forget then
            redis.call('HDEL', name, url)
            if redis.call('EXISTS', name) == 0 then redis.call('SREM', prefix .. ':keys', key) end
        else
            redis.call('HSET', name, url, string.format('%.0f ', held) .. heartbeat .. ' 1 ' .. rest)
        end
    end
    receipts[#receipts + 1] = string.format('%.0f', held or sent)
end
return {held, receipts}
"""
)


class RedisRegistry:
    """A registry that the processes of many machines share through a Redis server."""

    def __init__(self, address: StoreAddress, heartbeat_timeout: float = HEARTBEAT_TIMEOUT) -> None:
        """Use the Redis at ``address``; nothing is connected yet. Raises ConfigError."""
        self.heartbeat_timeout = heartbeat_timeout
        self._server = RedisServer(address)
        self._prefix = self._server.prefix
        self._forgetting = Forgetting(self)

    def beat(self, instances: Sequence[Instance]) -> Beaten:
        """Register or refresh all instances."""
        limits.check_beat(instances)
        receipts: list[Receipt] = []
        for chosen in _batches(list(instances)):
            words = [
                word
                for instance in chosen
                for word in (
                    instance.key,
                    instance.url,
                    "" if instance.generation is None else str(instance.generation),
                    _rest(instance),
                )
            ]
            receipts += self._script(BEAT, chosen, words)
        self._forgetting.after(instances)
        return Beaten(receipts, rows.interval(self.heartbeat_timeout))

    def deregister(self, instances: Sequence[Instance], *, forget: bool = False) -> list[Receipt]:
        """Mark instances unhealthy until they beat again; with ``forget`` remove their rows."""
        limits.check_identities(instances)
        receipts: list[Receipt] = []
        for chosen in _batches(list(instances)):
            words = [
                word
                for instance in chosen
                for word in (instance.key, instance.url, str(instance.generation or ANY_GENERATION))
            ]
            receipts += self._script(DEREGISTER, chosen, ["1" if forget else "0", *words])
        return receipts

    def instances(self, key: str | None = None, *, healthy_only: bool = False) -> list[Instance]:
        """Return all rows, or those of one key, ordered by key and address."""
        if key is not None:
            limits.check_lookup(key)
        instances = self._server.call(lambda client: self._read(client, key))
        return rows.ordered(instances, healthy_only=healthy_only)

    def close(self) -> None:
        """Close this process's connections; a later call opens them again."""
        self._server.close()

    def _script(self, script: str, instances: Sequence[Instance], words: Sequence[str]) -> list[Receipt]:
        version, *receipts = self._server.call(
            lambda client: client.register_script(script)(args=[self._prefix, VERSION, *words], client=client)
        )
        if not receipts:
            raise self._too_new(version)
        return [rows.receipt(instance, int(held)) for instance, held in zip(instances, receipts[0], strict=True)]

    def _read(self, client: redis.Redis, key: str | None) -> list[Instance]:
        keys = [key] if key is not None else sorted(_strings(client.smembers(f"{self._prefix}:keys")))
        instances: list[Instance] = []
        # At least once, so that a store of a newer version is refused even without keys.
        for start in range(0, max(1, len(keys)), BATCH):
            chosen = keys[start : start + BATCH]
            with client.pipeline(transaction=False) as pipeline:
                pipeline.time()
                pipeline.get(f"{self._prefix}:schema")
                for name in chosen:
                    pipeline.hgetall(f"{self._prefix}:instances:{name}")
                (seconds, microseconds), held, *hashes = pipeline.execute()
            if held is not None and int(held) > VERSION:
                raise self._too_new(held)
            now = seconds + microseconds / rows.MICROSECONDS
            instances += [
                _instance(name, url, row, now, self.heartbeat_timeout)
                for name, fields in zip(chosen, hashes, strict=True)
                for url, row in fields.items()
            ]
        return instances

    def _too_new(self, held: str) -> ConfigError:
        return schema.too_new(int(held), VERSION, self._server.where)


def _rest(instance: Instance) -> str:
    """Return the fields of a row that follow generation, heartbeat and deregistration, as JSON."""
    return json.dumps({name: getattr(instance, name) for name in REST})


def _instance(key: str, url: str, row: str, now: float, heartbeat_timeout: float) -> Instance:
    generation, heartbeat, deregistered, rest = row.split(" ", 3)
    fields = {name: value for name, value in json.loads(rest).items() if name in REST}
    last_heartbeat = int(heartbeat) / rows.MICROSECONDS
    instance = Instance(key=key, url=url, generation=int(generation), last_heartbeat=last_heartbeat, **fields)
    instance.healthy = rows.is_healthy(instance, deregistered == "1", now, heartbeat_timeout)
    return instance


def _strings(answer: Any) -> list[str]:
    return [str(item) for item in answer]


def _batches(instances: list[Instance]) -> list[list[Instance]]:
    return [instances[start : start + BATCH] for start in range(0, len(instances), BATCH)]
