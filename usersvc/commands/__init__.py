"""The commands of the console script, a module for each group.

A module here imports only what it needs to be listed, completed and explained; what a command works with it imports
when it runs, so that each costs no more than its own work.
"""
