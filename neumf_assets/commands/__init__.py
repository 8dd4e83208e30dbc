"""The command line, a module for each command, and what the terminal shows.

Imports every room.
"""
