"""Pictures by matplotlib, which is imported when the first one is drawn."""

from .pictures import png as png

__all__ = ["png"]
