"""aiohttp middlewares, one concern each."""
