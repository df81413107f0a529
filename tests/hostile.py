"""Pickles that show that somebody opened them."""

import os
from pathlib import Path


class Opens:
    """Makes a folder when it is opened as a pickle."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.makedirs, (str(self.path), 0o777, True)
