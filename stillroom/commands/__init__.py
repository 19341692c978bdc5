"""The commands: one file each, found by its name; its docstring's first line is its help.

A file holds a function of its own name, whose annotated arguments are the flags, or `command(words)`, which reads them itself.
"""
