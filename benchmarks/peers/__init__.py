"""Alternatives to the service, written as their documentation recommends."""
