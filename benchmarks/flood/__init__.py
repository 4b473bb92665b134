"""The service under more registrations than it can hash passwords for."""
