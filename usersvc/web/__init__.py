"""The driving side: HTTP in, use case out."""
