"""Rate limits that are counted in Redis."""

from usersvc.adapters.redis.counts import RedisCounts

__all__ = ("RedisCounts",)
