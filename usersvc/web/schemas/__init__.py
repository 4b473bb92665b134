"""Marshmallow schemas: the shape of JSON."""
