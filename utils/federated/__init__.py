"""Federated learning with fewer bytes on the wire.

The algorithms (exchange, fedavg, freezing, embedding, coefficients) work on vectors and know no
engine, and nor do transport and topk, which write changes in fewer bytes. methods is the table of
the algorithms, contenders of each at each transport. client, strategy and rounds make Flower apps
of them, which the runners run; flower alone knows what is private to Flower.
"""
