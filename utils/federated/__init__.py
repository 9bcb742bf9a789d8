"""Federated learning with fewer weights on the wire.

The algorithms (exchange, fedavg, freezing, embedding, coefficients) work on vectors and know no
engine; methods is the table of them. client, strategy and rounds make Flower apps of them, which
the runners run; flower alone knows what is private to Flower.
"""
