"""What a study is: its settings, the names of what belongs to it, where its files lie.

Imports `core`.
"""
