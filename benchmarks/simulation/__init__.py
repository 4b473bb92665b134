"""A discrete-event simulation of the service with more processes, cores and load than were measured."""
