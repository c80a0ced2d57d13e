"""The console of bench/run.py, without colours."""

import re


class Console:
    is_terminal = False

    def __init__(self, **_):
        pass

    def print(self, text="", *, markup=True, **_):
        text = str(text)
        print(re.sub(r"\[/?[a-z ]*\]", "", text) if markup else text)
