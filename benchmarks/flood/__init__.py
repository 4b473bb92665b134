"""What the service does when more people register than it can hash passwords for."""
