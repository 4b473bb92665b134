"""A RESTful user-registration service: hexagonal, typed, with SQLite built in."""

from importlib.metadata import version

__version__ = version("usersvc")
