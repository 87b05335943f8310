"""Text that holds names and messages from outside, made fit for a terminal and a log."""


def one_line(text: str) -> str:
    """The text with everything unprintable escaped: names and messages from outside may hold line ends."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
