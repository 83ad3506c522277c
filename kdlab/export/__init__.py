"""The student out of a run, in the formats that deploy it, each checked, and profiles of networks and files."""

from kdlab.export.formats import export_checked, to_onnx

__all__ = ["export_checked", "to_onnx"]
