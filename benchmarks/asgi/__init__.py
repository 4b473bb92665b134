"""The shim beside its peers: `python -m benchmarks.asgi`."""
