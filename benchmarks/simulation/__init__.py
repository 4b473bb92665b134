"""What the service does with more processes, cores and load than there are here, by simulating it event by event."""
