"""A study's report as one HTML file that needs nothing else: styles and pictures are inside.

Every section is plain data, which the template `report.html` lays out with escaping; a module for each family of
sections. Imports what is beside it in `core.report`.
"""
