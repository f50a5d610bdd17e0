"""Runs every stage of a configuration once and prints its shapes: `python debug_shapes.py [CONFIG] [key=value ...]`."""

import sys

from pretraining.shapes import main

if __name__ == "__main__":
    sys.exit(main(prog="debug_shapes.py"))
