"""What a matrix holds, whatever its format: genes and their names, cells or droplets, and which side is which.

Imports `readers.matrix`.
"""
