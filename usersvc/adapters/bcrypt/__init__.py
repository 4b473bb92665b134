"""Password hashing with bcrypt."""

from usersvc.adapters.bcrypt.hasher import BcryptPasswordHasher

__all__ = ("BcryptPasswordHasher",)
