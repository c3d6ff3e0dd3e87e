"""Change logs in the [MS-HRL] format, lists of zero extents, and the index that overlays them.

Pure: bytes come in through a `ReadAt` and go out through a file object; no clock, no file system, no randomness.
The layout is drawn in docs/design/log-format.md. Names are imported from their modules: who only looks up (`lookup`) needs no
numpy.
"""
