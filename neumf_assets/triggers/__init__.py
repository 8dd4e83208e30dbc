"""What starts runs by itself: the inbox's sensor, schedules, automation conditions.

Imports `core` to `intake`.
"""
