"""Rate limits that are counted in Redis.

``RedisCounts`` is imported when it is asked for: its driver is an extra, which ``url`` does not need.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from usersvc.adapters.redis.counts import RedisCounts as RedisCounts


def __getattr__(name: str) -> Any:
    if name == "RedisCounts":
        from usersvc.adapters.redis.counts import RedisCounts  # noqa: PLC0415  # see above

        return RedisCounts
    raise AttributeError(name)
