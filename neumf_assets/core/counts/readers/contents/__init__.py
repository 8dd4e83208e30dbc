"""What a matrix holds, whatever its format: genes and their names, labels, cells or droplets, which side is which.

And whether its entries are counts. Imports `readers.matrix` and `readers.text`.
"""
