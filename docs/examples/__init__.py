"""The worked example of docs/extend.md: another store, another notifier, and a service made of them."""
