"""What the library costs, and what it will cost: `riemann-ng bench` and `riemann-ng inspect`."""
