"""``usersvc serve`` with a lease that a test can wait for.

Workers import this too, before they can show that they live: so it imports nothing until it is run.
"""


def serve() -> None:
    """Run the service as its own command does, but for what the workers make."""
    from functools import partial  # noqa: PLC0415  # see above
    from pathlib import Path  # noqa: PLC0415  # see above

    import uvicorn  # noqa: PLC0415  # see above

    from usersvc.commands import serving  # noqa: PLC0415  # see above

    run = partial(uvicorn.run, "tests.e2e.short_lease:create_asgi_app", app_dir=str(Path(__file__).parents[2]))
    uvicorn.run = lambda _, **options: run(**options)
    serving.serve()


if __name__ == "__main__":
    serve()
