"""The commands of `icl`, a file each; a module is imported when its command is run.

`main(arguments)` of a module runs its command and returns the exit status.
"""

Folder = str  # because Path("") is the current folder
