"""The use cases and the ports they need. Imports the domain and nothing else of the package."""
