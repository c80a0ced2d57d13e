"""Tables as lines of cells with bars between."""


class Table:
    def __init__(self, title=None, caption=None, **_):
        self.title, self.caption, self.lines = title, caption, [[]]

    def add_column(self, name, **_):
        self.lines[0].append(str(name))

    def add_row(self, *cells, **_):
        self.lines.append([str(cell) for cell in cells])

    def __str__(self):
        body = [" | ".join(line) for line in self.lines]
        return "\n".join(filter(None, [self.title, *body, self.caption]))
