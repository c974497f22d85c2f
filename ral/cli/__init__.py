"""The command `ral`: a table of commands, each started in the module that implements it."""
