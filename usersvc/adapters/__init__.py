"""Driven adapters: one technology a module, each behind a port of the application."""
