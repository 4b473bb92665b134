"""The domain: what a user is and every rule about users. Pure Python, no I/O, no framework."""
