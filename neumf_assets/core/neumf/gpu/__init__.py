"""Training steps on a GPU: Triton kernels, what they need on the card, and how a model's steps are handed to them.

May import the fused CPU kernels' data classes and torch; Triton is imported only where a GPU trains.
"""
