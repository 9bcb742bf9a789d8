"""Federated learning with fewer weights on the wire.

The algorithms (exchange, fedavg, freezing, embedding) work on vectors and know no engine; client,
strategy and server make Flower apps of them, which the runners run.
"""
