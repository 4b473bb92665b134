"""uvicorn, hardened."""
