"""Seeds by target: files by name, with what they hold."""

import pathlib

VECTORS = pathlib.Path(__file__).resolve().parent.parent.parent / "vectors"
