"""The command line: one function a command, in the rooms of `verbs/`."""
