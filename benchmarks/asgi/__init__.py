"""The ASGI adapter compared with its peers: `python -m benchmarks.asgi`."""
